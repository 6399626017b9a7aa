"""The proposer: one signed envelope at a time, as much in it as fits, a delimiter alone, a fresh clock; and
when to retry.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from keyserver.machine import commands, private_parts
from keyserver.machine.commands import AdmitVerifier, Command, Delimiter, LogEntry, SubmitUpdate, Tick
from keyserver.proposer import BACKOFF_DOUBLINGS, Attempts, Proposer
from keyserver.testing import Disk, Person, small_realm
from kv.interface import StorageError
from replication.types import LogEntry as Committed
from replication.types import LogOverloaded
from verifier import encoding, limits
from verifier.crypto import signatures
from verifier.errors import Reason, Refused

PATIENCE = 30.0
SMALL = small_realm()


class HeldLog:
    """A log that takes a payload when the test says so."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.asked = trio.Event()
        self.taken = trio.Event()
        self.may_go = trio.Semaphore(0)
        self.failures: list[Exception] = []

    async def propose(self, payload: bytes) -> None:
        self.asked.set()
        await self.may_go.acquire()
        if self.failures:
            raise self.failures.pop(0)
        self.payloads.append(payload)
        self.taken.set()

    def entries(self) -> list[LogEntry]:
        return [commands.decode_log_entry(payload) for payload in self.payloads]

    def committed(self) -> AsyncIterator[tuple[Committed, ...]]:
        raise NotImplementedError


Proposing = tuple[Proposer, HeldLog, Callable[[int], None]]


@asynccontextmanager
async def proposing(folder: Path, lost: Callable[[], None] = lambda: None) -> AsyncIterator[Proposing]:
    log, clock = HeldLog(), [1000]
    signer = Disk(folder).signer(SMALL)
    proposer = Proposer(log, signer, lambda: clock[0], lost=lost)  # type: ignore[arg-type]  # the part of a log that is used

    def set_clock(now_ms: int) -> None:
        clock[0] = now_ms

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proposer.run)
            yield proposer, log, set_clock
            nursery.cancel_scope.cancel()
    signer.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def admission(number: int) -> Command:
    return AdmitVerifier(signatures.public_key(bytes([number]) * 32))


