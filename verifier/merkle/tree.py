"""The prefix tree over indices: changed once per epoch, every past version readable. Rows are in `pages`.

The shape is a function of the set of indices, and the hash of a leaf does not depend on its depth: one batch
gives the same pages in whatever order its changes arrive. A version is the epoch that wrote it; 0 is the
empty tree. Leaves are added and replaced, never removed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from kv.interface import Reader
from verifier.limits import HASH_BYTES, MAX_U64
from verifier.merkle.pages import (
    CUTS,
    EMPTY,
    LEAF,
    NODE,
    Cut,
    Page,
    TreeCorrupt,
    View,
    page_key,
    page_path,
    slot_hash,
    slot_leaf,
    slot_version,
    view_page,
)
from verifier.merkle.proof import EMPTY_ROOT, LEAF_TAG, PARENT_TAG, leaf_hash, parent_hash

__all__ = ["PageCache", "TreeCorrupt", "TreePath", "TreeUpdate", "leaves", "lookup", "root", "update"]

CACHED_DEPTH_MAX: Final = 10  # 1089 pages of a full tree: each is on the path of many indices.

_TOO_DEEP: Final = "prefix tree: a node below the last bit of an index"
_OFF_PATH: Final = "prefix tree: a leaf lies off its path"
_CHILD_VERSION: Final = "prefix tree: a child page is newer than its parent, or has no version"


@dataclass(frozen=True, slots=True)
class TreeUpdate:
    """What a batch of changes makes of a tree: `writes` are to be put before `root_version` is used."""

    root: bytes
    writes: dict[bytes, bytes]
    root_version: int
    hashes: int  # nodes of the new tree that the changes touched: each is hashed once


@dataclass(frozen=True, slots=True)
class TreePath:
    """The path of an index: `neighbors` from depth 1 down, b"" for an empty sibling, and the leaf at its end.

    `leaf` is (index, entry hash), of the index looked up or of another one that shares the path, or None.
    """

    neighbors: tuple[bytes, ...]
    leaf: tuple[bytes, bytes] | None


class PageCache:
    """Pages near the root, at most 2 * `pages_max`. Pages never change, so nothing is ever invalidated.

    For committed trees only. Threads may share one: a lost race costs a read.
    """

    __slots__ = ("_old", "_young", "pages_max")

    def __init__(self, pages_max: int = 4096) -> None:
        self.pages_max: Final = pages_max
        self._young: dict[bytes, View] = {}
        self._old: dict[bytes, View] = {}

    def get(self, key: bytes) -> View | None:
        """Return the page, if it is here."""
        page = self._young.get(key)
        if page is None:
            page = self._old.get(key)
            if page is not None:
                self.put(key, page)
        return page

    def put(self, key: bytes, page: View) -> None:
        """Keep the page for a while: pages that nobody asked for during `pages_max` others are forgotten."""
        if len(self._young) >= self.pages_max:
            self._old, self._young = self._young, {}
        self._young[key] = page

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


def update(
    reader: Reader, prefix: bytes, root_version: int, new_version: int, changes: Mapping[bytes, bytes]
) -> TreeUpdate:
    """Return the tree `root_version` with `changes` (index to entry hash, 32 bytes each) as `new_version`.

    Without changes it is the same tree and version, with no writes. Rows lie under `prefix`.
    Raises `ValueError` for other lengths or a version that is not newer, `TreeCorrupt` or another
    `StorageError` from reading.
    """
    if not changes:
        return TreeUpdate(root(reader, prefix, root_version), {}, root_version, 0)
    if not 0 <= root_version < new_version <= MAX_U64:
        raise ValueError("a new version of a tree follows the old one")
    items = []
    for index, entry_hash in sorted(changes.items()):
        if len(index) != HASH_BYTES or len(entry_hash) != HASH_BYTES:
            raise ValueError("an index and an entry hash have 32 bytes each")
        body = index + entry_hash
        items.append((int.from_bytes(index, "big"), body, sha256(LEAF_TAG + body).digest()))
    batch = _Batch(reader, prefix, new_version)
    top = batch.rewrite(0, root_version, items)
    return TreeUpdate(top, batch.writes, new_version, len(items) + batch.parents)


def lookup(
    reader: Reader, prefix: bytes, root_version: int, index: bytes, cache: PageCache | None = None
) -> TreePath:
    """Return the path of `index` (32 bytes) in the tree `root_version`; 0 is the empty tree.

    Raises `TreeCorrupt` or another `StorageError` when a page cannot be read.
    """
    if len(index) != HASH_BYTES:
        raise ValueError("an index has 32 bytes")
    number = int.from_bytes(index, "big")
    neighbors: list[bytes] = []
    version = root_version
    if not version:
        return TreePath((), None)
    for cut in CUTS:
        view = _read(reader, prefix, cut, number, version, cache)
        row = view[0]
        bottom = cut.bottom | number >> cut.shift & (cut.bottom - 1)
        slot = 1
        for below in cut.levels:
            if row[slot] != NODE:
                break
            slot = bottom >> below
            neighbors.append(slot_hash(row, cut, slot ^ 1))
        kind = row[slot]
        if kind == EMPTY:
            return TreePath(tuple(neighbors), None)
        if kind == LEAF:
            leaf = slot_leaf(view, slot)
            _check_on_path(leaf[0], number, len(neighbors))
            return TreePath(tuple(neighbors), leaf)
        version = _child_version(view, cut, slot, version)
    raise TreeCorrupt(_TOO_DEEP)


def root(reader: Reader, prefix: bytes, root_version: int) -> bytes:
    """Return the root (32 bytes) of the tree `root_version`. Raises as `lookup`."""
    if not root_version:
        return EMPTY_ROOT
    cut = CUTS[0]
    view = _read(reader, prefix, cut, 0, root_version, None)
    if view[0][1] == LEAF:
        return leaf_hash(*slot_leaf(view, 1))
    left, right = (slot_hash(view[0], cut, slot) or EMPTY_ROOT for slot in (2, 3))
    return parent_hash(left, right)


def leaves(reader: Reader, prefix: bytes, root_version: int) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over all leaves (index, entry hash) of the tree `root_version` by index. Raises as `lookup`."""
    waiting: list[_ChildPage | tuple[bytes, bytes]] = [_ChildPage(0, 0, root_version)] if root_version else []
    while waiting:
        item = waiting.pop()
        if isinstance(item, _ChildPage):
            waiting.extend(reversed([*_contents(reader, prefix, item)]))
        else:
            yield item


