"""Every page of every version of the prefix tree, hashed again from its leaves: for checks of a whole store.

Pages are read from the deepest up, each once, so that the root of a child page is known when its parent is
read. A page is sound when its shape is the one that its leaves give, its hashes are those of its nodes, its
leaves lie on their paths, and its child pages are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from kv.interface import Reader
from kv.keys import prefix_end
from verifier.limits import HASH_BYTES
from verifier.merkle.pages import (
    CUTS,
    EMPTY,
    INDEX_BITS,
    LEAF,
    NODE,
    VERSION_BYTES,
    Cut,
    Page,
    TreeCorrupt,
    page_key,
    page_path,
    view_page,
)
from verifier.merkle.proof import leaf_hash, parent_hash

_CUT_AT: Final = {cut.depth: number for number, cut in enumerate(CUTS)}


@dataclass(slots=True)
class Pages:
    """What the pages under one prefix hold. `roots`: version -> root, of every version with a root page.

    `entry_hashes` are of all leaves in all versions. `faults`: key of a row, and what is wrong with it.
    """

    roots: dict[int, bytes] = field(default_factory=dict)
    entry_hashes: set[bytes] = field(default_factory=set)
    faults: list[tuple[bytes, str]] = field(default_factory=list)


class _Unsound(Exception):
    """The page is not what its nodes give."""


def recompute(reader: Reader, prefix: bytes) -> Pages:
    """Check all pages under `prefix`. Raises StorageError as the reader does."""
    return _Recomputation(prefix).run(reader.scan(prefix, prefix_end(prefix), reverse=True))


class _Recomputation:
    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._found = Pages()
        self._hashes: dict[bytes, bytes] = {}  # key of a page below the root -> hash of its slot 1
        self._wanted: set[bytes] = set()  # keys of child pages that some page names

    def run(self, rows: Iterator[tuple[bytes, bytes]]) -> Pages:
        for key, row in rows:
            try:
                self._page(key, row)
            except (_Unsound, TreeCorrupt) as error:
                self._found.faults.append((key, str(error)))
        for key in sorted(self._hashes.keys() - self._wanted):
            self._found.faults.append((key, "no page of the prefix tree leads to this one"))
        return self._found

    def _page(self, key: bytes, row: bytes) -> None:
        cut, path, version = self._place(key)
        page = Page(cut, view_page(row, cut))
        if cut.depth and page.kinds[1] == LEAF:
            raise _Unsound("a leaf alone in its page belongs into the page above")
        top = self._hash_slots(page, path, version)
        for leaf in page.leaves:
            self._found.entry_hashes.add(leaf[HASH_BYTES:])
        if cut.depth:
            self._hashes[key] = top
        else:
            self._found.roots[version] = top

    def _place(self, key: bytes) -> tuple[Cut, int, int]:
        """Cut, path (as an index) and version that a key names."""
        place = key[len(self._prefix) :]
        number = _CUT_AT.get(place[0]) if place else None
        if number is None:
            raise _Unsound("no page of the prefix tree has this key")
        cut = CUTS[number]
        path, version = place[1:-VERSION_BYTES], int.from_bytes(place[-VERSION_BYTES:], "big")
        index = int.from_bytes(path, "big") >> cut.path_padding << cut.path_shift
        if len(path) != cut.path_bytes or not version or page_path(self._prefix, cut, index) != key[:-8]:
            raise _Unsound("no page of the prefix tree has this key")
        return cut, index, version

    def _hash_slots(self, page: Page, path: int, version: int) -> bytes:
        """The hash of slot 1, after all below it were computed and compared."""
        kinds, hashes, leaf = page.kinds, page.hashes, len(page.leaves)
        for slot in range(page.cut.slots - 1, 0, -1):
            kind, bottom = kinds[slot], slot >= page.cut.bottom
            if kind != NODE and not bottom and kinds[2 * slot] | kinds[2 * slot + 1] != EMPTY:
                raise _Unsound("a node that has children is empty or a leaf")
            if kind == EMPTY:
                continue
            if kind == LEAF:
                leaf -= 1
                made = self._leaf(page.leaves[leaf], page.cut, path, slot)
            elif bottom:
                made = self._child(page, path, slot, version)
            elif sum(kinds[2 * slot : 2 * slot + 2]) <= LEAF:
                raise _Unsound("a node has fewer than two leaves below it")
            else:
                made = parent_hash(hashes[2 * slot], hashes[2 * slot + 1])
            if slot > 1 and hashes[slot] != made:
                raise _Unsound("a hash is not that of the nodes below it")
            hashes[slot] = made
        return hashes[1]

    def _leaf(self, body: bytes, cut: Cut, path: int, slot: int) -> bytes:
        index = int.from_bytes(body[:HASH_BYTES], "big")
        depth = cut.depth + slot.bit_length() - 1
        place = path >> INDEX_BITS - depth | slot - (1 << slot.bit_length() - 1)
        if index >> INDEX_BITS - depth != place:
            raise _Unsound("a leaf lies off its path")
        return leaf_hash(body[:HASH_BYTES], body[HASH_BYTES:])

    def _child(self, page: Page, path: int, slot: int, version: int) -> bytes:
        """The root of the child page below a bottom slot."""
        cut = page.cut
        below = path | (slot - cut.bottom) << cut.shift
        child = page.versions[slot]
        if not 0 < child <= version or cut is CUTS[-1]:
            raise _Unsound("a child page is newer than its parent, or lies too deep")
        key = page_key(page_path(self._prefix, CUTS[_CUT_AT[cut.depth] + 1], below), child)
        self._wanted.add(key)
        made = self._hashes.get(key)
        if made is None:
            raise _Unsound("a child page is missing or damaged")
        return made
