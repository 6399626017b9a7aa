"""A verifier at work, its waits counted on a virtual clock."""

from contextlib import closing
from pathlib import Path
from random import Random

import trio.testing
from streams.build import START_MS, Stream
from streams.memory_ends import MemoryMessages, MemorySource, MemoryTarget
from streams.realms import party

from kv.memory import MemoryStore
from verifier.daemon.config import Times
from verifier.daemon.outbox import Outbox
from verifier.daemon.watch import Daemon, Parts
from verifier.signonce import SignOnceRegister

OWNER = party(1, "verifier-0")


class SilentSource(MemorySource):
    """Has nothing to say, as a keyserver between two epochs; counts who asks."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked = 0

    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> MemoryMessages:
        self.asked += 1
        return super().follow(start, timeout_s=timeout_s, page_size=page_size)


async def test_a_quiet_realm_is_listened_to_nearly_all_the_time(
    tmp_path: Path, rng: Random, autojump_clock: trio.testing.MockClock
) -> None:
    """Silence is no failure: the next address is asked after the shortest wait, however long nothing
    happens, or the next update would wait for a verifier that looks away.
    """
    realm, sources = Stream().realm, [SilentSource(), SilentSource()]
    register = SignOnceRegister.create(tmp_path / "register", key_id=OWNER.key_id)
    store, times = MemoryStore(), Times()
    parts = Parts(
        realm=realm,
        store=store,
        outbox=Outbox(store, register, OWNER.secret, OWNER.key_id, lambda: START_MS),
        sources=sources,
        targets=[MemoryTarget(1)],
        evidence=tmp_path / "evidence",
        clock=lambda: START_MS,
        rng=rng,
        times=times,
    )
    rounds = 40
    turn_s = (times.silence_max_ms + times.retry_min_ms) / 1000
    with closing(register), trio.move_on_after(rounds * turn_s):
        await Daemon(parts).run()
    assert sum(source.asked for source in sources) >= rounds
