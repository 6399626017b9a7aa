"""The loop and the witness outside: written before announced, many entries in one batch, no lost tail goes
on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
import trio
from local_logs import payloads_on

from keyserver.admission.gate import Gate
from keyserver.data_directory import LostTail, check_register, newest_own_signature
from keyserver.machine import commands
from keyserver.machine.codes import Halt
from keyserver.machine.commands import Tick
from keyserver.machine.notices import Notice
from keyserver.machine.state import Machine, load_position
from keyserver.machine.tables import Tables
from keyserver.metrics import Metrics
from keyserver.replica import Batch, Replica
from keyserver.run import Parts, Surroundings, assemble, first_cause, run_parts
from keyserver.signer import Signer
from keyserver.testing import FAST, OPEN, Disk, Person, running, small_realm
from keyserver.vrf_cache import VrfCache
from kv.interface import Reader, Store
from kv.memory import MemoryStore
from kv.tracing import TracingStore
from replication.local import LocalLog
from replication.types import LogEntry

PATIENCE = 60.0
SMALL = small_realm()
GUARDED = small_realm(verifiers=1)
HERE = "ipv4:127.0.0.1"


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
    payloads = await payloads_on(disk.log, commands.public_part)
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
