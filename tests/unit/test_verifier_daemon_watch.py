"""A verifier at work, how often it asks, and what it offers."""

import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio.testing
from streams.build import START_MS, Stream, steps_message
from streams.folder import FAST
from streams.memory_ends import MemoryMessages, MemorySource, MemoryTarget
from streams.realms import party

from kv.memory import MemoryStore
from verifier.daemon.config import Times
from verifier.daemon.failures import CallRefused
from verifier.daemon.outbox import Outbox
from verifier.daemon.state import load_state
from verifier.daemon.step import apply_message
from verifier.daemon.watch import Daemon, Parts
from verifier.errors import Reason
from verifier.signonce import SignOnceRegister

OWNER = party(1, "verifier-0")
DEADLINE_S = 60.0


class SilentSource(MemorySource):
    """Has nothing to say, as a keyserver between two epochs; counts who asks."""

    def __init__(self) -> None:
        super().__init__([])
        self.asked = 0

    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> MemoryMessages:
        self.asked += 1
        return super().follow(start, timeout_s=timeout_s, page_size=page_size)


class OverdueSource(MemorySource):
    """Its streams end because their time is over, with nothing said. `enough` is set after `wanted`."""

    def __init__(self, wanted: int) -> None:
        super().__init__([])
        self.at: list[float] = []  # when each began
        self.enough = threading.Event()
        self._wanted = wanted

    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> MemoryMessages:
        self.at.append(trio.current_time())
        if len(self.at) >= self._wanted:
            self.enough.set()
        messages = super().follow(start, timeout_s=timeout_s, page_size=page_size)
        messages.overdue = True
        messages.cancel()  # it waits for nothing
        return messages


class RefusingTarget(MemoryTarget):
    """Does not know this verifier yet. `enough` is set after `wanted` connections."""

    def __init__(self, wanted: int) -> None:
        super().__init__(wanted)
        self.connections = 0
        self.at: list[float] = []  # when each began

    @contextmanager
    def connected(self) -> Iterator[MemoryTarget]:
        self.connections += 1
        self.at.append(trio.current_time())
        if self.connections > self._wanted:
            self.enough.set()
        yield self

    def push(self, ratification: bytes) -> bytes:
        self.pushed.append(ratification)
        raise CallRefused(Reason.NOT_READY)


def parts_of(
    register: SignOnceRegister,
    path: Path,
    rng: Random,
    *,
    sources: Sequence[Any] = (),
    targets: Sequence[Any] = (),
    times: Times = FAST,
) -> Parts:
    """What a verifier of the sample realm is put together from."""
    store, now_ms = MemoryStore(), START_MS + 10_000
    return Parts(
        realm=Stream().realm,
        store=store,
        outbox=Outbox(store, register, OWNER.secret, OWNER.key_id, lambda: now_ms),
        sources=sources,
        targets=targets,
        evidence=path / "evidence",
        clock=lambda: now_ms,
        rng=rng,
        times=times,
    )


async def work(
    path: Path,
    rng: Random,
    until: Callable[[], Awaitable[object]],
    *,
    before: Callable[[Parts], None] = lambda parts: None,
    **ends: Any,
) -> None:
    """A verifier of the sample realm at work until something happened; `before` is what a former life did."""
    with closing(SignOnceRegister.create(path / "register", key_id=OWNER.key_id)) as register:
        parts = parts_of(register, path, rng, **ends)
        before(parts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Daemon(parts).run)
            await until()
            nursery.cancel_scope.cancel()


async def test_a_quiet_realm_is_listened_to_nearly_all_the_time(
    tmp_path: Path, rng: Random, autojump_clock: trio.testing.MockClock
) -> None:
    """Silence is no failure: the next address is asked after the shortest wait, however long nothing
    happens, or the next update would wait for a verifier that looks away.
    """
    sources, times, rounds = [SilentSource(), SilentSource()], Times(), 40
    over = partial(trio.sleep, rounds * (times.silence_max_ms + times.retry_min_ms) / 1000)
    await work(tmp_path, rng, over, sources=sources, targets=[MemoryTarget(1)], times=times)
    assert sum(source.asked for source in sources) >= rounds


async def test_a_stream_whose_time_is_over_is_renewed_after_the_shortest_wait(
    tmp_path: Path, rng: Random
) -> None:
    """However often nothing was said in it: with one address, too, silence is no failure."""
    source, times = OverdueSource(wanted=14), Times(retry_min_ms=10, retry_max_ms=60_000)
    renewed = partial(trio.to_thread.run_sync, source.enough.wait, DEADLINE_S, abandon_on_cancel=True)
    await work(tmp_path, rng, renewed, sources=[source], targets=[MemoryTarget(1)], times=times)
    doubled_s = 0.010 / 2 * 2**12  # the last wait at least, if each were twice the one before
    assert max(later - earlier for earlier, later in itertools.pairwise(source.at)) < doubled_s


async def test_a_keyserver_that_takes_nothing_is_not_offered_all_that_is_owed(
    tmp_path: Path, rng: Random
) -> None:
    target = RefusingTarget(wanted=60)
    source = MemorySource([steps_message(step) for step in Stream().grow(20).steps])
    tried = partial(trio.to_thread.run_sync, target.enough.wait, DEADLINE_S, abandon_on_cancel=True)
    await work(tmp_path, rng, tried, sources=[source], targets=[target], times=FAST)
    assert target.connections > 60
    assert len(target.pushed) <= target.connections


async def test_a_keyserver_that_does_not_say_what_a_key_signed_is_asked_again_only_after_a_wait(
    tmp_path: Path, rng: Random
) -> None:
    """Also when a head was replayed before it said so: only one that comes meanwhile hurries the verifier."""
    stream, target, times = (
        Stream().grow(2),
        RefusingTarget(wanted=8),
        Times(retry_min_ms=60, retry_max_ms=60),
    )
    heads_to_come = 1

    def ratify_first(parts: Parts) -> None:
        first, state = stream.message(1, len(stream.steps) // 2 + 1), load_state(parts.store, parts.realm)
        parts.store.write(apply_message(parts.store, parts.realm, state, first).writes)
        parts.outbox.ratify(1)

    source = MemorySource([steps_message(step) for step in stream.steps])
    tried = partial(trio.to_thread.run_sync, target.enough.wait, DEADLINE_S, abandon_on_cancel=True)
    await work(tmp_path, rng, tried, sources=[source], targets=[target], times=times, before=ratify_first)
    at_once = sum(later - earlier < 0.030 for earlier, later in itertools.pairwise(target.at))
    assert at_once <= heads_to_come


def test_what_a_verifier_tells_of_itself_stays_as_it_was_told(tmp_path: Path, rng: Random) -> None:
    """It is read in other threads, which a peer that is compared for the first time must not disturb."""
    with closing(SignOnceRegister.create(tmp_path / "register", key_id=OWNER.key_id)) as register:
        daemon = Daemon(parts_of(register, tmp_path, rng))
        told = daemon.standing()
        daemon._seen["peers"]["v1"] = 7
        assert told["peers"] == {}
        assert daemon.standing()["peers"] == {"v1": 7}
