"""The loop and its surroundings: written before announced, many entries in one batch, nothing owed is lost
by a crash.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
import trio

from keyserver.admission.gate import Gate
from keyserver.config import Epochs
from keyserver.data_directory import LostTail, check_register, newest_own_signature
from keyserver.duties import LOOK_AGAIN_MS, LOOK_SOONEST_MS, steady_ms
from keyserver.machine import commands, views
from keyserver.machine.codes import Halt
from keyserver.machine.commands import Tick
from keyserver.machine.notices import Notice
from keyserver.machine.state import Machine, load_position
from keyserver.machine.tables import Tables
from keyserver.metrics import Metrics
from keyserver.proposer import Proposal
from keyserver.replica import Batch, Replica
from keyserver.run import Parts, Surroundings, assemble, first_cause, run_parts
from keyserver.signer import Signer
from keyserver.testing import FAST, OPEN, Disk, Person, running, small_realm
from keyserver.vrf_cache import VrfCache
from kv.interface import Reader, StorageError, Store
from kv.memory import MemoryStore
from kv.testing import Fault, FaultyStore
from kv.tracing import TracingStore
from replication.local import LocalLog
from replication.types import LogEntry

PATIENCE = 60.0
SMALL = small_realm()
GUARDED = small_realm(verifiers=1)
HERE = "ipv4:127.0.0.1"


async def log_payloads(disk: Disk) -> list[bytes]:
    log = LocalLog(MemoryStore(disk.log), commands.public_part)
    await log.start(1)
    payloads = [entry.payload for entry in log.read(1, 10**9, 10**9)]
    await log.stop()
    return payloads


# Order


async def test_nothing_is_announced_before_it_is_written(tmp_path: Path) -> None:
    traced: list[TracingStore] = []

    def trace(store: Store) -> Store:
        traced.append(TracingStore(store))
        return traced[0]

    spoken: list[tuple[int, Notice]] = []  # (batches written when it was said, what)
    async with running(SMALL, Disk(tmp_path), over=trace) as parts:
        announce = parts.replica.announce

        def listen(batch: Batch) -> None:
            assert load_position(parts.replica.store) == batch.position
            spoken.extend((len(traced[0].batches), notice) for notice in batch.notices)
            announce(batch)

        parts.replica.announce = listen  # type: ignore[method-assign]
        for number in range(5):
            proof = await parts.service.update(Person.named(f"u{number}", SMALL).update({"ssh": b"1"}), HERE)
            assert proof
        assert all(Tables.APPLIED.key() in batch for batch in traced[0].batches)
    assert spoken


class SlowStore:
    """A store whose writes wait until the test lets them go."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.held = False
        self.go = trio.Event()
        self.waiting = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._store.scan(start, stop, reverse=reverse, limit=limit)

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        if self.held:
            trio.from_thread.run_sync(self.waiting.set)
            trio.from_thread.run(self.go.wait)
        self._store.write(puts)

    def snapshot(self) -> AbstractContextManager[Reader]:
        return self._store.snapshot()

    def close(self) -> None:
        self._store.close()


async def test_many_entries_share_one_batch_while_the_disk_is_busy(tmp_path: Path) -> None:
    slow: list[SlowStore] = []

    def hold(store: Store) -> Store:
        slow.append(SlowStore(store))
        return slow[0]

    batches: list[int] = []
    async with running(SMALL, Disk(tmp_path), over=hold) as parts:
        apply_run = parts.replica.apply

        def counted(entries: Sequence[LogEntry]) -> Batch:
            batches.append(len(entries))
            return apply_run(entries)

        parts.replica.apply = counted  # type: ignore[method-assign]
        with trio.fail_after(PATIENCE):
            slow[0].held = True
            parts.proposer.submit(Tick())
            await slow[0].waiting.wait()
            before = parts.log.status().committed_index
            for number in range(6):  # six entries are committed while the first batch waits for the disk
                parts.proposer.submit(Tick())
                while parts.log.status().committed_index < before + number + 1:
                    await trio.lowlevel.checkpoint()
            slow[0].held = False
            slow[0].go.set()
            while parts.replica.position.index < before + 6:
                await parts.replica.applied.turn().wait()
    assert max(batches) == 6


