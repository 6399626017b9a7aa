"""A replica's own copy of the log: rows as those of a local log, and how far etcd has been read.

Entries and the position they bring are one synced batch, so that no crash can number an entry twice. While an
entry is in etcd, a row tells under which key: whoever erases its private part must erase it there, too.

The cursor is where reading goes on. It is behind the newest entry only in a copy that came without a
position, from a local log or a backup: then what is read is compared with what is there.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from e2eks.etcd import log_pb2
from google.protobuf.message import DecodeError

from kv.interface import StorageError, Store
from kv.keys import from_u64, u64
from kv.tables import Kind, Table
from replication.chain import FIRST_LINK, next_link
from replication.etcd.keyspace import Report
from replication.rows import LogTables, PublicPart, check_links, entry_key, entry_rows, open_tail
from replication.types import LogEntry, PublicPartChanged

FORGOTTEN_AT_ONCE = 1000  # rows of one batch


class CopyTables(LogTables):
    """The rows of a copy."""

    POSITION = Table(b"p", Kind.LOCAL)  # one row: Position
    STORED = Table(b"k", Kind.LOCAL)  # u64 index of the first entry -> Stored


@dataclass(frozen=True, slots=True)
class Arrival:
    """A key of etcd with the payloads under it, first seen at the revision that made it."""

    key: bytes
    revision: int
    payloads: tuple[bytes, ...]


class LogCopy:
    """Entries 1 to `last`. One thread extends it; any may read, rewrite and forget. Blocks on the disk.

    Constructing raises StorageError when the store holds something else or has lost its end.
    """

    def __init__(self, store: Store, public_part: PublicPart) -> None:
        self.store = store
        self._public_part = public_part
        self._writing = threading.Lock()  # a store has one writer
        self.last, _ = open_tail(store, public_part)
        row = store.get(CopyTables.POSITION.key())
        position = log_pb2.Position() if row is None else _decoded(row)
        if position.index > self.last:
            raise StorageError(
                f"entry {position.index} was stored but the log ends at {self.last}: a lost end"
            )
        self.cluster_id = position.cluster_id  # 0: it has never met etcd
        # Where reading goes on: everything up to it is stored here, durably.
        self.cursor = Report(position.index, self.link_at(position.index), position.revision)

    def begin(self, index: int, revision: int, cluster_id: int) -> None:
        """Meet etcd for the first time: entries after `index` were created after `revision`."""
        self.cluster_id = cluster_id
        self._go_to(Report(index, self.link_at(index), revision), {})

    def skip(self, revision: int) -> None:
        """Go on after `revision`: no entry was created up to it that is not stored."""
        if revision > self.cursor.revision:
            self._go_to(replace(self.cursor, revision=revision), {})

    def extend(self, arrivals: Sequence[Arrival]) -> tuple[LogEntry, ...]:
        """Store what was created after the cursor, in this order; return the entries that are new.

        Raises StorageError when what is here already is something else.
        """
        index, link = self.cursor.index, self.cursor.link
        rows: dict[bytes, bytes | None] = {}
        entries: list[LogEntry] = []
        for arrival in arrivals:
            stored = log_pb2.Stored(key=arrival.key, count=len(arrival.payloads))
            rows[CopyTables.STORED.key(u64(index + 1))] = stored.SerializeToString(deterministic=True)
            for payload in arrival.payloads:
                index += 1
                link = next_link(link, index, self._public_part(payload))
                if index > self.last:
                    rows[entry_key(index)] = link + payload
                    entries.append(LogEntry(index, payload))
                elif link != self.link_at(index):
                    raise StorageError(f"entry {index} here is not that of etcd")
        self._go_to(Report(index, link, arrivals[-1].revision), rows)
        self.last = max(self.last, index)
        return tuple(entries)

    def link_at(self, index: int) -> bytes:
        """Return the link of an entry that is here. Raises StorageError."""
        if index == 0:
            return FIRST_LINK
        ((_, link, _),) = entry_rows(self.store, index, index + 1)
        return link

    def key_of(self, index: int) -> tuple[bytes, int] | None:
        """Return the key in etcd that holds an entry, and at which place; None when it was forgotten."""
        start, _ = CopyTables.STORED.span()
        rows = self.store.scan(start, CopyTables.STORED.key(u64(index + 1)), reverse=True, limit=1)
        for key, row in rows:
            stored = log_pb2.Stored.FromString(row)
            place = index - from_u64(CopyTables.STORED.suffix(key))
            return (stored.key, place) if place < stored.count else None
        return None

    def forget_keys(self, index: int) -> None:
        """Forget the keys of entries up to `index`: they are no longer in etcd."""
        start, stop = CopyTables.STORED.key(), CopyTables.STORED.key(u64(index + 1))
        while True:
            rows = dict.fromkeys(key for key, _ in self.store.scan(start, stop, limit=FORGOTTEN_AT_ONCE))
            if not rows:
                return
            self._write(rows)

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        """As ReplicatedLog.read."""
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        entries: list[LogEntry] = []
        size = 0
        for index, _, payload in entry_rows(self.store, lo, min(hi, self.last + 1)):
            size += len(payload)
            if entries and size > max_bytes:
                break
            entries.append(LogEntry(index, payload))
        return tuple(entries)

    def verify_chain(self, lo: int, hi: int) -> None:
        """As ReplicatedLog.verify_chain."""
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        check_links(self.store, self._public_part, lo, min(hi, self.last + 1))

    def rewrite(self, index: int, payload: bytes) -> None:
        """Replace the private part of an entry. Raises PublicPartChanged, StorageError."""
        ((_, link, stored),) = entry_rows(self.store, index, index + 1)
        if self._public_part(stored) != self._public_part(payload):
            raise PublicPartChanged(f"the public part of entry {index} would change")
        self._write({entry_key(index): link + payload})

    def compact(self, indices: Collection[int]) -> bool:
        """As ReplicatedLog.compact, for these files."""
        return self.store.compact([entry_key(index) for index in indices])

    def _go_to(self, cursor: Report, rows: dict[bytes, bytes | None]) -> None:
        position = log_pb2.Position(index=cursor.index, revision=cursor.revision, cluster_id=self.cluster_id)
        self._write({**rows, CopyTables.POSITION.key(): position.SerializeToString(deterministic=True)})
        self.cursor = cursor

    def _write(self, rows: dict[bytes, bytes | None]) -> None:
        with self._writing:
            self.store.write(rows)


def _decoded(row: bytes) -> log_pb2.Position:
    try:
        return log_pb2.Position.FromString(row)
    except DecodeError:
        raise StorageError("the position of the log in etcd is damaged") from None
