"""The store on disk: LevelDB, opened and read so that it cannot lose or change a row unnoticed.

* Opened with paranoid checks: without them a damaged write-ahead log is skipped over in silence.
* Every read verifies checksums: without that a flipped bit in a table file is returned as a value.
* Every batch is synced. What LevelDB cannot see is a tail of its log that the disk never kept; the
  sign-once register, outside this directory, is there to notice that.
* The first error ends the store (see kv.interface): a batch whose sync failed may be there after reopening.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import plyvel

from kv import crash_points
from kv.interface import Reader, StorageError, StorageInUse
from kv.merge import Row

# Absent keys are asked for often (tree pages, one-use rows); ten bits a key answer 99 % of them unread.
BLOOM_FILTER_BITS = 10
# Uncompressed blocks kept in memory. The working set of a realm of 100,000 users fits.
CACHE_BYTES = 64 * 1024 * 1024
# Larger than LevelDB's 4 MiB for fewer, larger table files; small enough that replay at open stays short.
WRITE_BUFFER_BYTES = 16 * 1024 * 1024

# How long compact() waits for readers that began earlier: short ones end by then, for long ones it is asked
# again.
READERS_END_S = 5.0

_FAILURES = (plyvel.Error, OSError)


class LevelDBStore:
    """A Store in a directory of its own, which is locked while it is open.

    Raises StorageInUse when the directory is open already, StorageError when it cannot be opened, is
    damaged, or (create=False) does not hold a store.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, create: bool = True, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._path = os.fspath(path)
        self._failure: StorageError | None = None
        # Only references keep the database open: a read under way in another thread holds one, so close()
        # can drop ours at any time without pulling the memory from under it.
        self._db: Any = _open(self._path, create, cache_bytes)
        self._get: Callable[[bytes], bytes | None] = partial(self._db.get, verify_checksums=True)
        self._readers: weakref.WeakSet[Any] = weakref.WeakSet()  # one for each open scan and snapshot
        self._readers_lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._get(key)
        except _FAILURES as error:
            raise self._halt(error) from error

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        return self._scan(self._open_db(), start, stop, reverse, limit)

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        db = self._open_db()
        try:
            crash_points.reach("P10", lambda: _write(db, puts, sync=False))
            _write(db, puts, sync=True)
        except _FAILURES as error:
            raise self._halt(error) from error

    @contextmanager
    def snapshot(self) -> Iterator[Reader]:
        with self._open_db().snapshot() as source:
            snapshot = _Snapshot(self, source)
            reading = _Reading()
            self._remember(reading)
            try:
                yield snapshot
            finally:
                snapshot.end()
                del reading

    def compact(self, keys: Collection[bytes]) -> bool:
        """See kv.interface. What LevelDB needs for it:

        A compaction drops a value only if a newer one for its key takes part, and rewrites a file only if a
        younger file overlaps it. So there are three: the first brings all there was into table files; upon
        these the rows are written once more as they are, which lets the second drop what was before; the
        third removes the replaced files that somebody was still reading.
        """
        self._compact(keys)
        self.write({key: self.get(key) for key in sorted(keys)})
        if not self._earlier_readers_end():
            return False
        self._compact(keys)
        if not self._earlier_readers_end():
            return False
        self._compact(keys)
        return True

    def _compact(self, keys: Collection[bytes]) -> None:
        """Bring what is in memory to table files, and merge those that overlap a key."""
        try:
            for key in sorted(keys):
                self._open_db().compact_range(start=key, stop=key)
        except _FAILURES as error:
            raise self._halt(error) from error

    def _remember(self, reader: Any) -> None:
        with self._readers_lock:
            self._readers.add(reader)

    def _earlier_readers_end(self) -> bool:
        """Whether all who are reading now have ended after READERS_END_S at the latest."""
        ended = threading.Semaphore(0)
        with self._readers_lock:
            earlier = [weakref.ref(reader, lambda _: ended.release()) for reader in self._readers]
        deadline = time.monotonic() + READERS_END_S
        return all(ended.acquire(timeout=max(0.0, deadline - time.monotonic())) for _ in earlier)

    def close(self) -> None:
        self._refuse_from_now(self._failure or StorageError(f"the store in {self._path} is closed"))
        self._db = None

    def _scan(
        self, source: Any, start: bytes, stop: bytes, reverse: bool, limit: int | None
    ) -> Iterator[Row]:
        """Open the iterator now, so that it shows this moment, and read it as the caller asks for rows."""
        try:
            cursor = source.raw_iterator(verify_checksums=True)
        except _FAILURES as error:
            raise self._halt(error) from error
        self._remember(cursor)
        rows = _backward(cursor, start, stop) if reverse else _forward(cursor, start, stop)
        return self._guarded(islice(rows, limit), cursor)

    def _guarded(self, rows: Iterator[Row], cursor: Any) -> Iterator[Row]:
        try:
            yield from rows
        except _FAILURES as error:
            raise self._halt(error) from error
        finally:
            # In a cycle, as errors and frames make them, the garbage collector may take the database first.
            cursor.close()

    def _open_db(self) -> Any:
        db = self._db  # BEFORE the check: close() sets the failure first and drops the database second
        if self._failure is not None:
            raise self._refusal()
        return db

    def _halt(self, error: Exception) -> StorageError:
        failure = StorageError(f"the store in {self._path} failed: {_text(error)}")
        self._refuse_from_now(failure)
        return failure

    def _refuse_from_now(self, failure: StorageError) -> None:
        self._failure = failure
        self._get = self._refuse

    def _refuse(self, _key: bytes) -> bytes | None:
        raise self._refusal()

    def _refusal(self) -> StorageError:
        return StorageError(str(self._failure))


