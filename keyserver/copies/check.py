"""Is what a replica keeps what its log makes of it? One pass over a copy, and every difference as data.

The log is replayed from entry 1 through the machine's own step into scratch rows: that recomputes every
digest, root, chain, signature and verdict. Then the rows under test are compared with them, byte for byte
and both ways, so that tables, tree, history and verifier log are checked against the log and each other.
The sign-once register is compared with the replayed heads. Rows of the VRF cache are no result of the log:
each is proven with the user id that the log has at its index.

Scratch rows hold no private data: of a private row only a hash is kept. A damaged log ends the comparison:
what the rows should be is then not known.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, starmap
from typing import Any, Final

from e2eks.v1 import command_pb2 as pb_command
from e2eks.v1 import state_pb2 as pb

from keyserver.copies.check_proofs import IndexProofs
from keyserver.copies.check_register import Recorded, check_register
from keyserver.machine import commands, step, views
from keyserver.machine.codes import Halt
from keyserver.machine.rows import parse_row
from keyserver.machine.state import GENESIS_POSITION, Machine, genesis_state
from keyserver.machine.step import Outcome
from keyserver.machine.tables import Tables
from kv.interface import Reader, StorageError, Store
from kv.keys import EVERYTHING, U64_BYTES, u64
from kv.merge import Row
from kv.overlay import Overlay
from verifier.crypto import commitment
from verifier.encoding import canonical
from verifier.limits import HASH_BYTES

SCHEMA = "e2eks.check/1"
LOG, STORAGE, UNKNOWN = "log", "storage", "unknown"
# Of one table: a damaged disk can spoil millions of rows, and a hundred say as much.
FAULTS_LISTED = 100
# Written to the scratch store at a time: some megabytes, and few syncs.
ROWS_A_BATCH = 20_000
ENTRIES_A_SIGN = 256  # of progress
# Not made by the log alone: a cache that proves itself, and work that the run loop takes up and deletes.
LEFT_OUT = (Tables.VRF_CACHE, Tables.BLANKING)

Entry = tuple[int, bytes]  # log index, payload
Progress = Callable[[int], None]  # told the log index reached


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one row. `key`: all of it, in hexadecimal; of log and register, entry or epoch."""

    table: str
    key: str
    reason: str


class Faults:
    """Faults by table, counted all, listed up to FAULTS_LISTED."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.listed: list[Fault] = []

    def add(self, table: str, key: str, reason: str) -> None:
        """One more."""
        self.counts[table] += 1
        if self.counts[table] <= FAULTS_LISTED:
            self.listed.append(Fault(table, key, reason))

    def add_row(self, key: bytes, reason: str) -> None:
        """One more, about a row of the database."""
        self.add(table_name(key), key.hex(), reason)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked, in the order in which it is read: each part is iterated once, one after the other.

    `applied` is the log index at which the rows stand, None if that is not known. `entries` begin with 1;
    those after `applied` are only passed over. `rows` are all others of the database, in key order. `found`
    is filled while reading: faults of the copy itself, such as a break in the log's chain.
    """

    applied: int | None
    index_proofs: Iterable[Row]
    entries: Iterable[Entry]
    rows: Iterable[Row]
    found: Faults = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `entries` and `rows` were read."""

    applied: int
    digest: bytes
    epoch: int
    entries: int
    rows: int
    index_proofs: int
    register: int  # rows of the register that were compared
    faults: Faults

    @property
    def sound(self) -> bool:
        """Whether there was no fault."""
        return not self.faults.counts

    def record(self) -> dict[str, Any]:
        """The report as JSON has it, schema e2eks.check/1."""
        return {
            "schema": SCHEMA,
            "sound": self.sound,
            "applied_index": self.applied,
            "state_digest": self.digest.hex(),
            "epoch": self.epoch,
            "log_entries": self.entries,
            "rows": self.rows,
            "index_proofs": self.index_proofs,
            "register_rows": self.register,
            "faults_found": self.faults.counts.total(),
            "faults": [
                {"table": fault.table, "key": fault.key, "reason": fault.reason}
                for fault in self.faults.listed
            ],
        }


class Unreadable(Exception):
    """The copy under test cannot be read on: a fault of its own, unlike one of the scratch store."""


def check(
    machine: Machine,
    subject: Subject,
    scratch: Store,
    *,
    recorded: Recorded | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Check a copy; `scratch` is an empty store. Raises StorageError when the scratch store fails."""
    faults = subject.found
    with IndexProofs(machine.realm, scratch, faults.add_row) as proofs:
        replay, rows = Replay(machine, scratch, faults, subject.applied, proofs), 0
        try:
            proofs.keep(_read(subject.index_proofs))
            for index, payload in _read(subject.entries):
                replay.feed(index, payload)
                if index % ENTRIES_A_SIGN == 0:
                    progress(index)
            replay.finish()
            proofs.finish()
            rows = Comparison(replay, faults).run(_read(subject.rows))
        except Unreadable as error:
            faults.add(STORAGE, "", str(error))
    if replay.is_whole and recorded is not None:
        check_register(machine.realm, scratch, recorded, replay.position.index, faults.add)
    return Report(
        applied=replay.position.index,
        digest=replay.position.digest,
        epoch=replay.state.epoch,
        entries=replay.seen,
        rows=rows,
        index_proofs=proofs.checked,
        register=len(recorded.rows) if recorded else 0,
        faults=faults,
    )