async def test_what_is_submitted_while_one_entry_is_under_way_shares_the_next(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        proposer.submit(admission(1))
        await log.asked.wait()
        ids = [proposer.submit(admission(number)) for number in range(2, 7)]
        log.may_go.release()
        log.may_go.release()
        await until(lambda: len(log.payloads) == 2)
        first, second = log.entries()
        assert len(first.envelope.commands) == 1
        assert list(second.envelope.command_ids) == ids


async def test_an_entry_is_signed_and_carries_the_clock_of_its_proposal(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (proposer, log, set_clock):
        set_clock(5000)
        proposer.submit(Tick())
        await log.asked.wait()
        proposer.submit(Tick())
        set_clock(9000)
        log.may_go.release()
        log.may_go.release()
        await until(lambda: len(log.payloads) == 2)
        assert [entry.envelope.time_ms for entry in log.entries()] == [5000, 9000]
        for entry in log.entries():
            message = commands.envelope_message(SMALL.realm.hash, entry.envelope.encoded)
            assert entry.envelope.replica == SMALL.replica
            assert signatures.verify(signatures.public_key(SMALL.head_seed), message, entry.signature)


async def test_a_delimiter_is_alone_in_its_entry_and_keeps_its_place(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        for command in (Tick(), admission(1), Delimiter(1, 1000), admission(2), Tick()):
            proposer.submit(command)
        for _ in range(3):
            log.may_go.release()
        await until(lambda: len(log.payloads) == 3)
        kinds = [[type(command) for command in entry.envelope.commands] for entry in log.entries()]
        assert kinds == [[Tick, AdmitVerifier], [Delimiter], [AdmitVerifier, Tick]]


async def test_entries_with_private_parts_stay_within_the_limit_and_lose_nothing(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    update = encoding.decode_update(alice.draft({"pgp": b"k"}).update.SerializeToString(deterministic=True))
    contents = private_parts.encode_private_contents(
        alice.user_id, encoding.encode_profile({"pgp": bytes(60_000)}), bytes(32)
    )
    expected: list[tuple[bytes, bytes]] = []
    async with proposing(tmp_path) as (proposer, log, _):
        for number in range(60):
            salt = bytes([number]) * 32
            part = private_parts.encode_private_part(salt, contents)
            command_id = proposer.submit(
                SubmitUpdate(update, private_parts.private_hash(salt, contents)), part
            )
            expected.append((command_id, part))
        for _ in range(60):
            log.may_go.release()
        found: list[tuple[bytes, bytes]] = []
        await until(lambda: sum(len(entry.envelope.commands) for entry in log.entries()) == 60)
        for payload, entry in zip(log.payloads, log.entries(), strict=True):
            assert len(payload) <= limits.LOG_ENTRY_BYTES
            found += zip(entry.envelope.command_ids, entry.private_parts, strict=True)
        assert found == expected
        assert len(log.payloads) < 10


async def test_no_more_commands_than_an_entry_may_have(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        for _ in range(limits.COMMANDS_PER_ENTRY + 1):
            proposer.submit(Tick())
        log.may_go.release()
        log.may_go.release()
        await until(lambda: len(log.payloads) == 2)
        sizes = [len(entry.envelope.commands) for entry in log.entries()]
        assert sizes == [limits.COMMANDS_PER_ENTRY, 1]


async def test_an_overloaded_log_loses_the_proposal_and_not_the_proposer(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        log.failures.append(LogOverloaded("full"))
        lost = proposer.submit(admission(1))
        log.may_go.release()
        await until(lambda: not log.failures)
        kept = proposer.submit(admission(2))
        log.may_go.release()
        await until(lambda: len(log.payloads) == 1)
        (entry,) = log.entries()
        assert entry.envelope.command_ids == (kept,) != (lost,)


# What a leader takes with it


async def test_what_somebody_waits_for_is_proposed_again_first_with_a_fresh_clock(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with proposing(tmp_path) as (proposer, log, set_clock):
        log.failures += [LogOverloaded("no leader"), LogOverloaded("no leader")]
        deadline = trio.current_time() + 10
        set_clock(1000)
        first = proposer.submit(admission(1), until=deadline)
        await log.asked.wait()
        second = proposer.submit(admission(2), until=deadline)
        set_clock(2000)
        for _ in range(3):
            log.may_go.release()
        await log.taken.wait()
        (entry,) = log.entries()
        assert entry.envelope.command_ids == (first, second)
        assert entry.envelope.time_ms == 2000
        assert not log.failures


async def test_what_nobody_waits_for_any_more_is_not_proposed_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        log.failures += [LogOverloaded("no leader")] * 40
        log.may_go = trio.Semaphore(1_000)
        proposer.submit(admission(1), until=trio.current_time() + 1)
        kept = proposer.submit(admission(2), until=trio.current_time() + 60)
        await log.taken.wait()
        (entry,) = log.entries()
        assert entry.envelope.command_ids == (kept,)
        assert proposer._bytes == 0


async def test_what_is_queued_goes_on_while_held_unless_everything_is_to_stop(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        log.may_go = trio.Semaphore(1_000)
        proposer.hold("heads", "another head", stop=True)
        proposer.release("heads")
        waited_for = proposer.submit(admission(1), until=trio.current_time() + 60)
        proposer.hold("heads", "another head", stop=True)
        proposer.hold("disk", "it is full")
        await trio.sleep(5)
        assert log.payloads == []
        proposer.release("heads")
        await log.taken.wait()
        (entry,) = log.entries()
        assert entry.envelope.command_ids == (waited_for,)
        assert proposer.held == "it is full"


async def test_lost_duties_are_their_owners_who_is_told(tmp_path: Path) -> None:
    told = trio.Event()
    async with proposing(tmp_path, lost=told.set) as (proposer, log, _):
        log.failures.append(LogOverloaded("no leader"))
        proposer.submit(Tick())
        log.may_go.release()
        await told.wait()
        assert (proposer.losses, proposer._bytes, log.payloads) == (1, 0, [])


async def test_a_broken_log_ends_the_proposer(tmp_path: Path) -> None:
    log = HeldLog()
    log.failures.append(StorageError("the disk is gone"))
    log.may_go.release()
    signer = Disk(tmp_path).signer(SMALL)
    proposer = Proposer(log, signer, lambda: 1)  # type: ignore[arg-type]
    proposer.submit(Tick())
    with trio.fail_after(PATIENCE), pytest.raises(StorageError):
        await proposer.run()
    signer.close()


async def test_a_replica_that_may_not_sign_proposes_nothing(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (proposer, log, _):
        proposer._signer.quarantine("for the test")
        with pytest.raises(Refused) as caught:
            proposer.submit(Tick())
        assert caught.value.reason is Reason.NOT_READY
        assert not log.asked.is_set()


async def test_a_log_that_is_behind_refuses_more_than_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyserver.proposer.QUEUED_BYTES_MAX", 200)
    async with proposing(tmp_path) as (proposer, log, _):
        proposer.submit(Tick())
        await log.asked.wait()
        with pytest.raises(Refused) as caught:
            for _ in range(100):
                proposer.submit(Tick())
        assert caught.value.reason is Reason.NOT_READY
        log.may_go.release()
        log.may_go.release()
        await until(lambda: len(log.payloads) == 2)
        proposer.submit(Tick())  # there is room again


# When to try again


def test_a_duty_is_due_at_once_then_after_waits_that_double_up_to_a_cap() -> None:
    attempts = Attempts(100, chance=lambda: 0.5)  # the middle of the spread: exactly the wait
    moments = [now for now in range(0, 10_000, 10) if attempts.due(["delimiter 1"], now)]
    waits = [later - earlier for earlier, later in pairwise(moments)]
    assert waits[: BACKOFF_DOUBLINGS + 1] == [100, 200, 400, 800, 1600]
    assert set(waits[BACKOFF_DOUBLINGS:]) == {1600}


def test_waits_are_spread_and_never_beyond_a_quarter(rng: random.Random) -> None:
    waits = set()
    for _ in range(200):
        attempts = Attempts(1000, chance=rng.random)
        attempts.due(["x"], 0)
        waits.add(attempts.next_ms() or 0)
    assert min(waits) >= 750
    assert max(waits) <= 1250
    assert len(waits) > 50


def test_after_a_loss_everything_is_due_at_once() -> None:
    attempts = Attempts(100, chance=lambda: 0.5)
    assert attempts.due(["a", "b"], 0) == ["a", "b"]
    assert attempts.due(["a", "b"], 10) == []
    attempts.start_over()
    assert attempts.due(["a", "b"], 10) == ["a", "b"]


def test_a_duty_that_is_fulfilled_is_forgotten_with_its_wait() -> None:
    attempts = Attempts(100, chance=lambda: 0.5)
    assert attempts.due(["a", "b"], 0) == ["a", "b"]
    assert attempts.due(["b"], 10) == []
    assert attempts.due(["a", "b"], 20) == ["a"]
    assert attempts.due([], 30) == []
    assert attempts.next_ms() is None
