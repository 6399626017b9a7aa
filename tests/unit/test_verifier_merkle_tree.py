"""The prefix tree's rows, versions and refusals. Its equality with a dumb twin is in tests/property."""

import random
from collections.abc import Callable

import pytest

from kv.interface import StorageError
from kv.memory import MemoryStore
from kv.overlay import Overlay
from verifier.merkle import pages, tree
from verifier.merkle.proof import EMPTY_ROOT, leaf_hash, parent_hash, root_from_path

PREFIX = b"tree/"
LOW, HIGH = bytes(32), b"\xff" * 32
ENTRY, OTHER = b"e" * 32, b"o" * 32
Fill = Callable[[int], dict[bytes, bytes]]


@pytest.fixture
def fill(rng: random.Random) -> Fill:
    return lambda count: {rng.randbytes(32): rng.randbytes(32) for _ in range(count)}


class CountingReader:
    """Counts reads; has no scan, so a lookup that scanned would fail."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.gets = 0

    def get(self, key: bytes) -> bytes | None:
        self.gets += 1
        return self.store.get(key)


def planted(changes: dict[bytes, bytes], version: int = 1) -> MemoryStore:
    store = MemoryStore()
    store.write(tree.update(store, PREFIX, 0, version, changes).writes)
    return store


def test_the_empty_tree() -> None:
    store = MemoryStore()
    assert tree.root(store, PREFIX, 0) == EMPTY_ROOT
    assert tree.lookup(store, PREFIX, 0, LOW) == tree.TreePath((), None)
    assert [*tree.leaves(store, PREFIX, 0)] == []


def test_without_changes_the_tree_stays_as_it_is() -> None:
    store = planted({LOW: ENTRY})
    assert tree.update(store, PREFIX, 1, 2, {}) == tree.TreeUpdate(leaf_hash(LOW, ENTRY), {}, 1, 0)
    assert tree.update(MemoryStore(), PREFIX, 0, 2, {}) == tree.TreeUpdate(EMPTY_ROOT, {}, 0, 0)


def test_a_lone_leaf_becomes_a_pair() -> None:
    store = planted({LOW: ENTRY})
    update = tree.update(store, PREFIX, 1, 2, {HIGH: OTHER})
    assert update.root == parent_hash(leaf_hash(LOW, ENTRY), leaf_hash(HIGH, OTHER))
    store.write(update.writes)
    assert tree.lookup(store, PREFIX, 2, LOW) == tree.TreePath((leaf_hash(HIGH, OTHER),), (LOW, ENTRY))
    assert tree.root(store, PREFIX, 1) == leaf_hash(LOW, ENTRY)


def test_leaves_that_part_at_the_last_bit_pass_every_cut() -> None:
    last = bytes(31) + b"\x01"
    update = tree.update(MemoryStore(), PREFIX, 0, 1, {LOW: ENTRY, last: OTHER})
    store = MemoryStore()
    store.write(update.writes)
    assert len(update.writes) == len(pages.CUTS)
    path = tree.lookup(store, PREFIX, 1, last)
    assert path == tree.TreePath((b"",) * 255 + (leaf_hash(LOW, ENTRY),), (last, OTHER))
    assert root_from_path(last, path.leaf, path.neighbors) == update.root


def test_the_rows_are_the_format_that_databases_hold() -> None:
    """Written out by hand: a change here needs a new format byte and a migration."""
    first, second = b"\x00\x20" + bytes(30), b"\x00\x30" + bytes(30)  # They part at depth 12.
    update = tree.update(MemoryStore(), PREFIX, 0, 7, {first: ENTRY, second: OTHER})
    version = (7).to_bytes(8, "big")
    pair = parent_hash(leaf_hash(first, ENTRY), leaf_hash(second, OTHER))
    chain = [pair]  # Hashes of the nodes from depth 11 up to depth 1.
    while len(chain) < 11:
        right = len(chain) == 1  # Bit 10 of both, the only 1 that they share.
        chain.append(parent_hash(bytes(32), chain[-1]) if right else parent_hash(chain[-1], bytes(32)))
    top, middle, low = bytearray(128), bytearray(32), bytearray(32)
    top[0] = middle[0] = low[0] = 1
    for slot in (1, 2, 4, 8, 16, 32, 64):
        top[slot] = 2
    for slot in (1, 2, 4, 8, 16):
        middle[slot] = 2
    low[1] = low[3] = 2
    low[6] = low[7] = 1
    assert update.writes == {
        PREFIX + b"\x00" + version: bytes(top) + b"".join(chain[10:4:-1]) + version,
        PREFIX + b"\x06\x00" + version: bytes(middle) + b"".join(chain[4:0:-1]) + version,
        PREFIX + b"\x0a\x00\x00" + version: bytes(low)
        + pair
        + leaf_hash(first, ENTRY)
        + leaf_hash(second, OTHER)
        + first
        + ENTRY
        + second
        + OTHER,
    }


def test_a_replaced_leaf_leaves_older_versions_alone(fill: Fill) -> None:
    base = fill(200)
    store = planted(base)
    index = min(base)
    update = tree.update(store, PREFIX, 1, 9, {index: OTHER})
    store.write(update.writes)
    assert tree.lookup(store, PREFIX, 9, index).leaf == (index, OTHER)
    assert tree.lookup(store, PREFIX, 1, index).leaf == (index, base[index])
    assert tree.root(store, PREFIX, 9) == update.root


def test_trees_under_other_prefixes_are_other_trees() -> None:
    store = planted({LOW: ENTRY})
    store.write(tree.update(store, b"else/", 0, 1, {LOW: OTHER}).writes)
    assert tree.lookup(store, PREFIX, 1, LOW).leaf == (LOW, ENTRY)
    assert tree.lookup(store, b"else/", 1, LOW).leaf == (LOW, OTHER)


def test_pages_not_yet_written_are_seen_through_an_overlay(fill: Fill) -> None:
    base, more = fill(50), fill(50)
    overlay = Overlay(MemoryStore())
    for version, changes in ((1, base), (2, more)):
        update = tree.update(overlay, PREFIX, version - 1, version, changes)
        for key, value in update.writes.items():
            overlay.put(key, value)
    assert dict(tree.leaves(overlay, PREFIX, 2)) == base | more


def test_a_lookup_is_a_few_exact_reads(fill: Fill) -> None:
    base = fill(3000)
    reader, gets = CountingReader(planted(base)), list[int]()
    for index in sorted(base)[::30]:
        reader.gets = 0
        assert tree.lookup(reader, PREFIX, 1, index).leaf == (index, base[index])  # type: ignore[arg-type]
        gets.append(reader.gets)
    assert min(gets) >= 2
    assert sum(gets) < 4 * len(gets)
    assert max(gets) <= 16  # one leaf in eight of a page lies in one more below it: 9 happens


def test_a_page_cache_saves_reads_and_stays_bounded(fill: Fill) -> None:
    base = fill(3000)
    reader = CountingReader(planted(base))
    cache = tree.PageCache(pages_max=100)
    chosen = sorted(base)[:100]
    for index in chosen:
        tree.lookup(reader, PREFIX, 1, index, cache)  # type: ignore[arg-type]
    without_cache, reader.gets = reader.gets, 0
    for index in chosen:
        assert tree.lookup(reader, PREFIX, 1, index, cache).leaf == (index, base[index])  # type: ignore[arg-type]
    assert reader.gets < without_cache
    small = tree.PageCache(pages_max=5)
    for index in base:
        tree.lookup(reader, PREFIX, 1, index, small)  # type: ignore[arg-type]
        assert len(small) <= 10


def test_a_batch_hashes_each_touched_node_once_and_writes_little(fill: Fill) -> None:
    """The bound on bytes that the benchmark has, and its hashes: neither depends on the machine."""
    store = planted(fill(100_000))
    update = tree.update(store, PREFIX, 1, 2, fill(10_000))
    assert update.hashes / 10_000 < 6.5
    assert sum(len(key) + len(value) for key, value in update.writes.items()) / 10_000 < 800


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        pytest.param(1, 1, {LOW: ENTRY}, id="same version"),
        pytest.param(2, 1, {LOW: ENTRY}, id="older version"),
        pytest.param(-1, 1, {LOW: ENTRY}, id="negative version"),
        pytest.param(1, 2**64, {LOW: ENTRY}, id="version above u64"),
        pytest.param(1, 2, {LOW[1:]: ENTRY}, id="short index"),
        pytest.param(1, 2, {LOW: ENTRY + b"e"}, id="long entry hash"),
    ],
)
def test_impossible_updates_are_refused(old: int, new: int, changes: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError):
        tree.update(planted({HIGH: ENTRY}), PREFIX, old, new, changes)


def test_a_lookup_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError):
        tree.lookup(planted({HIGH: ENTRY}), PREFIX, 1, LOW[1:])


def everything(store: MemoryStore, indices: list[bytes]) -> list[Callable[[], object]]:
    return [
        lambda: [tree.lookup(store, PREFIX, 1, index) for index in indices],
        lambda: [*tree.leaves(store, PREFIX, 1)],
        lambda: tree.update(store, PREFIX, 1, 2, dict.fromkeys(indices, OTHER)),
    ]


def test_every_missing_page_is_corruption(fill: Fill) -> None:
    base = fill(120)
    store = planted(base)
    rows = dict(store.scan(PREFIX, PREFIX + b"\xff"))
    assert len(rows) > 10
    for key, row in rows.items():
        store.write({key: None})
        for attempt in everything(store, [*base]):
            with pytest.raises(tree.TreeCorrupt):
                attempt()
        store.write({key: row})


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda row: b"", id="empty"),
        pytest.param(lambda row: row[:-1], id="cut off"),
        pytest.param(lambda row: row + b"\x00", id="too long"),
        pytest.param(lambda row: b"\x02" + row[1:], id="other format"),
        pytest.param(lambda row: row[:1] + b"\x00" + row[2:], id="no root"),
        pytest.param(lambda row: row[:1] + b"\x07" + row[2:], id="unknown kind"),
        pytest.param(lambda row: row[:-8] + bytes(8), id="child without version"),
        pytest.param(lambda row: row[:-8] + (2).to_bytes(8, "big"), id="child newer than its parent"),
    ],
)
def test_a_damaged_root_page_is_corruption(damage: Callable[[bytes], bytes], fill: Fill) -> None:
    base = fill(500)  # So many that the last slot of the root page is a child page.
    store = planted(base)
    [(key, row)] = store.scan(PREFIX + b"\x00", PREFIX + b"\x01")
    store.write({key: damage(row)})
    for attempt in everything(store, [*base]):
        with pytest.raises(tree.TreeCorrupt):
            attempt()


def test_a_leaf_off_its_path_is_corruption() -> None:
    store = planted({LOW: ENTRY, HIGH: ENTRY})
    [(key, row)] = store.scan(PREFIX, PREFIX + b"\xff")
    store.write({key: row.replace(HIGH, b"\x01" * 32)})
    with pytest.raises(tree.TreeCorrupt):
        tree.lookup(store, PREFIX, 1, HIGH)
    with pytest.raises(tree.TreeCorrupt):
        tree.update(store, PREFIX, 1, 2, {b"\xfe" * 32: OTHER})


def test_corruption_halts_like_any_storage_error() -> None:
    assert issubclass(tree.TreeCorrupt, StorageError)
