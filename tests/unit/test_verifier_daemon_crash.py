"""A verifier whose disk fails at every single write, opened again each time: one signature an epoch, none
lost.
"""

from pathlib import Path
from random import Random

import pytest
import trio
from e2eks.v1 import types_pb2 as pb
from streams.build import START_MS, Stream, steps_message
from streams.memory_ends import MemorySource, MemoryTarget
from streams.realms import party

from kv.interface import StorageError, Store
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from kv.tracing import TracingStore
from verifier.daemon.config import Times
from verifier.daemon.database import check_register, claim
from verifier.daemon.outbox import Outbox
from verifier.daemon.state import owed_epochs
from verifier.daemon.tables import VerifierTables as Tables
from verifier.daemon.watch import Daemon, Parts
from verifier.signonce import SignOnceRegister

EPOCHS = 3
DEADLINE_S = 60.0
OWNER = party(1, "verifier-0")


class Bench:
    """What survives a crash: the disk, the register, what was pushed."""

    def __init__(self, path: Path) -> None:
        self.stream = Stream().grow(EPOCHS, users=("alice",))
        self.disk = MemoryDisk()
        self.folder = path
        self.register_file = path / "register"
        SignOnceRegister.create(self.register_file, key_id=OWNER.key_id).close()
        self.target = MemoryTarget(EPOCHS)
        self.now_ms = START_MS + 10_000

    async def live(self, store: Store) -> None:
        """One life of the process: until everything is delivered, or the disk fails (StorageError)."""
        self.now_ms += 1  # a signature made twice would show in its time
        register = SignOnceRegister.open(self.register_file, key_id=OWNER.key_id)
        try:
            realm = self.stream.realm
            claim(store, realm, OWNER.key_id)
            check_register(store, realm, register)
            parts = Parts(
                realm=realm,
                store=store,
                outbox=Outbox(store, register, OWNER.secret, OWNER.key_id, lambda: self.now_ms),
                sources=[MemorySource([steps_message(step) for step in self.stream.steps])],
                targets=[self.target],
                evidence=self.folder / "evidence",
                clock=lambda: self.now_ms,
                rng=Random(1),
                times=Times(retry_min_ms=1, retry_max_ms=2),
            )
            await self._run(Daemon(parts), store)
        finally:
            register.close()
            store.close()

    async def _run(self, daemon: Daemon, store: Store) -> None:
        failures: list[StorageError] = []

        async def work() -> None:
            try:
                await daemon.run()
            except StorageError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async def watch() -> None:
            await trio.to_thread.run_sync(self.target.enough.wait, abandon_on_cancel=True)
            try:
                while owed_epochs(store, 10):
                    await trio.lowlevel.checkpoint()
            except StorageError as error:  # it may have struck here, and an idle daemon would never notice
                failures.append(error)
            nursery.cancel_scope.cancel()

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                nursery.start_soon(watch)
        if failures:
            raise failures[0]


def epochs_of(pushed: list[bytes]) -> list[int]:
    heads = (pb.SignedEpochHead.FromString(push).head for push in pushed)
    return sorted(pb.EpochHead.FromString(head).epoch for head in heads)


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name)
async def test_a_disk_that_fails_at_any_moment_costs_nothing(tmp_path: Path, fault: Fault) -> None:
    struck = True
    moment = 0
    while struck:
        folder = tmp_path / str(moment)
        folder.mkdir()
        bench = Bench(folder)
        failing = FaultyStore(MemoryStore(bench.disk), fault, after=moment)
        try:
            await bench.live(failing)
        except StorageError:
            await bench.live(MemoryStore(bench.disk))
        struck = failing.struck
        assert len(set(bench.target.pushed)) == EPOCHS, f"another signature after fault {moment}"
        assert epochs_of(list(set(bench.target.pushed))) == list(range(1, EPOCHS + 1))
        moment += 1
    assert moment > 10


async def test_a_head_is_stored_before_it_is_signed_and_signed_before_it_is_pushed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    store = TracingStore(MemoryStore(bench.disk))
    await bench.live(store)
    tables = [[Tables.table_of(key).name for key in batch] for batch in store.batches]
    for epoch in range(1, EPOCHS + 1):
        place = epoch.to_bytes(8, "big")
        stored = next(n for n, b in enumerate(store.batches) if Tables.HEADS.key(place) in b)
        signed = next(n for n, b in enumerate(store.batches) if Tables.RATIFICATIONS.key(place) in b)
        settled = next(n for n, b in enumerate(store.batches) if b.get(Tables.OUTBOX.key(place), b"") is None)
        assert stored < signed < settled
        assert Tables.OUTBOX.key(place) in store.batches[stored]
    assert all("state" in names for names in tables if "heads" in names or "entries" in names)
