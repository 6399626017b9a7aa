"""What a store promises: ordered bytes, atomic durable batches, and no answer at all rather than a wrong one.

The durability contract
* `write` is one batch: after a crash of the process or the machine all of it is there or none of it.
* When `write` has returned, the batch is on the disk (synced) and every later read sees it.
* When `write` has raised, the batch may be there or may not be: a failed sync can still have written.
  So the first StorageError ends the store: every later call raises StorageError too, and the process
  must halt. What is true is found out by opening the directory again and reading it.
* A read error is never "not found". `get` returns None only when the row is known to be absent.
* Values are returned as they were written, checked against their stored checksums.
* A row that was deleted or replaced may lie in the store's files for ever after, unless `compact` says it
  does not. What the file system and the device keep of deleted files is beyond a store.

Threads: one thread at a time writes; any thread may read, scan or hold a snapshot while it does.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol


class StorageError(Exception):
    """A read, write or open failed, or the store is closed. The process must halt."""


class StorageInUse(StorageError):
    """Another process, or another store of this process, has the directory open."""


class Reader(Protocol):
    """A view of ordered rows. Keys and values are bytes; keys are ordered as unsigned bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None when there is no such row. Raises StorageError."""
        ...

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the rows with start <= key < stop, in key order or from the last to the first.

        The rows are those of the moment of the call, whatever is written meanwhile. At most `limit` rows
        when it is given. start >= stop is an empty range. Raises StorageError, also while iterating.
        """
        ...


class Store(Reader, Protocol):
    """A Reader that can be written. See the contract at the top of this file."""

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        """Apply one atomic, synced batch: a value puts the row, None deletes it. Raises StorageError."""
        ...

    def snapshot(self) -> AbstractContextManager[Reader]:
        """Return a context whose Reader shows the rows of this moment for ever. Raises StorageError."""
        ...

    def compact(self, keys: Collection[bytes]) -> bool:
        """Purge the files of the store of every earlier value of the rows of `keys`.

        True: none is left in any file. False: a snapshot or scan that began earlier goes on; try again when
        it has ended. Blocks on the disk, and on such readers for a short while. Another thread may write
        meanwhile, but not these rows. Keys, unlike values, are not purged: name nobody in one.
        Raises StorageError.
        """
        ...

    def close(self) -> None:
        """Give the directory free. Idempotent; every other call after it raises StorageError.

        A scan or snapshot that is still open keeps the directory locked until it ends.
        """
        ...
