"""Proposals that are repeated until they are committed, and what the log may hold then: for checks of logs.

On a busy machine members miss their leader, and a log may say of any proposal that it is lost. Whoever must
know repeats it; then the payload may be there more than once, but no more often than it was proposed.
"""

from collections import Counter
from collections.abc import Iterable

import trio

from replication.interface import ReplicatedLog
from replication.types import RUN_BYTES_MAX, RUN_ENTRIES_MAX, LogEntry, NoLeader, ProposalLost

MARK = b"everything before this"


async def insist(log: ReplicatedLog, payload: bytes, lost: Counter[bytes]) -> None:
    """Propose until the payload is committed; `lost` counts, for each payload, how often it was lost."""
    lost[payload] += 0
    while True:
        try:
            await log.propose(payload)
        except NoLeader:
            await trio.lowlevel.checkpoint()
        except ProposalLost:
            lost[payload] += 1
            await trio.lowlevel.checkpoint()
        else:
            return


async def all_committed(log: ReplicatedLog) -> list[bytes]:
    """Commit a mark; return the payloads before it, which come in bounded runs and are numbered from 1 on."""
    await insist(log, MARK, Counter())
    entries: list[LogEntry] = []
    async for run in log.committed():
        assert 0 < len(run) <= RUN_ENTRIES_MAX
        assert len(run) == 1 or sum(len(entry.payload) for entry in run) <= RUN_BYTES_MAX
        entries += run
        if any(entry.payload == MARK for entry in run):
            break
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    payloads = [entry.payload for entry in entries]
    return payloads[: payloads.index(MARK)]


def assert_once(committed: Iterable[bytes], lost: Counter[bytes]) -> None:
    """Check that what was insisted on, and nothing else, is there: once, or once more for each loss."""
    copies, once = Counter(committed), Counter(dict.fromkeys(lost, 1))
    assert once <= copies, "something that was acknowledged is missing"
    assert copies <= once + lost, "something is there that was not proposed, or not so often"
