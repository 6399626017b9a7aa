"""Pages: how the nodes of the prefix tree lie in rows. No hashing here, and no walking.

A page holds the nodes of one subtree between two cuts of the depth, as a heap: slot 1 is the subtree's root,
the children of slot s are 2s and 2s + 1, the slots of the last level are the bottom. Its row:

    key    prefix ‖ u8 depth ‖ the first `depth` bits of the path, zero padded ‖ u64be version
    value  u8 format ‖ one kind byte for each slot from 1 ‖ hashes of the present slots from 2
           ‖ index ‖ entry hash of each leaf ‖ u64be versions of the child pages; each in slot order

A node in a bottom slot is the root of a child page, found by the version that its parent names: the page of
any epoch is one exact read, and no page is ever rewritten. A subtree with one leaf is a leaf in its parent's
page, so only the page of depth 0 can have a leaf in slot 1.
"""

from itertools import compress
from typing import Final, NamedTuple

from kv.interface import StorageError
from verifier.limits import HASH_BYTES

INDEX_BITS = 8 * HASH_BYTES
LEAF_BYTES = 2 * HASH_BYTES
VERSION_BYTES = 8

EMPTY, LEAF, NODE = range(3)  # Kinds of a slot.

_FORMAT = 1  # In the place of slot 0, which a heap does not use.
EMPTY_HASH = bytes(HASH_BYTES)


class TreeCorrupt(StorageError):
    """A page is missing or cannot be what was written. The process must halt."""


class Cut(NamedTuple):
    """The pages between two cuts."""

    depth: int  # of slot 1
    depth_byte: bytes
    bottom: int  # the first bottom slot, 2 ** height; also what the path's bits are added to
    slots: int  # with slot 0
    shift: int  # an index shifted right by this ends with the bits of its bottom slot
    levels: range  # a bottom slot shifted right by these are the slots from 2 or 3 down to it
    path_shift: int  # an index shifted right by this is the path to slot 1 …
    path_padding: int  # … and, shifted left by this, fills …
    path_bytes: int  # … so many bytes


def _cut(depth: int, height: int) -> Cut:
    path_bytes = (depth + 7) // 8
    return Cut(
        depth=depth,
        depth_byte=bytes((depth,)),
        bottom=1 << height,
        slots=2 << height,
        shift=INDEX_BITS - depth - height,
        levels=range(height - 1, -1, -1),
        path_shift=INDEX_BITS - depth,
        path_padding=8 * path_bytes - depth,
        path_bytes=path_bytes,
    )


# Large pages near the root, where every epoch rewrites almost all of them; small ones below, where a change
# rewrites one path: fewer rows than even cuts, fewer bytes than deep pages. 10^4 leaves into 10^5 write 1.5
# rows and 680 bytes a leaf; cuts at 6, 10, 13, 16 … wrote 1.64 and 690. This is a format, not a knob.
_HEIGHTS: Final = (6, 4, 4, *80 * (3,), 2)
CUTS: Final = tuple(_cut(sum(_HEIGHTS[:number]), height) for number, height in enumerate(_HEIGHTS))
_SLOTS: Final = range(2, CUTS[0].slots)


# A checked row, where its leaves start, where its versions start. A plain tuple: a lookup makes several.
View = tuple[bytes, int, int]