class _ChildPage(NamedTuple):
    number: int  # of its cut
    path: int  # an index below it
    version: int


# A leaf on its way to its place: index as a number, index ‖ entry hash, hash of the leaf. A plain tuple,
# because a batch makes two for each change.
_Item = tuple[int, bytes, bytes]


class _Batch:
    """One batch of changes, page by page from the root; each page is read, changed and hashed once."""

    __slots__ = ("_prefix", "_reader", "_version", "parents", "writes")

    def __init__(self, reader: Reader, prefix: bytes, version: int) -> None:
        self._reader = reader
        self._prefix = prefix
        self._version = version
        self.writes: dict[bytes, bytes] = {}
        self.parents = 0

    def rewrite(self, number: int, old_version: int, items: list[_Item]) -> bytes:
        """Put `items`, all on one path to cut `number`, into the page there; return the hash of its root.

        `old_version` 0 makes a new page. Recursion is bounded by the number of cuts.
        """
        if number == len(CUTS):
            raise TreeCorrupt(_TOO_DEEP)
        cut = CUTS[number]
        path = page_path(self._prefix, cut, items[0][0])
        view = view_page(self._reader.get(page_key(path, old_version)), cut) if old_version else None
        page = Page(cut, view)
        if page.kinds[1] == LEAF:  # The only leaf of the tree: the one hash that no row holds.
            page.hashes[1] = sha256(LEAF_TAG + page.leaf(1)).digest()
        below: dict[int, list[_Item]] = {}
        touched = _place_all(page, items, below)
        for slot, group in below.items():
            child = page.versions.get(slot)
            if child is not None and not 0 < child <= old_version:
                raise TreeCorrupt(_CHILD_VERSION)
            page.hashes[slot] = self.rewrite(number + 1, child or 0, group)
            page.versions[slot] = self._version
        self._hash_parents(page, touched)
        self.writes[page_key(path, self._version)] = page.encode()
        return page.hashes[1]

    def _hash_parents(self, page: Page, touched: list[int]) -> None:
        stale: list[int] = []
        for slot in touched:
            parent = slot >> 1
            while parent and parent not in stale:
                stale.append(parent)
                parent >>= 1
        if len(touched) > 1:
            stale.sort(reverse=True)  # Children have larger slots than their parents.
        hashes = page.hashes
        for slot in stale:
            hashes[slot] = sha256(PARENT_TAG + hashes[2 * slot] + hashes[2 * slot + 1]).digest()
        self.parents += len(stale)


