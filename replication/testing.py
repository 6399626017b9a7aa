"""What every replicated log must pass.

A check takes a function that opens the log under test: an async context whose log is constructed and not
started, and which stops it on leaving. Opening again gives the same log again. Engines are constructed with
`public_half` as their public part. `for check in CHECKS: await check(open_log)`, each with a fresh place.

Checks with much under way repeat what is lost (replication.insisting); the others propose little, and once:
members that miss their leader too soon fail them on a busy machine.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

import trio
import trio.testing

from kv.interface import StorageError
from replication.insisting import all_committed, assert_once, insist
from replication.interface import ReplicatedLog
from replication.types import (
    PAYLOAD_BYTES_MAX,
    RUN_BYTES_MAX,
    RUN_ENTRIES_MAX,
    LogEntry,
    LogNotRunning,
    PayloadTooLarge,
    PublicPartChanged,
    ReplicationError,
)

OpenLog = Callable[[], AbstractAsyncContextManager[ReplicatedLog]]

# Far above what any check takes, on any machine: only a log that hangs meets it.
HANGS_AFTER_S = 120
NO_LIMIT = 2**40


def public_half(payload: bytes) -> bytes:
    """Take what precedes the first "|" for the public part: total, as the interface demands."""
    return payload.partition(b"|")[0]


async def take(log: ReplicatedLog, count: int) -> list[LogEntry]:
    """Collect the first `count` entries of a new iterator, or more if the last run holds more."""
    entries: list[LogEntry] = []
    with trio.fail_after(HANGS_AFTER_S):
        async for run in log.committed():
            assert run
            entries += run
            if len(entries) >= count:
                return entries
    raise AssertionError(f"the log ended after {len(entries)} entries")


async def take_until(log: ReplicatedLog, payload: bytes) -> list[LogEntry]:
    """Collect entries from a new iterator up to the first that holds `payload`."""
    entries: list[LogEntry] = []
    with trio.fail_after(HANGS_AFTER_S):
        async for run in log.committed():
            for entry in run:
                entries.append(entry)
                if entry.payload == payload:
                    return entries
    raise AssertionError(f"the log ended after {len(entries)} entries")


async def propose_all(log: ReplicatedLog, payloads: list[bytes]) -> None:
    """Propose one after the other: each is accepted before the next is proposed."""
    with trio.fail_after(HANGS_AFTER_S):
        for payload in payloads:
            await log.propose(payload)


def numbered(payloads: list[bytes], first: int = 1) -> list[LogEntry]:
    """Return the entries that hold `payloads` from index `first` on."""
    return [LogEntry(index, payload) for index, payload in enumerate(payloads, first)]


LETTERS = [bytes((letter,)) * 9 for letter in b"abcdefghijklm"]


async def check_proposals_are_committed_in_order(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, [*LETTERS, b""])
        assert await take(log, 14) == numbered([*LETTERS, b""])


async def check_a_log_starts_from_any_index(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, LETTERS)
        await take(log, 13)
    for lo in (3, 1, 13):
        async with open_log() as log:
            await log.start(lo)
            assert await take(log, 14 - lo) == numbered(LETTERS[lo - 1 :], lo)


async def check_a_log_goes_on_after_reopening(open_log: OpenLog) -> None:
    expected: list[bytes] = []
    for generation in range(3):
        async with open_log() as log:
            await log.start(len(expected) + 1)
            more = [b"%d-%d" % (generation, number) for number in range(5)]
            await propose_all(log, more)
            assert await take(log, 5) == numbered(more, len(expected) + 1)
            expected += more
            await take(log, 5)
            assert list(log.read(1, 100, NO_LIMIT)) == numbered(expected)


async def check_a_log_that_lost_its_end_is_refused(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, LETTERS[:3])
        await take(log, 3)
    async with open_log() as log:
        assert await _refused(lambda: log.start(5), StorageError)
    async with open_log() as log:
        assert await _refused(lambda: log.start(0), ValueError)
        await log.start(4)
        await propose_all(log, [b"next"])
        assert await take(log, 1) == [LogEntry(4, b"next")]


async def check_iterators_go_their_own_way(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        first, second = log.committed(), log.committed()
        await propose_all(log, LETTERS[:2])
        seen = await _collect(first, 2)
        await propose_all(log, LETTERS[2:])
        assert seen + await _collect(first, 11) == numbered(LETTERS)
        assert await _collect(second, 13) == numbered(LETTERS)


async def check_an_iterator_waits_for_new_entries(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        runs = log.committed()
        received: list[LogEntry] = []

        async def receive() -> None:
            received.extend(await _collect(runs, 2))

        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                await log.propose(b"one")
                await trio.testing.wait_all_tasks_blocked()
                await log.propose(b"two")
        assert received == numbered([b"one", b"two"])


async def check_a_cancelled_wait_loses_nothing(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        runs = log.committed()
        for number in range(3):
            await _cancel_when_blocked(lambda: anext(runs))
            await log.propose(b"%d" % number)
            assert await _collect(runs, 1) == [LogEntry(number + 1, b"%d" % number)]


async def check_concurrent_proposals_are_committed_once(open_log: OpenLog) -> None:
    proposers, each = 40, 10

    async with open_log() as log:
        await log.start(1)
        lost: Counter[bytes] = Counter()

        async def propose_some(proposer: int) -> None:
            for number in range(each):
                await insist(log, b"%d/%d" % (proposer, number), lost)

        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                for proposer in range(proposers):
                    nursery.start_soon(propose_some, proposer)
            committed = await all_committed(log)
        assert_once(committed, lost)
        for proposer in range(proposers):
            own = [payload for payload in dict.fromkeys(committed) if payload.startswith(b"%d/" % proposer)]
            assert own == [b"%d/%d" % (proposer, number) for number in range(each)]


async def check_ranges_are_read(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        assert log.read(1, 14, NO_LIMIT) == ()
        await propose_all(log, LETTERS)
        await take(log, 13)
        every = numbered(LETTERS)
        assert list(log.read(1, 14, NO_LIMIT)) == every
        assert list(log.read(1, 99, NO_LIMIT)) == every
        assert list(log.read(5, 8, NO_LIMIT)) == every[4:7]
        assert list(log.read(1, 14, 18)) == every[:2]
        assert list(log.read(1, 14, 26)) == every[:2]
        assert list(log.read(4, 14, 0)) == every[3:4]
        for empty in ((5, 5), (8, 5), (14, 20), (99, 100)):
            assert log.read(*empty, NO_LIMIT) == ()
        try:
            log.read(0, 5, NO_LIMIT)
        except ValueError:
            return
        raise AssertionError("there is no entry 0")


async def check_private_parts_can_be_erased(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, [b"a|alice", b"b|bob"])
        await take(log, 2)
        await log.rewrite_private(1, b"a|")
        assert await log.compact([1])
        assert list(log.read(1, 3, NO_LIMIT)) == numbered([b"a|", b"b|bob"])
        too_large = b"a|" + b"x" * PAYLOAD_BYTES_MAX
        assert await _refused(partial(log.rewrite_private, 1, b"x|"), PublicPartChanged)
        assert await _refused(partial(log.rewrite_private, 1, too_large), PayloadTooLarge)
        await log.propose(b"c|carol")
    async with open_log() as log:
        await log.start(1)
        assert await take(log, 3) == numbered([b"a|", b"b|bob", b"c|carol"])


async def check_runs_are_bounded(open_log: OpenLog) -> None:
    quarter = RUN_BYTES_MAX // 4
    payloads = [b"%d" % number for number in range(RUN_ENTRIES_MAX + 300)]
    payloads += [bytes((number,)) * quarter for number in range(9)]
    lost: Counter[bytes] = Counter()
    async with open_log() as log:
        await log.start(1)
        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                for payload in payloads:
                    nursery.start_soon(insist, log, payload, lost)
    async with open_log() as log:
        await log.start(1)
        with trio.fail_after(HANGS_AFTER_S):
            assert_once(await all_committed(log), lost)


async def check_too_large_a_payload_is_refused(open_log: OpenLog) -> None:
    largest = b"x" * PAYLOAD_BYTES_MAX
    async with open_log() as log:
        await log.start(1)
        assert await _refused(lambda: log.propose(largest + b"x"), PayloadTooLarge)
        await propose_all(log, [largest, b"small"])
        assert await take(log, 2) == numbered([largest, b"small"])


async def check_only_a_running_log_takes_proposals(open_log: OpenLog) -> None:
    async with open_log() as log:
        assert await _refused(lambda: log.propose(b"early"), LogNotRunning)
        assert not log.status().running
        assert await _refused(lambda: _collect(log.committed(), 1), LogNotRunning)
        await log.start(1)
        assert await _refused(lambda: log.start(1), LogNotRunning)
        await propose_all(log, [b"in time"])
        assert await take(log, 1) == numbered([b"in time"])
        assert log.status().running
        assert log.status().committed_index == 1
        await log.stop()
        await log.stop()
        assert not log.status().running
        assert not log.leader_hint()
        assert await _refused(lambda: log.propose(b"late"), LogNotRunning)
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, [b"next"])
        assert await take(log, 2) == numbered([b"in time", b"next"])


async def check_stopping_ends_the_iterators(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, LETTERS)
        ended: list[int] = []

        async def follow() -> None:
            count = 0
            async for run in log.committed():
                count += len(run)
            ended.append(count)

        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()
                await log.stop()
        assert len(ended) == 2
        assert all(count <= 13 for count in ended)


async def check_proposals_while_stopping_are_settled(open_log: OpenLog) -> None:
    """Each returns or is refused, and what returned is in the log, once."""
    accepted: set[bytes] = set()
    refused: set[bytes] = set()

    async def propose_one(log: ReplicatedLog, payload: bytes) -> None:
        try:
            await log.propose(payload)
            accepted.add(payload)
        except ReplicationError:
            refused.add(payload)

    with trio.fail_after(HANGS_AFTER_S):
        async with open_log() as log:
            await log.start(1)
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(propose_one, log, b"%d" % number)
                    if number % 50 == 49:
                        await trio.lowlevel.checkpoint()
                nursery.start_soon(log.stop)
    assert len(accepted) + len(refused) == 200
    async with open_log() as log:
        await log.start(1)
        await propose_all(log, [b"last"])
        entries = await take_until(log, b"last")
        assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
        committed = [entry.payload for entry in entries[:-1]]
        assert len(set(committed)) == len(committed)
        assert accepted <= set(committed) <= accepted | refused


async def check_cancelled_proposals_harm_nobody(open_log: OpenLog) -> None:
    async with open_log() as log:
        await log.start(1)
        lost: Counter[bytes] = Counter()

        async def propose_once(payload: bytes) -> None:
            with suppress(ReplicationError):
                await log.propose(payload)

        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as keeping, trio.open_nursery() as cancelled:
                for number in range(100):
                    keeping.start_soon(insist, log, b"kept %d" % number, lost)
                    cancelled.start_soon(propose_once, b"cancelled %d" % number)
                    if number in (10, 50):
                        await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                cancelled.cancel_scope.cancel()
            committed = await all_committed(log)
        assert_once([payload for payload in committed if payload in lost], lost)
        others = [payload for payload in committed if payload not in lost]
        assert len(set(others)) == len(others)


async def _collect(runs: AsyncIterator[tuple[LogEntry, ...]], count: int) -> list[LogEntry]:
    entries: list[LogEntry] = []
    with trio.fail_after(HANGS_AFTER_S):
        while len(entries) < count:
            entries += await anext(runs)
    return entries


async def _cancel_when_blocked(wait: Callable[[], Awaitable[object]]) -> None:
    async def wait_in_vain() -> None:
        await wait()
        raise AssertionError("there was nothing to wait for")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def _refused(call: Callable[[], Awaitable[object]], expected: type[Exception]) -> bool:
    try:
        await call()
    except expected:
        return True
    return False


CHECKS: tuple[Callable[[OpenLog], Awaitable[None]], ...] = (
    check_proposals_are_committed_in_order,
    check_a_log_starts_from_any_index,
    check_a_log_goes_on_after_reopening,
    check_a_log_that_lost_its_end_is_refused,
    check_iterators_go_their_own_way,
    check_an_iterator_waits_for_new_entries,
    check_a_cancelled_wait_loses_nothing,
    check_concurrent_proposals_are_committed_once,
    check_ranges_are_read,
    check_private_parts_can_be_erased,
    check_runs_are_bounded,
    check_too_large_a_payload_is_refused,
    check_only_a_running_log_takes_proposals,
    check_stopping_ends_the_iterators,
    check_proposals_while_stopping_are_settled,
    check_cancelled_proposals_harm_nobody,
)
