"""What compact() promises: no file of the store holds an earlier value of the rows it was given."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from kv import leveldb
from kv.leveldb import LevelDBStore


def holders(folder: Path, value: bytes) -> list[str]:
    """Names of the files in which a half of `value` stands: LevelDB's journal may cut it in two."""
    halves = value[: len(value) // 2], value[len(value) // 2 :]
    while True:
        with suppress(FileNotFoundError):  # LevelDB moves rows to other files in the background: look again
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            return [name for name, data in files.items() if any(half in data for half in halves)]


def fill(store: LevelDBStore, rng: Random, rows: int) -> None:
    """Rows that do not compress, all over the range of keys; unsynced writes would not be a store's."""
    store.write({rng.randbytes(8): rng.randbytes(2000) for _ in range(rows)})


def test_every_earlier_value_leaves_the_files(
    tmp_path: Path, rng: Random, count: Callable[[int], int]
) -> None:
    for case in range(count(2)):
        folder = tmp_path / str(case)
        store = LevelDBStore(folder)
        values = [rng.randbytes(64) for _ in range(6)]
        for value in values:
            store.write({b"erased": value, b"replaced": value[::-1], b"neighbour": b"n"})
            fill(store, rng, rng.choice((0, 10, 12_000)))
            if rng.random() < 0.3:
                store.close()
                store = LevelDBStore(folder)
        store.write({b"erased": None, b"replaced": b"now"})
        assert all(holders(folder, value) for value in values[-1:])
        assert store.compact([b"erased", b"replaced"])
        assert [holders(folder, v) + holders(folder, v[::-1]) for v in values] == [[]] * len(values)
        assert (store.get(b"erased"), store.get(b"replaced"), store.get(b"neighbour")) == (None, b"now", b"n")
        store.close()


def test_a_snapshot_that_goes_on_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb, "READERS_END_S", 0.05)
    store, value = LevelDBStore(tmp_path), b"a value to be erased"
    store.write({b"k": value})
    with store.snapshot() as snapshot:
        store.write({b"k": None})
        assert not store.compact([b"k"])
        assert snapshot.get(b"k") == value
    assert store.compact([b"k"])
    assert holders(tmp_path, value) == []
    store.close()


def test_a_scan_that_goes_on_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb, "READERS_END_S", 0.05)
    store, value = LevelDBStore(tmp_path), b"a value to be erased"
    store.write({b"j": b"1", b"k": value})
    rows = store.scan(b"a", b"z")
    assert next(rows) == (b"j", b"1")
    store.write({b"k": None})
    assert not store.compact([b"k"])
    assert list(rows) == [(b"k", value)]
    del rows
    assert store.compact([b"k"])
    assert holders(tmp_path, value) == []
    store.close()


def test_compacting_waits_for_readers_that_end_soon(tmp_path: Path) -> None:
    store, value = LevelDBStore(tmp_path), b"a value to be erased"
    store.write({b"k": value})
    rows = [store.scan(b"a", b"z")]
    store.write({b"k": None})
    original = store._earlier_readers_end

    def meanwhile() -> bool:
        rows.clear()
        return original()

    store._earlier_readers_end = meanwhile  # type: ignore[method-assign]
    assert store.compact([b"k"])
    assert holders(tmp_path, value) == []
    store.close()
