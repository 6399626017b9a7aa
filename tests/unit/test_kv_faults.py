"""The store that fails on order, and the one that remembers."""

from contextlib import closing

import pytest

from kv.interface import StorageError
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from kv.tracing import TracingStore


@pytest.mark.parametrize(
    ("fault", "survives"), [(Fault.WRITE_ERROR_AND_APPLIED, True), (Fault.WRITE_ERROR_AND_NOT_APPLIED, False)]
)
def test_a_failed_write_may_have_been_applied(fault: Fault, survives: bool) -> None:
    disk = MemoryDisk()
    store = FaultyStore(MemoryStore(disk), fault, after=1)
    store.write({b"a": b"1"})
    with pytest.raises(StorageError):
        store.write({b"b": b"1"})
    assert store.struck
    for call in (
        lambda: store.get(b"a"),
        lambda: store.write({}),
        lambda: store.scan(b"", b"z"),
        lambda: store.snapshot().__enter__(),
    ):
        with pytest.raises(StorageError):
            call()
    store.close()
    with closing(MemoryStore(disk)) as reopened:
        assert reopened.get(b"a") == b"1"
        assert (reopened.get(b"b") == b"1") is survives


def test_a_read_error_strikes_get_scan_and_snapshot() -> None:
    def faulty(after: int) -> FaultyStore:
        store = FaultyStore(MemoryStore(), Fault.READ_ERROR, after=after)
        store.write({b"a": b"1"})
        return store

    store = faulty(1)
    assert store.get(b"a") == b"1"
    with pytest.raises(StorageError):
        store.get(b"absent")
    store = faulty(0)
    rows = store.scan(b"", b"z")
    with pytest.raises(StorageError):
        next(rows)
    store = faulty(1)
    with store.snapshot() as snapshot:
        assert list(snapshot.scan(b"", b"z")) == [(b"a", b"1")]
        with pytest.raises(StorageError):
            snapshot.get(b"a")
    with pytest.raises(StorageError):
        store.write({})


def test_batches_are_remembered_in_order_and_only_when_written() -> None:
    store = TracingStore(FaultyStore(MemoryStore(), Fault.WRITE_ERROR_AND_NOT_APPLIED, after=2))
    batch: dict[bytes, bytes | None] = {b"a": b"1"}
    store.write(batch)
    batch[b"a"] = b"changed later"
    store.write({b"b": None})
    with pytest.raises(StorageError):
        store.write({b"c": b"1"})
    assert store.batches == [{b"a": b"1"}, {b"b": None}]