async def test_batches_cut_differently_write_the_same_rows(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    async with running(GUARDED, disk) as parts:
        for number in range(6):
            person = Person.named(f"u{number % 3}{number}", GUARDED)
            request = person.draft({"ssh": b"1"})
            request.lookup_parameters.quorum_requirement.threshold = 1
            request.lookup_parameters.quorum_requirement.candidates.append(GUARDED.replica)
            await parts.service.update(request.SerializeToString(), HERE)
    payloads = await log_payloads(disk)
    entries = [LogEntry(number, payload) for number, payload in enumerate(payloads, 1)]
    found = []
    for size in (1, 3, len(entries)):
        store = MemoryStore()
        replica = quiet_replica(store)
        for first in range(0, len(entries), size):
            replica.announce(replica.apply(entries[first : first + size]))
        found.append(sorted(store.scan(b"", b"\xff")))
    assert found[0] == found[1] == found[2]
    live = MemoryStore(disk.database)
    kept = [row for row in live.scan(b"", b"\xff") if not row[0].startswith(Tables.VRF_CACHE.prefix)]
    assert kept == found[0]
    live.close()


def quiet_replica(store: Store) -> Replica:
    vrf = VrfCache(store, lambda _: (b"", b""))
    return Replica(Machine(GUARDED.realm, FAST.min_interval_ms), store, vrf, Metrics())


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
    """The log is cut after each of its entries in turn: what was owed at that moment is paid by the next
    start.
    """
    folder, alice = tmp_path / "first", Person.named("alice", SMALL)
    folder.mkdir()
    disk = Disk(folder)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
    payloads = await log_payloads(disk)
    assert len(payloads) >= 5
    for length in range(len(payloads) + 1):
        again = Disk(tmp_path / f"cut {length}")
        again.folder.mkdir()
        log = LocalLog(MemoryStore(again.log), commands.public_part)
        await log.start(1)
        for payload in payloads[:length]:
            await log.propose(payload)
        await log.stop()
        with trio.fail_after(PATIENCE):
            async with running(SMALL, again) as parts:
                assert await parts.service.update(Person.named("bob", SMALL).update({"ssh": b"b"}), HERE)
                assert parts.replica.state.is_signed


async def test_a_crash_between_register_and_log_sends_the_same_signature_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        submit = parts.proposer.submit
        lost: list[commands.Command] = []

        def lose(command: commands.Command, private: bytes = b"") -> bytes:
            if isinstance(command, commands.SignHead):
                lost.append(command)  # the signature is in the register, and never reaches the log
                return b""
            return submit(command, private)

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
        assert duties._pause_ms() == LOOK_SOONEST_MS
        duties._attempts.next_ms = lambda: None  # type: ignore[method-assign]
        assert duties._pause_ms() == LOOK_AGAIN_MS


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


# The witness outside: lost tails and registers


async def grown(disk: Disk) -> None:
    async with running(SMALL, disk) as parts:
        await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), HERE)


def drop_rows(store: MemoryStore, keep: Callable[[bytes], bool]) -> None:
    store.write({key: None for key, _ in store.scan(b"", b"\xff") if not keep(key)})
    store.close()


@pytest.mark.parametrize("what", ["database", "log"])
async def test_a_database_or_log_behind_the_register_is_refused(what: str, tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    await grown(disk)
    if what == "database":
        drop_rows(MemoryStore(disk.database), keep=lambda _: False)
    else:
        drop_rows(MemoryStore(disk.log), keep=lambda key: key[-8:] <= (2).to_bytes(8, "big") or len(key) < 8)

    async def start() -> None:
        async with running(SMALL, disk):
            pass

    with pytest.raises(LostTail, match=f"the {what} ends at log index"):
        await start()


async def test_a_missing_register_is_quarantine_not_a_second_chance(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    await grown(disk)
    (tmp_path / "register").unlink()
    async with running(SMALL, disk) as parts:  # Disk makes a new, empty register: the database knows better
        assert "epoch 2" in parts.signer.quarantined
        before = parts.log.status().committed_index
        with trio.fail_after(PATIENCE):
            for _ in range(50):
                await trio.lowlevel.checkpoint()
        assert parts.log.status().committed_index == before
        assert parts.status.not_ready()
        assert parts.service.lookup(Person.named("alice", SMALL).lookup(), HERE)


async def test_an_old_register_is_quarantine_too(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    await grown(disk)
    old = (tmp_path / "register").read_bytes()
    async with running(SMALL, disk) as parts:
        await parts.service.update(Person.named("bob", SMALL).update({"ssh": b"1"}), HERE)
    (tmp_path / "register").write_bytes(old)
    async with running(SMALL, disk) as parts:
        assert "epoch 3" in parts.signer.quarantined


async def test_another_head_in_the_register_stops_signing(tmp_path: Path) -> None:
    """A second machine under the same key: it must not sign a second head of the epoch."""
    first, second = Disk(tmp_path / "first"), Disk(tmp_path / "second")
    first.folder.mkdir()
    second.folder.mkdir()
    await grown(first)
    (first.folder / "register").rename(second.folder / "register")
    signer = second.signer(SMALL)
    signer_row = signer.newest_signed()
    assert signer_row is not None
    with suppress(LostTail):
        store = MemoryStore()
        log = LocalLog(MemoryStore(), commands.public_part)
        check_register(store, log, signer)
        raise AssertionError("an empty database is behind this register")
    # Let it begin anyway, as if the check were not there: the register itself refuses.
    store = MemoryStore(second.database)
    log = LocalLog(MemoryStore(second.log), commands.public_part)
    parts = assembled(second, store, log, signer)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_parts, parts)
            while not signer.quarantined:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert newest_own_signature(store, SMALL.replica) == 0
    assert signer.newest_signed() == signer_row
    signer.close()


def assembled(disk: Disk, store: Store, log: LocalLog, signer: Signer) -> Parts:
    return assemble(
        name="r1",
        realm=SMALL.realm,
        realm_json=b"{}",
        epochs=FAST,
        update_timeout_ms=1000,
        store=store,
        log=log,
        signer=signer,
        gate=Gate(OPEN, SMALL.realm),
        around=Surroundings(),
    )


def test_the_register_of_a_fresh_replica_passes(tmp_path: Path) -> None:
    signer = Disk(tmp_path).signer(SMALL)
    check_register(MemoryStore(), LocalLog(MemoryStore(), commands.public_part), signer)
    assert signer.quarantined == ""
    signer.close()


# Failures as groups


def test_the_first_cause_of_a_group_is_what_halts() -> None:
    halt = Halt("why")
    group = BaseExceptionGroup("", [trio.BrokenResourceError(), BaseExceptionGroup("", [ValueError(), halt])])
    assert first_cause(group) is halt
    lone = ValueError()
    assert first_cause(BaseExceptionGroup("", [lone])) is lone
