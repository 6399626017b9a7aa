"""Duties in virtual time: who proposes the delimiter when, whatever the log knows of leaders."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from keyserver.config import Epochs
from keyserver.duties import Duties
from keyserver.machine.commands import Command, Delimiter
from keyserver.machine.obligations import TAKEOVER_MS
from keyserver.machine.state import Machine
from keyserver.metrics import Metrics
from keyserver.published import Published
from keyserver.replica import Replica
from keyserver.testing import Disk, small_realm
from keyserver.vrf_cache import VrfCache
from kv.memory import MemoryStore

SMALL = small_realm()
START_MS = 1_700_000_000_000
EPOCHS = Epochs(min_interval_ms=100, max_interval_ms=60_000, retry_interval_ms=200)


class Leadership:
    """What duties ask of a log, and of a proposer: they keep what was submitted, and when."""

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.losses = 0
        self.held = ""
        self.submitted: list[tuple[int, Command]] = []
        self.first = trio.Event()
        self.readings = 0  # of the clock: each look at the duties takes some

    def leader_hint(self) -> bool:
        return self.leads

    def submit(self, command: Command) -> None:
        self.submitted.append((passed_ms(), command))
        self.first.set()


def passed_ms() -> int:
    return round(trio.current_time() * 1000)


@asynccontextmanager
async def pursued(
    folder: Path, *, leads: bool, jump_ms: int = 0, issued_ms: int = 0, reading_ms: int = 0
) -> AsyncIterator[Leadership]:
    """A replica that has just started: an epoch is due at once, or after one issued at `issued_ms`. Its clock
    jumps after half a second, and goes on by `reading_ms` whenever it is read.
    """
    store, signer, both = MemoryStore(), Disk(folder).signer(SMALL), Leadership(leads)
    replica = Replica(
        Machine(SMALL.realm, EPOCHS.min_interval_ms), store, VrfCache(store, signer.vrf_prove), Metrics()
    )
    if issued_ms:
        state = dataclasses.replace(replica.state, issue_time_ms=issued_ms, pending_updates=1)
        replica.published = Published(SMALL.realm, store, state)
    began = passed_ms()

    def clock() -> int:
        both.readings += 1
        passed = passed_ms() - began + both.readings * reading_ms
        return START_MS + passed + (jump_ms if passed > 500 else 0)

    duties = Duties(replica, signer, both, both, EPOCHS, clock, lambda: 0.5)  # type: ignore[arg-type]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duties.run)
            yield both
            nursery.cancel_scope.cancel()


async def test_the_leader_ends_an_epoch_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    began = passed_ms()
    async with pursued(tmp_path, leads=True) as both:
        await both.first.wait()
    assert both.submitted == [(began, Delimiter(1, START_MS))]


@pytest.mark.parametrize("jump_ms", [0, 86_400_000, -3_600_000])
async def test_another_one_ends_it_when_it_has_seen_it_due_for_long_however_its_clock_jumps(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, jump_ms: int
) -> None:
    began = passed_ms()
    async with pursued(tmp_path, leads=False, jump_ms=jump_ms) as both:
        await both.first.wait()
        while not isinstance(both.submitted[-1][1], Delimiter):
            both.first = trio.Event()
            await both.first.wait()
    at, command = both.submitted[-1]
    assert command == Delimiter(1, START_MS + at - began + jump_ms)
    assert at - began >= TAKEOVER_MS
    assert at - began <= TAKEOVER_MS + EPOCHS.retry_interval_ms


async def test_while_nothing_may_be_proposed_nobody_looks_again_and_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with pursued(tmp_path, leads=True) as both:
        await both.first.wait()
        both.held = "no room on the disk"
        before = both.readings
        await trio.sleep(30)
        assert both.readings - before < 30


async def test_an_epoch_that_falls_due_while_duties_are_looked_at_is_ended_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    began = passed_ms()
    issued_ms = START_MS + 2 - EPOCHS.min_interval_ms  # one reading too early, due at the next
    async with pursued(tmp_path, leads=True, issued_ms=issued_ms, reading_ms=1) as both:
        await both.first.wait()
    ((at, command),) = both.submitted
    assert isinstance(command, Delimiter)
    assert at - began < EPOCHS.min_interval_ms