class Replay:
    """The rows that a log makes, up to the entry `applied`."""

    def __init__(
        self, machine: Machine, scratch: Store, faults: Faults, applied: int | None, proofs: IndexProofs
    ) -> None:
        self._machine = machine
        self._proofs = proofs
        self.scratch = scratch
        self._faults = faults
        self._applied = applied or 0
        self._pending = Overlay(scratch)
        self.state = genesis_state(machine)
        self.position = GENESIS_POSITION
        self.seen = 0  # entries read
        self.unopened: set[bytes] = (
            set()
        )  # keys of private rows whose private part is there and does not open
        # As long as every entry up to a known one could be applied.
        self.is_whole = applied is not None and not faults.counts[LOG]

    def feed(self, index: int, payload: bytes) -> None:
        """The next entry, in order."""
        self.seen += 1
        if index > self._applied or not self.is_whole:
            return
        try:
            outcome = step.apply(
                self._pending, self._machine, self.state, self.position, payload, index=index
            )
        except Halt as halt:
            self._stop(index, f"the machine halts here: {halt}")
            return
        self._note_unopened(payload, outcome)
        self.state, self.position = outcome.state, outcome.position
        for key, value in outcome.writes.items():
            if key.startswith(Tables.PROFILES.prefix) and value is not None:
                if self._proofs.checked:
                    self._proofs.submit(parse_row(pb.PrivateRow, value).user_id)
                value = _kept(value)
            self._pending.put(key, value)
        if len(self._pending.writes) >= ROWS_A_BATCH:
            self._write()

    def _note_unopened(self, payload: bytes, outcome: Outcome) -> None:
        """Remember the private rows that this entry should have written, were its private parts intact."""
        if outcome.refused:
            return
        opened = sum(key.startswith(Tables.PROFILES.prefix) for key in outcome.writes)
        if sum(map(bool, pb_command.LogEntry.FromString(payload).private_parts)) == opened:
            return
        entry, epoch = commands.decode_log_entry(payload), u64(self.state.epoch + 1)
        for command, part in zip(entry.envelope.commands, entry.private_parts, strict=True):
            if isinstance(command, commands.SubmitUpdate) and part:
                key = Tables.PROFILES.key(command.update.entry.index, epoch)
                if key not in outcome.writes:
                    self.unopened.add(key)

    def finish(self) -> None:
        """Nothing more comes."""
        self._write()
        if self.position.index < self._applied:
            if self.is_whole and not self._faults.counts[LOG]:
                what = f"the database stands at entry {self._applied}, the log ends at {self.position.index}"
                self._faults.add(LOG, str(self.position.index), what)
            self.is_whole = False

    def _stop(self, index: int, why: str) -> None:
        self._faults.add(LOG, str(index), why)
        self.is_whole = False

    def _write(self) -> None:
        self.scratch.write(self._pending.writes)
        self._pending.discard()


