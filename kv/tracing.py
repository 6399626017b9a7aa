"""A store that remembers every batch in order: what was written together, as a test oracle."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager

from kv.interface import Reader, Store
from kv.merge import Row


class TracingStore:
    """A Store over another one. `batches` are the batches that were written, oldest first."""

    def __init__(self, store: Store) -> None:
        self.batches: list[dict[bytes, bytes | None]] = []
        self._store = store

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        return self._store.scan(start, stop, reverse=reverse, limit=limit)

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        batch = dict(puts)
        self._store.write(batch)
        self.batches.append(batch)

    def snapshot(self) -> AbstractContextManager[Reader]:
        return self._store.snapshot()

    def compact(self, keys: Collection[bytes]) -> bool:
        return self._store.compact(keys)

    def close(self) -> None:
        self._store.close()
