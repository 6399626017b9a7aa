"""Failures of disk and process: the replica ends, and the next one finds the truth and pays what was owed."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from local_logs import payloads_on

from keyserver.config import Epochs
from keyserver.duties import LOOK_AGAIN_MS, LOOK_SOONEST_MS, steady_ms
from keyserver.machine import commands, step, views
from keyserver.machine.codes import Halt
from keyserver.machine.state import Machine, load_position, load_state
from keyserver.machine.tables import Tables
from keyserver.proposer import Proposal
from keyserver.run import Parts, first_cause
from keyserver.testing import FAST, Disk, Person, running, small_realm
from kv.interface import StorageError
from kv.memory import MemoryStore
from kv.testing import Fault, FaultyStore
from replication.local import LocalLog
from verifier.signonce import SignOnceRegister, read_rows

PATIENCE = 60.0
SMALL = small_realm()
GUARDED = small_realm(verifiers=1)
HERE = "ipv4:127.0.0.1"


# Failures


@pytest.mark.parametrize("fault", [Fault.WRITE_ERROR_AND_APPLIED, Fault.WRITE_ERROR_AND_NOT_APPLIED])
@pytest.mark.parametrize("after", range(6))
async def test_a_failed_write_ends_the_replica_and_the_next_start_finds_the_truth(
    fault: Fault, after: int, tmp_path: Path
) -> None:
    disk, alice = Disk(tmp_path), Person.named("alice", SMALL)
    request = alice.update({"ssh": b"1"})

    async def fail() -> None:
        async with running(SMALL, disk, over=lambda store: FaultyStore(store, fault, after=after)) as parts:
            await parts.service.update(request, HERE)
            await parts.service.update(alice.draft({"ssh": b"2"}).SerializeToString(), HERE)
            await parts.service.update(Person.named("bob", SMALL).update({"ssh": b"b"}), HERE)
            await trio.sleep_forever()

    with trio.fail_after(PATIENCE):
        with pytest.raises(BaseExceptionGroup) as caught:
            await fail()
        assert isinstance(first_cause(caught.value), StorageError)
        async with running(SMALL, disk) as parts:
            assert await parts.service.update(Person.named("carol", SMALL).update({"ssh": b"c"}), HERE)
            check_every_epoch_is_signed_once(parts)


def check_every_epoch_is_signed_once(parts: Parts) -> None:
    """What the register holds is what the database shows."""
    register = parts.signer._register
    assert register is not None
    for epoch in range(1, parts.replica.state.signed_epoch + 1):
        row = register.get(epoch)
        head = views.head_at(parts.replica.store, epoch)
        assert row is not None
        assert row.head_hash == head.hash


async def test_whatever_moment_a_replica_dies_at_the_next_one_goes_on(tmp_path: Path) -> None:
    """Log, rows and register are cut after each entry in turn: what was owed at that moment is paid by the
    next start.
    """
    folder, alice = tmp_path / "first", Person.named("alice", SMALL)
    folder.mkdir()
    disk = Disk(folder)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
    payloads = await payloads_on(disk.log, commands.public_part)
    assert len(payloads) >= 5
    _, signed = read_rows(folder / "register", key_id=SMALL.replica)
    for length in range(len(payloads) + 1):
        again = Disk(tmp_path / f"cut {length}")
        again.folder.mkdir()
        register = SignOnceRegister.create(again.folder / "register", key_id=SMALL.replica)
        for row in signed.values():
            if row.log_index < length:
                register.sign_once(row.epoch, row.head_hash, partial(replace, row))
        register.close()
        log = LocalLog(MemoryStore(again.log), commands.public_part)
        await log.start(1)
        for payload in payloads[:length]:
            await log.propose(payload)
        await log.stop()
        write_rows(again, payloads[:length])
        with trio.fail_after(PATIENCE):
            async with running(SMALL, again) as parts:
                assert await parts.service.update(Person.named("bob", SMALL).update({"ssh": b"b"}), HERE)
                assert parts.replica.state.is_signed


def write_rows(disk: Disk, payloads: Sequence[bytes]) -> None:
    """The database that a replica has after these entries."""
    store = MemoryStore(disk.database)
    machine = Machine(SMALL.realm, FAST.min_interval_ms)
    state, position = load_state(store, machine), load_position(store)
    for payload in payloads:
        outcome = step.apply(store, machine, state, position, payload)
        store.write(outcome.writes)
        state, position = outcome.state, outcome.position
    store.close()


async def test_a_crash_between_register_and_log_sends_the_same_signature_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        submit = parts.proposer.submit
        lost: list[commands.Command] = []

        def lose(command: commands.Command, private: bytes = b"", until: float | None = None) -> bytes:
            if isinstance(command, commands.SignHead):
                lost.append(command)  # the signature is in the register, and never reaches the log
                return b""
            return submit(command, private, until)

        parts.proposer.submit = lose  # type: ignore[method-assign]
        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    parts.service.update, Person.named("alice", SMALL).update({"ssh": b"1"}), HERE
                )
                while not lost:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
    async with running(SMALL, disk) as parts:
        with trio.fail_after(PATIENCE):
            while parts.replica.state.signed_epoch < 2:
                await parts.replica.applied.turn().wait()
        key = Tables.REPLICA_SIGNATURES.key((2).to_bytes(8, "big"), SMALL.replica)
        assert isinstance(lost[0], commands.SignHead)
        assert parts.replica.store.get(key) == lost[0].signature


async def test_a_proposal_lost_by_the_log_is_made_again(tmp_path: Path) -> None:
    epochs = Epochs(min_interval_ms=1, max_interval_ms=3_000_000, retry_interval_ms=20)
    async with running(SMALL, Disk(tmp_path), epochs=epochs) as parts:
        take = parts.proposer._take
        lost = 0

        def lose_heads_twice() -> list[Proposal]:
            nonlocal lost
            batch = take()
            sign_head = commands.encode_command(commands.SignHead(1, bytes(32), bytes(64)))[:1]
            if lost < 2 and batch and batch[0].command[:1] == sign_head:
                lost += 1
                return []
            return batch

        parts.proposer._take = lose_heads_twice  # type: ignore[method-assign]
        with trio.fail_after(PATIENCE):
            assert await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), HERE)
        assert lost == 2


async def test_a_retry_that_has_become_due_meanwhile_is_not_slept_over(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        duties = parts.duties
        duties._attempts.next_ms = lambda: steady_ms() - 1  # type: ignore[method-assign]
        assert await duties.pursue() == LOOK_SOONEST_MS
        duties._attempts.next_ms = lambda: None  # type: ignore[method-assign]
        assert LOOK_AGAIN_MS - 1_000 < await duties.pursue() <= LOOK_AGAIN_MS


async def test_a_halt_ends_the_replica(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), HERE)
    store = MemoryStore(disk.database)
    store.write({key: b"damaged" for key, _ in store.scan(*Tables.TREE.span())})
    store.close()

    async def start() -> None:
        async with running(SMALL, disk) as parts:
            await parts.service.update(Person.named("bob", SMALL).update({"ssh": b"1"}), HERE)
            await trio.sleep_forever()

    with trio.fail_after(PATIENCE), pytest.raises(BaseExceptionGroup) as caught:
        await start()
    assert isinstance(first_cause(caught.value), Halt)


async def test_another_min_interval_than_the_realm_began_with_is_refused(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk):
        pass
    other = Epochs(min_interval_ms=2, max_interval_ms=3_000_000, retry_interval_ms=200)

    async def start() -> None:
        async with running(SMALL, disk, epochs=other):
            pass

    with pytest.raises(Halt, match="min_interval_ms"):
        await start()


async def test_undecodable_committed_entries_are_refused_and_change_nothing_else(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        before = parts.replica.state
        for payload in (b"", b"\xff\xff", b"\x08\x01"):
            await parts.log.propose(payload)
        with trio.fail_after(PATIENCE):
            while parts.replica.position.index < parts.log.status().committed_index:
                await parts.replica.applied.turn().wait()
        assert parts.replica.state == before
        assert b'e2eks_entries_refused_total{verdict="BAD_ENVELOPE"} 3.0' in parts.metrics.text()
        assert await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), HERE)