class Page:
    """A page taken apart, to be changed and put together again.

    `leaves` are in slot order, so that most pages need neither sorting nor one step per leaf.
    """

    __slots__ = ("cut", "hashes", "kinds", "leaves", "versions")

    def __init__(self, cut: Cut, view: View | None = None) -> None:
        """Take apart a page of `cut`, or make an empty one."""
        slots = cut.slots
        self.cut = cut
        self.hashes = [EMPTY_HASH] * slots
        self.leaves: list[bytes] = []
        self.versions: dict[int, int] = {}
        if view is None:
            self.kinds = bytearray(slots)
            self.kinds[0] = _FORMAT
            return
        row, leaves_at, at = view
        self.kinds = kinds = bytearray(row[:slots])
        self.leaves = [row[leaf : leaf + LEAF_BYTES] for leaf in range(leaves_at, at, LEAF_BYTES)]
        slot = kinds.find(NODE, cut.bottom)
        while slot > 0:
            self.versions[slot] = int.from_bytes(row[at : at + VERSION_BYTES], "big")
            at += VERSION_BYTES
            slot = kinds.find(NODE, slot + 1)
        at = slots
        for slot in compress(_SLOTS, kinds[2:]):
            self.hashes[slot] = row[at : at + HASH_BYTES]
            at += HASH_BYTES

    def leaf(self, slot: int) -> bytes:
        """Return index ‖ entry hash of the leaf in `slot`."""
        return self.leaves[self.kinds.count(LEAF, 1, slot)]

    def put_leaf(self, slot: int, body: bytes, hashed: bytes) -> None:
        """Put a leaf into a slot that is empty or has a leaf."""
        rank = self.kinds.count(LEAF, 1, slot)
        self.leaves[rank : rank + (self.kinds[slot] == LEAF)] = [body]
        self.kinds[slot] = LEAF
        self.hashes[slot] = hashed

    def take_leaf(self, slot: int) -> bytes:
        """Take the leaf out of `slot`, leave the slot empty, return index ‖ entry hash."""
        self.kinds[slot] = EMPTY
        return self.leaves.pop(self.kinds.count(LEAF, 1, slot))

    def encode(self) -> bytes:
        """Return the row. The same nodes give the same bytes, in whatever order they were put in."""
        kinds, versions = self.kinds, self.versions
        parts: list[bytes | bytearray] = [kinds, *compress(self.hashes[2:], kinds[2:]), *self.leaves]
        if versions:
            parts += [versions[slot].to_bytes(VERSION_BYTES, "big") for slot in sorted(versions)]
        return b"".join(parts)


def page_path(prefix: bytes, cut: Cut, index: int) -> bytes:
    """Return the key, up to the version, of the pages on the path of `index` (as a number) at `cut`."""
    path = index >> cut.path_shift << cut.path_padding
    return prefix + cut.depth_byte + path.to_bytes(cut.path_bytes, "big")


def page_key(path: bytes, version: int) -> bytes:
    """Return the key of one version of the pages at `path`."""
    return path + version.to_bytes(VERSION_BYTES, "big")


def view_page(row: bytes | None, cut: Cut) -> View:
    """Return a view of `row` if its kinds and length are those of a page at `cut`.

    Raises `TreeCorrupt` otherwise, and for a missing row.
    """
    if row is None:
        raise TreeCorrupt(f"prefix tree: a page of depth {cut.depth} is missing")
    slots = cut.slots
    if len(row) < slots or row[0] != _FORMAT or not row[1]:
        raise TreeCorrupt(f"prefix tree: a page of depth {cut.depth} has another format")
    empty = row.count(EMPTY, 2, slots)
    leaves = row.count(LEAF, 1, slots)
    leaves_at = slots + HASH_BYTES * (slots - 2 - empty)
    versions_at = leaves_at + LEAF_BYTES * leaves
    length = versions_at + VERSION_BYTES * row.count(NODE, cut.bottom, slots)
    if len(row) != length or empty + leaves + row.count(NODE, 1, slots) != slots - 1:
        raise TreeCorrupt(f"prefix tree: a page of depth {cut.depth} does not decode")
    return row, leaves_at, versions_at


def slot_hash(row: bytes, cut: Cut, slot: int) -> bytes:
    """Return the hash of a slot from 2 on, b"" for an empty one."""
    if not row[slot]:
        return b""
    at = cut.slots + HASH_BYTES * (slot - 2 - row.count(EMPTY, 2, slot))
    return row[at : at + HASH_BYTES]


def slot_leaf(view: View, slot: int) -> tuple[bytes, bytes]:
    """Return (index, entry hash) of the leaf in `slot`."""
    row, leaves_at, _ = view
    at = leaves_at + LEAF_BYTES * row.count(LEAF, 1, slot)
    return row[at : at + HASH_BYTES], row[at + HASH_BYTES : at + LEAF_BYTES]


def slot_version(view: View, cut: Cut, slot: int) -> int:
    """Return the version of the child page whose root is in the bottom slot `slot`."""
    row, _, versions_at = view
    at = versions_at + VERSION_BYTES * row.count(NODE, cut.bottom, slot)
    return int.from_bytes(row[at : at + VERSION_BYTES], "big")