def table_name(key: bytes) -> str:
    """The name of the table a key of the database belongs to."""
    try:
        return Tables.table_of(key).name
    except ValueError:
        return UNKNOWN


def _kept(value: bytes) -> bytes:
    """What scratch rows keep of a private row: one that the machine can read, with a hash as contents."""
    return canonical(pb.PrivateRow(profile=hashlib.sha256(value).digest()))


def _read(rows: Iterable[Any]) -> Iterator[Any]:
    """The rows of the copy under test; its failures apart from those of the scratch store."""
    try:
        yield from rows
    except StorageError as error:
        raise Unreadable(str(error)) from error


class Comparison:
    """Rows in key order beside the scratch rows, which say what they should be."""

    def __init__(self, replay: Replay, faults: Faults) -> None:
        self._replay = replay
        self._faults = faults

    def run(self, rows: Iterator[Row]) -> int:
        """Compare, unless the replay is not whole. Returns how many rows were read."""
        if not self._replay.is_whole:
            return sum(1 for _ in rows)
        expected = chain.from_iterable(starmap(self._replay.scratch.scan, _COMPARED))
        there: Row | None = next(expected, None)
        count = 0
        for row in rows:
            count += 1
            if row == there:  # nearly always; private rows are kept in another form
                there = next(expected, None)
                continue
            key, value = row
            if key[:1] in _LEFT_OUT:
                continue
            while there is not None and there[0] < key:
                self._faults.add_row(there[0], _MISSING)
                there = next(expected, None)
            if there is None or there[0] != key:
                self._surplus(key, value)
                continue
            private = key.startswith(Tables.PROFILES.prefix)
            if (_kept(value) if private else value) != there[1]:
                self._faults.add_row(key, _OTHER)
            there = next(expected, None)
        while there is not None:
            self._faults.add_row(there[0], _MISSING)
            there = next(expected, None)
        return count

    def _surplus(self, key: bytes, value: bytes) -> None:
        """A row that no entry writes. A private one may outlive the private part in the log for a while."""
        if not key.startswith(Tables.PROFILES.prefix):
            self._faults.add_row(key, _SURPLUS)
        elif key in self._replay.unopened:
            self._faults.add_row(key, _UNOPENED)
        elif not _is_committed(self._replay.scratch, Tables.PROFILES.suffix(key), value):
            self._faults.add_row(key, _UNCOMMITTED)


def _is_committed(rows: Reader, place: bytes, value: bytes) -> bool:
    """Whether the private row at `place` (index, epoch) is what the entry accepted there commits to."""
    index, epoch = place[:HASH_BYTES], int.from_bytes(place[HASH_BYTES:], "big")
    found = views.entry_at(rows, index, epoch) if len(place) == HASH_BYTES + U64_BYTES else None
    if found is None or found.since_epoch != epoch:
        return False
    try:
        row = parse_row(pb.PrivateRow, value)
        made = commitment.commit(row.nonce, index, found.update.entry.version, row.profile)
    except (Halt, ValueError):
        return False
    return made == found.update.entry.profile_commitment


def _spans() -> Iterator[tuple[bytes, bytes]]:
    """Where all rows lie but those that are left out."""
    start, end = EVERYTHING
    for table in sorted(LEFT_OUT, key=lambda table: table.prefix):
        yield start, table.span()[0]
        start = table.span()[1]
    yield start, end


_COMPARED: Final = tuple(_spans())
_LEFT_OUT: Final = frozenset(table.prefix for table in LEFT_OUT)
_MISSING: Final = "the row is missing: the log, replayed, writes it"
_SURPLUS: Final = "the row is not one that the log, replayed, leaves behind"
_UNOPENED: Final = "the log's private part for this row is damaged: its hash differs from the public part's"
_UNCOMMITTED: Final = "the row is not what its entry commits to"
_OTHER: Final = "the row differs from the one that the log, replayed, writes"
