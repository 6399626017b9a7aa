"""A store in memory, for tests and simulations: the same promises as a disk, without the disk.

Reads need no lock: every write makes a new immutable view and swaps it in with one assignment. So that a
write stays cheap, a view is a large base, shared by many views, and a small set of newer changes.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

from kv.interface import Reader, StorageError, StorageInUse
from kv.merge import Row, overlaid

# Copying this many changes costs some microseconds; folding them into the base is paid once per so many.
CHANGES_MAX = 512


class _View:
    """Rows at one moment. Nothing in it changes after construction."""

    __slots__ = ("changes", "keys", "rows")

    def __init__(
        self, keys: list[bytes], rows: dict[bytes, bytes], changes: dict[bytes, bytes | None]
    ) -> None:
        self.keys = keys
        self.rows = rows
        self.changes = changes

    def get(self, key: bytes) -> bytes | None:
        if key in self.changes:
            return self.changes[key]
        return self.rows.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        changes = [change for change in self.changes.items() if start <= change[0] < stop]
        changes.sort(reverse=reverse)
        merged = overlaid(self._base(start, stop, reverse), iter(changes), reverse=reverse)
        return islice(merged, limit)

    def _base(self, start: bytes, stop: bytes, reverse: bool) -> Iterator[Row]:
        span = range(bisect_left(self.keys, start), bisect_left(self.keys, stop))
        for position in reversed(span) if reverse else span:
            key = self.keys[position]
            yield key, self.rows[key]

    def changed(self, puts: Mapping[bytes, bytes | None]) -> "_View":
        changes = {**self.changes, **puts}
        if len(changes) <= CHANGES_MAX:
            return _View(self.keys, self.rows, changes)
        rows = dict(self.rows)
        for key, value in changes.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        return _View(sorted(rows), rows, {})


class MemoryDisk:
    """What outlives a MemoryStore: give it to the next one, as a directory is opened again."""

    def __init__(self) -> None:
        self.view = _View([], {}, {})
        self.in_use = False


class MemoryStore:
    """A Store whose rows live in a MemoryDisk. Raises StorageInUse when another store has the disk open."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        opened = disk or MemoryDisk()
        if opened.in_use:
            raise StorageInUse("another store has this memory disk open")
        opened.in_use = True
        self._disk: MemoryDisk | None = opened

    def get(self, key: bytes) -> bytes | None:
        return self._open_disk().view.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        return self._open_disk().view.scan(start, stop, reverse=reverse, limit=limit)

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        disk = self._open_disk()
        disk.view = disk.view.changed(puts)

    def snapshot(self) -> AbstractContextManager[Reader]:
        return nullcontext(self._open_disk().view)

    def compact(self, keys: Collection[bytes]) -> bool:  # noqa: ARG002  # memory has no files
        self._open_disk()
        return True

    def close(self) -> None:
        if self._disk is not None:
            self._disk.in_use = False
            self._disk = None

    def _open_disk(self) -> MemoryDisk:
        if self._disk is None:
            raise StorageError("the store is closed")
        return self._disk