class _Reading:
    """Lives as long as a snapshot is open; plyvel's own object cannot be referred to weakly."""


class _Snapshot:
    """The rows of one moment, as long as the store lives and the context is not left."""

    __slots__ = ("_source", "_store")

    def __init__(self, store: LevelDBStore, source: Any) -> None:
        self._store = store
        self._source = source

    def get(self, key: bytes) -> bytes | None:
        source = self._open_source()
        try:
            value: bytes | None = source.get(key, verify_checksums=True)
        except _FAILURES as error:
            raise self._store._halt(error) from error
        return value

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        return self._store._scan(self._open_source(), start, stop, reverse, limit)

    def end(self) -> None:
        """Let go of the database: a name that still holds this object must not keep it open."""
        self._source = None

    def _open_source(self) -> Any:
        source = self._source
        self._store._open_db()
        if source is None:
            raise StorageError("the snapshot has ended")
        return source


# plyvel's raw iterators raise on every damaged block they meet. Its comfortable ones (1.5.1) end in silence
# when the last block is damaged, and lose the row of a backward range that holds only the one at its start.


def _forward(cursor: Any, start: bytes, stop: bytes) -> Iterator[Row]:
    cursor.seek(start)
    while cursor.valid():
        row: Row = cursor.item()
        if row[0] >= stop:
            return
        yield row
        cursor.next()


def _backward(cursor: Any, start: bytes, stop: bytes) -> Iterator[Row]:
    cursor.seek(stop)
    if cursor.valid():
        cursor.prev()
    else:
        cursor.seek_to_last()
    while cursor.valid():
        row: Row = cursor.item()
        if row[0] < start:
            return
        yield row
        cursor.prev()


def _write(db: Any, puts: Mapping[bytes, bytes | None], *, sync: bool) -> None:
    batch = db.write_batch(sync=sync)
    for key, value in puts.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    batch.write()


def _open(path: str, create: bool, cache_bytes: int) -> Any:
    try:
        if create:
            _make_directory(path)
        return plyvel.DB(
            path,
            create_if_missing=create,
            paranoid_checks=True,
            bloom_filter_bits=BLOOM_FILTER_BITS,
            lru_cache_size=cache_bytes,
            write_buffer_size=WRITE_BUFFER_BYTES,
        )
    except _FAILURES as error:
        text = _text(error)
        if text.startswith("IO error: lock "):
            raise StorageInUse(
                f"the directory {path} is in use: another process works on it, or this one opened it already"
            ) from error
        raise StorageError(f"the store in {path} cannot be opened: {text}") from error


def _make_directory(path: str, mode: int = 0o700) -> None:
    """Create the directory, private to its owner, and what is missing above it; sync the name of each.

    LevelDB syncs only what is inside.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    _make_directory(parent, 0o777)
    os.mkdir(path, mode)
    opened = os.open(parent, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _text(error: Exception) -> str:
    """LevelDB's messages arrive as bytes inside the exception."""
    first = error.args[0] if error.args else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)