def _place_all(page: Page, items: list[_Item], below: dict[int, list[_Item]]) -> list[int]:
    """Put leaves into a page, or into `below` for the child pages of their bottom slots.

    Returns the lowest slots touched: their parents are to be hashed again.
    """
    kinds, first, shift = page.kinds, page.cut.bottom, page.cut.shift
    touched = []
    for item in items:
        bottom = first | item[0] >> shift & (first - 1)
        if kinds[bottom] != NODE:
            touched.append(_place(page, bottom, item, below))
        elif bottom in below:
            below[bottom].append(item)
        else:
            below[bottom] = [item]
            touched.append(bottom)
    return touched


def _place(page: Page, bottom: int, item: _Item, below: dict[int, list[_Item]]) -> int:
    """Put a leaf where its path to a bottom slot without child page ends; return the lowest slot touched."""
    kinds, slot = page.kinds, bottom
    while not kinds[slot] and slot > 1 and kinds[slot >> 1] != NODE:
        slot >>= 1
    if kinds[slot] == LEAF and page.leaf(slot)[:HASH_BYTES] != item[1][:HASH_BYTES]:
        return _split(page, slot, bottom, item, below)
    page.put_leaf(slot, item[1], item[2])
    return slot


def _split(page: Page, slot: int, bottom: int, item: _Item, below: dict[int, list[_Item]]) -> int:
    """Replace the leaf in `slot` by a subtree of it and `item`; both go down until their paths part."""
    cut, kinds = page.cut, page.kinds
    body = page.take_leaf(slot)
    old = int.from_bytes(body[:HASH_BYTES], "big"), body, page.hashes[slot]
    old_bottom = cut.bottom | old[0] >> cut.shift & (cut.bottom - 1)
    if old_bottom >> bottom.bit_length() - slot.bit_length() != slot or (old[0] ^ item[0]) >> cut.path_shift:
        raise TreeCorrupt(_OFF_PATH)
    parted = (bottom ^ old_bottom).bit_length()  # Levels above the bottom at which the paths have one node.
    if parted:
        page.put_leaf(bottom >> parted - 1, *item[1:])
        page.put_leaf(old_bottom >> parted - 1, *old[1:])
    else:
        below[bottom] = [old, item]
    node = bottom >> parted
    while node >= slot:
        kinds[node] = NODE
        node >>= 1
    return bottom >> max(parted - 1, 0)


def _contents(reader: Reader, prefix: bytes, page: _ChildPage) -> Iterator[tuple[bytes, bytes] | _ChildPage]:
    """Leaves and child pages of one page, by index."""
    if page.number == len(CUTS):
        raise TreeCorrupt(_TOO_DEEP)
    cut = CUTS[page.number]
    view = _read(reader, prefix, cut, page.path, page.version, None)
    row = view[0]
    waiting = [1]
    while waiting:
        slot = waiting.pop()
        if row[slot] == LEAF:
            leaf = slot_leaf(view, slot)
            _check_on_path(leaf[0], page.path, cut.depth)
            yield leaf
        elif row[slot] == NODE and slot < cut.bottom:
            waiting += (2 * slot + 1, 2 * slot)
        elif row[slot] == NODE:
            below = page.path | (slot - cut.bottom) << cut.shift
            yield _ChildPage(page.number + 1, below, _child_version(view, cut, slot, page.version))


def _read(
    reader: Reader, prefix: bytes, cut: Cut, number: int, version: int, cache: PageCache | None
) -> View:
    key = page_key(page_path(prefix, cut, number), version)
    if cache is None or cut.depth > CACHED_DEPTH_MAX:
        return view_page(reader.get(key), cut)
    view = cache.get(key)
    if view is None:
        view = view_page(reader.get(key), cut)
        cache.put(key, view)
    return view


def _child_version(view: View, cut: Cut, slot: int, version: int) -> int:
    child = slot_version(view, cut, slot)
    if not 0 < child <= version:
        raise TreeCorrupt(_CHILD_VERSION)
    return child


def _check_on_path(index: bytes, number: int, depth: int) -> None:
    if (int.from_bytes(index, "big") ^ number) >> (8 * HASH_BYTES - depth):
        raise TreeCorrupt(_OFF_PATH)
