"""What every store must pass, and a store that fails on order.

A check takes a function that opens the store under test; calling that function again after close() opens
the same rows again. `for check in CHECKS: check(open_store)`, each with a fresh place to open.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from kv.interface import Reader, StorageError, StorageInUse, Store
from kv.merge import Row

OpenStore = Callable[[], Store]

# Keys whose order differs when bytes are taken as signed, or as text, or by length.
AWKWARD_KEYS = (
    b"", b"\x00", b"\x00\x00", b"\x00\x01", b"\x01", b"A", b"a", b"a\xff", b"\x7f", b"\x80", b"\xfe\xff",
)  # fmt: skip


class Fault(Enum):
    """What goes wrong. Write faults come in a pair, because a caller cannot tell the two apart."""

    WRITE_ERROR_AND_APPLIED = "write raises, the batch is there after reopening"
    WRITE_ERROR_AND_NOT_APPLIED = "write raises, the batch is not there"
    READ_ERROR = "get or the iteration of a scan raises"


class FaultyStore:
    """A Store over another one that fails once and then, as every store does, refuses all calls.

    The fault strikes the write (or read) after `after` that went well. `struck` tells whether it has.
    """

    def __init__(self, store: Store, fault: Fault, *, after: int = 0) -> None:
        self.struck = False
        self._store = store
        self._fault = fault
        self._remaining = after

    def get(self, key: bytes) -> bytes | None:
        self._before_read()
        return self._store.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        self._refuse_after_fault()
        return self._scan(self._store.scan(start, stop, reverse=reverse, limit=limit))

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        self._refuse_after_fault()
        strikes = self._fault is not Fault.READ_ERROR and self._strikes()
        if not strikes or self._fault is Fault.WRITE_ERROR_AND_APPLIED:
            self._store.write(puts)
        if strikes:
            raise StorageError(self._fault.value)

    @contextmanager
    def snapshot(self) -> Iterator[Reader]:
        self._refuse_after_fault()
        with self._store.snapshot() as snapshot:
            yield _FaultySnapshot(self, snapshot)

    def compact(self, keys: Collection[bytes]) -> bool:
        self._refuse_after_fault()
        return self._store.compact(keys)

    def close(self) -> None:
        self._store.close()

    def _scan(self, rows: Iterator[Row]) -> Iterator[Row]:
        self._before_read()
        yield from rows

    def _before_read(self) -> None:
        self._refuse_after_fault()
        if self._fault is Fault.READ_ERROR and self._strikes():
            raise StorageError(self._fault.value)

    def _refuse_after_fault(self) -> None:
        if self.struck:
            raise StorageError("the store has failed")

    def _strikes(self) -> bool:
        self.struck = self._remaining == 0
        self._remaining -= 1
        return self.struck


class _FaultySnapshot:
    def __init__(self, faulty: FaultyStore, snapshot: Reader) -> None:
        self._faulty = faulty
        self._snapshot = snapshot

    def get(self, key: bytes) -> bytes | None:
        self._faulty._before_read()
        return self._snapshot.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Row]:
        return self._faulty._scan(self._snapshot.scan(start, stop, reverse=reverse, limit=limit))


def check_absent_is_none_and_empty_is_not(open_store: OpenStore) -> None:
    store = open_store()
    assert store.get(b"k") is None
    store.write({b"k": b""})
    assert store.get(b"k") == b""
    assert list(store.scan(b"", b"\xff")) == [(b"k", b"")]


def check_scan_of_an_empty_store(open_store: OpenStore) -> None:
    store = open_store()
    for reverse in (False, True):
        assert list(store.scan(b"", b"\xff", reverse=reverse)) == []
        assert list(store.scan(b"a", b"b", reverse=reverse, limit=3)) == []


def check_batch_puts_overwrites_and_deletes(open_store: OpenStore) -> None:
    store = open_store()
    store.write({b"a": b"1", b"b": b"2", b"c": b"3"})
    store.write({b"a": b"4", b"b": None, b"never": None})
    assert list(store.scan(b"", b"\xff")) == [(b"a", b"4"), (b"c", b"3")]
    assert store.get(b"b") is None
    store.write({})
    store.write({b"b": b"5"})
    assert [key for key, _ in store.scan(b"", b"\xff")] == [b"a", b"b", b"c"]


def check_batch_is_taken_at_the_call(open_store: OpenStore) -> None:
    store = open_store()
    batch: dict[bytes, bytes | None] = {b"a": b"1"}
    store.write(batch)
    batch[b"a"] = b"2"
    batch[b"b"] = b"3"
    assert list(store.scan(b"", b"\xff")) == [(b"a", b"1")]


def check_keys_are_ordered_as_unsigned_bytes(open_store: OpenStore) -> None:
    store = open_store()
    store.write({key: key for key in reversed(AWKWARD_KEYS)})
    expected = [(key, key) for key in sorted(AWKWARD_KEYS)]
    assert list(store.scan(b"", b"\xff")) == expected
    assert list(store.scan(b"", b"\xff", reverse=True)) == expected[::-1]


def check_scan_bounds_direction_and_limit(open_store: OpenStore) -> None:
    store = open_store()
    store.write({bytes((letter,)): b"v" for letter in b"bdfh"})

    def keys(start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None) -> bytes:
        return b"".join(key for key, _ in store.scan(start, stop, reverse=reverse, limit=limit))

    assert keys(b"b", b"h") == b"bdf"
    assert keys(b"a", b"i") == b"bdfh"
    assert keys(b"b", b"h", reverse=True) == b"fdb"
    assert keys(b"c", b"g", reverse=True) == b"fd"
    assert keys(b"a", b"z", limit=2) == b"bd"
    assert keys(b"a", b"z", reverse=True, limit=2) == b"hf"
    assert keys(b"a", b"z", limit=9) == b"bdfh"
    for reverse in (False, True):
        assert keys(b"a", b"z", reverse=reverse, limit=0) == b""
        assert keys(b"d", b"d", reverse=reverse) == b""
        assert keys(b"h", b"b", reverse=reverse) == b""
        assert keys(b"e", b"f", reverse=reverse) == b""
        assert keys(b"x", b"z", reverse=reverse) == b""


def check_scan_of_a_range_with_one_row_at_its_start(open_store: OpenStore) -> None:
    store = open_store()
    store.write(dict.fromkeys((b"", b"a", b"b", b"c"), b"v"))
    for row, stop in ((b"b", b"b\x00"), (b"b", b"c"), (b"a", b"b"), (b"", b"a"), (b"c", b"\xff")):
        for reverse in (False, True):
            assert list(store.scan(row, stop, reverse=reverse)) == [(row, b"v")]
            assert list(store.scan(row, stop, reverse=reverse, limit=1)) == [(row, b"v")]


def check_scan_shows_the_moment_of_the_call(open_store: OpenStore) -> None:
    store = open_store()
    before: dict[bytes, bytes | None] = {b"a": b"1", b"b": b"1", b"c": b"1"}
    store.write(before)
    forward = store.scan(b"", b"\xff")
    backward = store.scan(b"", b"\xff", reverse=True)
    assert next(forward) == (b"a", b"1")
    store.write({b"a": None, b"b": b"2", b"bb": b"2", b"c": None, b"d": b"2"})
    assert list(forward) == [(b"b", b"1"), (b"c", b"1")]
    assert list(backward) == [(b"c", b"1"), (b"b", b"1"), (b"a", b"1")]


def check_snapshot_never_changes(open_store: OpenStore) -> None:
    store = open_store()
    store.write({b"a": b"1", b"b": b"1"})
    with store.snapshot() as first:
        store.write({b"a": b"2", b"b": None})
        with store.snapshot() as second:
            store.write({b"a": b"3", b"c": b"3"})
            assert (first.get(b"a"), second.get(b"a"), store.get(b"a")) == (b"1", b"2", b"3")
            assert list(first.scan(b"", b"\xff")) == [(b"a", b"1"), (b"b", b"1")]
            assert list(second.scan(b"", b"\xff", reverse=True, limit=5)) == [(b"a", b"2")]
        assert first.get(b"b") == b"1"
        assert first.get(b"c") is None


def check_batches_survive_reopening(open_store: OpenStore) -> None:
    store = open_store()
    store.write({b"a": b"1", b"b": b"1"})
    store.write({b"a": None, b"c": b"2"})
    store.close()
    store = open_store()
    assert list(store.scan(b"", b"\xff")) == [(b"b", b"1"), (b"c", b"2")]
    store.write({b"d": b"3"})
    store.close()
    assert open_store().get(b"d") == b"3"


def check_many_batches_survive_reopening(open_store: OpenStore) -> None:
    expected: dict[bytes, bytes] = {}
    for generation in range(4):
        store = open_store()
        assert dict(store.scan(b"", b"\xff")) == expected
        for number in range(400):
            key = (number * 7919 % 1000).to_bytes(2, "big")
            value = f"{generation}-{number}".encode()
            deleted = (number * 31 % 10_007).to_bytes(2, "big")
            store.write({key: value, deleted: None} if deleted != key else {key: value})
            expected[key] = value
            if deleted != key:
                expected.pop(deleted, None)
        store.close()


def check_big_values(open_store: OpenStore) -> None:
    store = open_store()
    values = {b"1": bytes(range(256)) * 4096, b"5": b"\x00" * (5 * 1024 * 1024), b"0": b""}
    store.write(dict(values))
    assert dict(store.scan(b"", b"\xff")) == values
    store.close()
    assert dict(open_store().scan(b"", b"\xff")) == values


def check_compacting_changes_no_row(open_store: OpenStore) -> None:
    store = open_store()
    store.write({b"a": b"1", b"b": b"1", b"c": b"1"})
    store.write({b"a": b"2", b"b": None})
    assert store.compact([])
    assert store.compact([b"a", b"b", b"never"])
    expected = [(b"a", b"2"), (b"c", b"1")]
    assert list(store.scan(b"", b"\xff")) == expected
    store.close()
    assert list(open_store().scan(b"", b"\xff")) == expected


def check_closed_store_refuses(open_store: OpenStore) -> None:
    store = open_store()
    store.write({b"a": b"1"})
    store.close()
    store.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.get(b"a"),
        lambda: store.write({b"a": b"2"}),
        lambda: list(store.scan(b"", b"\xff")),
        lambda: store.snapshot().__enter__(),
        lambda: store.compact([b"a"]),
    )
    for call in calls:
        assert _raises(call, StorageError)


def check_second_open_is_refused(open_store: OpenStore) -> None:
    store = open_store()
    assert _raises(open_store, StorageInUse)
    store.write({b"a": b"1"})
    assert store.get(b"a") == b"1"
    store.close()
    assert open_store().get(b"a") == b"1"


def check_other_threads_see_whole_batches(open_store: OpenStore) -> None:
    store = open_store()
    store.write({b"a": b"0", b"b": b"0"})
    torn: list[object] = []
    finished = threading.Event()

    def read() -> None:
        while not finished.is_set():
            try:
                with store.snapshot() as snapshot:
                    pair = snapshot.get(b"a"), snapshot.get(b"b")
                scanned = [value for _, value in store.scan(b"a", b"c")]
            except StorageError as error:
                torn.append(error)
                return
            if pair[0] != pair[1] or len(set(scanned)) != 1:
                torn.append((pair, scanned))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        value = str(number).encode()
        store.write({b"a": value, b"b": value})
    finished.set()
    reader.join()
    assert torn == []


def _raises(call: Callable[[], object], expected: type[Exception]) -> bool:
    try:
        call()
    except expected:
        return True
    return False


CHECKS: tuple[Callable[[OpenStore], None], ...] = (
    check_absent_is_none_and_empty_is_not,
    check_scan_of_an_empty_store,
    check_batch_puts_overwrites_and_deletes,
    check_batch_is_taken_at_the_call,
    check_keys_are_ordered_as_unsigned_bytes,
    check_scan_bounds_direction_and_limit,
    check_scan_of_a_range_with_one_row_at_its_start,
    check_scan_shows_the_moment_of_the_call,
    check_snapshot_never_changes,
    check_batches_survive_reopening,
    check_many_batches_survive_reopening,
    check_big_values,
    check_compacting_changes_no_row,
    check_closed_store_refuses,
    check_second_open_is_refused,
    check_other_threads_see_whole_batches,
)
