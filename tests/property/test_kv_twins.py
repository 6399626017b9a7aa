"""Stores and overlays against a dict, and the store in memory against the one on disk."""

import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import kv.memory
from kv.interface import Reader
from kv.leveldb import LevelDBStore
from kv.memory import MemoryDisk, MemoryStore
from kv.overlay import Overlay

# Few, short keys: changes must meet each other, and bounds must fall on and between rows.
KEYS = st.binary(max_size=2).map(lambda raw: bytes(byte % 4 * 85 for byte in raw))
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=2), max_size=6)
SCANS = st.tuples(KEYS, KEYS, st.booleans(), st.none() | st.integers(0, 4))

Scan = tuple[bytes, bytes, bool, int | None]
Change = dict[bytes, bytes | None]


def changed(rows: dict[bytes, bytes], changes: Change) -> dict[bytes, bytes]:
    merged = {**rows, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def scanned(rows: dict[bytes, bytes], scan: Scan) -> list[tuple[bytes, bytes]]:
    start, stop, reverse, limit = scan
    inside = [(key, value) for key, value in rows.items() if start <= key < stop]
    return sorted(inside, reverse=reverse)[:limit]


def assert_shows(reader: Reader, rows: dict[bytes, bytes], scans: Iterable[Scan]) -> None:
    for start, stop, reverse, limit in scans:
        expected = scanned(rows, (start, stop, reverse, limit))
        assert list(reader.scan(start, stop, reverse=reverse, limit=limit)) == expected
        assert reader.get(start) == rows.get(start)


@settings(deadline=None, print_blob=True)
@given(st.lists(st.tuples(CHANGES, st.lists(SCANS, max_size=3)), max_size=8))
def test_memory_and_disk_agree_with_a_dict(script: list[tuple[Change, list[Scan]]]) -> None:
    rows: dict[bytes, bytes] = {}
    disk = MemoryDisk()
    with tempfile.TemporaryDirectory() as directory:
        stores = [MemoryStore(disk), LevelDBStore(Path(directory) / "data")]
        for changes, scans in script:
            before = rows
            rows = changed(rows, changes)
            for store in stores:
                with store.snapshot() as snapshot:
                    store.write(changes)
                    assert_shows(snapshot, before, scans)
                assert_shows(store, rows, scans)
        for store in stores:
            store.close()
        reopened = [MemoryStore(disk), LevelDBStore(Path(directory) / "data", create=False)]
        for store in reopened:
            with closing(store):
                assert dict(store.scan(b"", b"\xff\xff\xff")) == rows


@settings(deadline=None, print_blob=True)
@given(st.lists(CHANGES, max_size=12), st.lists(SCANS, max_size=6), st.integers(0, 6))
def test_memory_folds_its_changes_unnoticed(
    batches: list[Change], scans: list[Scan], changes_max: int
) -> None:
    usual = kv.memory.CHANGES_MAX
    kv.memory.CHANGES_MAX = changes_max
    try:
        store = MemoryStore()
        rows: dict[bytes, bytes] = {}
        for batch in batches:
            store.write(batch)
            rows = changed(rows, batch)
            assert_shows(store, rows, scans)
    finally:
        kv.memory.CHANGES_MAX = usual


OVERLAY_STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.none() | st.binary(max_size=2)),
    st.tuples(st.just("scan"), SCANS, st.none()),
    st.tuples(st.sampled_from(["open", "merge", "drop", "commit"]), st.none(), st.none()),
)


@settings(deadline=None, print_blob=True)
@given(CHANGES, st.lists(OVERLAY_STEPS, max_size=30))
def test_nested_overlays_agree_with_nested_dicts(base: Change, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """The model is a stack: what each level shows, and what it has to write."""
    store = MemoryStore()
    store.write(base)
    overlays = [Overlay(store)]
    shown = [changed({}, base)]
    pending: list[Change] = [{}]
    for action, first, second in steps:
        if action == "put":
            overlays[-1].put(first, second)
            shown[-1] = changed(shown[-1], {first: second})
            pending[-1] = {**pending[-1], first: second}
        elif action == "scan":
            assert_shows(overlays[-1], shown[-1], [first])
        elif action == "open":
            overlays.append(Overlay(overlays[-1]))
            shown.append(dict(shown[-1]))
            pending.append({})
        elif action in ("merge", "drop") and len(overlays) > 1:
            child, child_rows, child_pending = overlays.pop(), shown.pop(), pending.pop()
            if action == "merge":
                child.merge_into_parent()
                shown[-1] = child_rows
                pending[-1] = {**pending[-1], **child_pending}
        elif action == "commit" and len(overlays) == 1:
            store.write(overlays[0].writes)
            overlays[0].discard()
            pending[0] = {}
        for overlay, rows, writes in zip(overlays, shown, pending, strict=True):
            assert overlay.writes == writes
            assert list(overlay.scan(b"", b"\xff\xff\xff")) == sorted(rows.items())
