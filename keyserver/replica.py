"""One replica's rows and what follows from them: apply a run of the log in one batch, then say what
happened.

`apply` blocks and belongs to a worker thread, one call at a time; everything else runs on the trio thread.
Between the two lies the promise of the house: what is announced has been written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from keyserver.machine import notices, step
from keyserver.machine.codes import Code
from keyserver.machine.notices import Notice
from keyserver.machine.state import Machine, Position, ReplicaState, load_position, load_state
from keyserver.metrics import Metrics
from keyserver.published import Published
from keyserver.vrf_cache import VrfCache
from keyserver.waiters import Signal, Waiters
from kv import crash_points
from kv.interface import Store
from kv.overlay import Overlay
from replication.types import LogEntry
from verifier.crypto import hashing


@dataclass(frozen=True, slots=True)
class Batch:
    """What one write brought. `refused`: verdicts on whole entries."""

    state: ReplicaState
    position: Position
    notices: tuple[Notice, ...]
    refused: tuple[Code, ...]
    entries: int
    seconds: float


class Replica:
    """The state of a replica between batches. Raises Halt when the store does not fit the machine."""

    def __init__(self, machine: Machine, store: Store, vrf: VrfCache, metrics: Metrics) -> None:
        self.machine = machine
        self.store = store
        self.vrf = vrf
        self.metrics = metrics
        self.waiters = Waiters()
        self.applied = Signal()  # AFTER every batch, and every write beside
        self.contradicting: set[bytes] = set()  # key ids of verifiers whose other head this life has seen
        self.writing = trio.Lock()  # a store has one writer: take it to write, on the trio thread
        self.position = load_position(store)
        self.published = Published(machine.realm, store, load_state(store, machine))
        self._names = {verifier.key_id: verifier.name for verifier in machine.realm.verifiers}
        self._log = structlog.get_logger("replica")
        self._show()

    @property
    def state(self) -> ReplicaState:
        return self.published.state

    # In a worker thread

    def apply(self, entries: Sequence[LogEntry]) -> Batch:
        """Step through the entries, each upon what the former wrote, and write all of it in one synced batch.

        Raises Halt and StorageError; nothing has advanced then.
        """
        started = time.monotonic()
        rows = Overlay(self.store)
        state, position = self.state, self.position
        announced: list[Notice] = []
        refused: list[Code] = []
        for entry in entries:
            outcome = step.apply(rows, self.machine, state, position, entry.payload, index=entry.index)
            state, position = outcome.state, outcome.position
            for key, value in outcome.writes.items():
                rows.put(key, value)
            announced += outcome.notices
            refused += outcome.verdicts if outcome.refused else ()
        crash_points.reach("P8")
        for key, value in self.vrf.take_rows().items():
            if rows.writes.get(key, value) is not None:  # not what this very batch erases
                rows.put(key, value)
        crash_points.reach("P9")
        self.store.write(rows.writes)
        crash_points.reach("P11")
        seconds = time.monotonic() - started
        return Batch(state, position, tuple(announced), tuple(refused), len(entries), seconds)

    # On the trio thread

    async def write_beside(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Write rows that no entry of the log writes, between two batches. Raises StorageError."""
        async with self.writing:
            await trio.to_thread.run_sync(self.store.write, puts)
        self.applied.wake()

    def announce(self, batch: Batch) -> None:
        """Advance to what `apply` has written, and wake who waits for it."""
        changed = {
            notice.epoch
            for notice in batch.notices
            if isinstance(notice, notices.HeadComposed | notices.HeadSigned | notices.RatificationAdded)
        }
        listed = any(isinstance(notice, notices.VerifierListed) for notice in batch.notices)
        self.position = batch.position
        self.published = self.published.after(batch.state, changed, listed=listed)
        for notice in batch.notices:
            _ANNOUNCED[type(notice)](self, notice)
            crash_points.reach("P12")
        if changed:
            self.waiters.heads.wake()
        self.applied.wake()
        self._count(batch)
        self._show()

    def _decided(self, notice: notices.CommandDecided) -> None:
        self.waiters.decided(notice.command_id, notice.code, notice.epoch)
        self.metrics.count("commands", notice.code.name)

    def _composed(self, notice: notices.HeadComposed) -> None:
        self._log.info("epoch composed", epoch=notice.epoch, log_index=self.position.index)

    def _signed(self, notice: notices.HeadSigned) -> None:
        crash_points.reach("S6")
        self._log.info("epoch signed", epoch=notice.epoch)

    def _ratified(self, notice: notices.RatificationAdded) -> None:
        name = self._names.get(notice.key_id)
        if name is not None:
            self.metrics.set("ratified", notice.epoch, name)
        self._log.info("signature stored", epoch=notice.epoch, by=name or notice.key_id.hex())

    def _grew(self, _: notices.VerifierLogGrew) -> None:
        self.waiters.verifier_log.wake()

    def _listed(self, notice: notices.VerifierListed) -> None:
        key_id = hashing.key_id(notice.public_key)
        self._log.info("verifier listed", verifier=self._names.get(key_id, key_id.hex()))

    def _contradicted(self, notice: notices.ReplicaContradiction | notices.VerifierContradiction) -> None:
        self.metrics.count("contradictions")
        if isinstance(notice, notices.VerifierContradiction):
            self.contradicting.add(notice.key_id)
        by = self._names.get(notice.key_id, notice.key_id.hex())
        shown = notice.signed_head if isinstance(notice, notices.VerifierContradiction) else notice.head_hash
        self._log.critical("another head was signed", epoch=notice.epoch, by=by, evidence=shown.hex())

    def _count(self, batch: Batch) -> None:
        self.metrics.observe("batch_entries", batch.entries)
        self.metrics.observe("batch_seconds", batch.seconds)
        for code, count in Counter(batch.refused).items():
            self.metrics.count("entries_refused", code.name, by=count)
            self._log.warning("log entries refused", verdict=code.name, count=count)

    def _show(self) -> None:
        state = self.state
        self.metrics.set("applied", self.position.index)
        self.metrics.set("epoch", state.epoch)
        self.metrics.set("signed_epoch", state.signed_epoch)
        self.metrics.set("issue_time", state.issue_time_ms / 1000)
        self.metrics.set("pending", state.pending_updates)
        self.metrics.set("waiters", len(self.waiters))


# What each notice does here.
_ANNOUNCED: Final[dict[type, Callable[..., None]]] = {
    notices.CommandDecided: Replica._decided,
    notices.HeadComposed: Replica._composed,
    notices.HeadSigned: Replica._signed,
    notices.RatificationAdded: Replica._ratified,
    notices.VerifierLogGrew: Replica._grew,
    notices.VerifierListed: Replica._listed,
    notices.ReplicaContradiction: Replica._contradicted,
    notices.VerifierContradiction: Replica._contradicted,
}
