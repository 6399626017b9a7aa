"""The append-only log tree of RFC 6962 §2.1: rows, roots, proofs, and their verification.

Stored are complete subtrees only, one row each, never rewritten: prefix ‖ u8 level ‖ u64be position holds
the hash of the 2^level leaves from position * 2^level on. So any past size is proven from the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from kv.interface import Reader, StorageError
from kv.keys import u64
from verifier.limits import HASH_BYTES, MAX_U64

EMPTY_ROOT = sha256(b"").digest()
_LEAF_TAG = b"\x00"
_NODE_TAG = b"\x01"


class HistoryCorrupt(StorageError):
    """A row of the log tree is missing or not a hash. The process must halt."""


def leaf_hash(leaf: bytes) -> bytes:
    """Return SHA-256(0x00 ‖ leaf), 32 bytes."""
    return sha256(_LEAF_TAG + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 ‖ left ‖ right), 32 bytes."""
    return sha256(_NODE_TAG + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """A log tree reduced to what appending needs: its size and its complete subtrees, largest first.

    Raises `ValueError` unless there is one peak of 32 bytes for each 1 bit of `size`.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_U64 or len(self.peaks) != self.size.bit_count():
            raise ValueError("a frontier has one peak for each 1 bit of its size")
        if any(len(peak) != HASH_BYTES for peak in self.peaks):
            raise ValueError("a peak has 32 bytes")

    def append(self, leaf: bytes) -> "Frontier":
        """Return the frontier of the tree with `leaf` (any bytes) as its next leaf."""
        node, rest, peaks = leaf_hash(leaf), self.size, list(self.peaks)
        while rest & 1:
            node = node_hash(peaks.pop(), node)
            rest >>= 1
        return Frontier(self.size + 1, (*peaks, node))

    def root(self) -> bytes:
        """Return the root (32 bytes); SHA-256 of nothing for the empty tree."""
        return _fold(self.peaks)


def append(reader: Reader, prefix: bytes, size: int, leaf: bytes) -> dict[bytes, bytes]:
    """Return the rows to write when `leaf` (any bytes) becomes leaf number `size`, counted from 0.

    To append several before writing, read through an overlay that has the earlier rows.
    Raises `HistoryCorrupt`.
    """
    node, level, position = leaf_hash(leaf), 0, size
    rows = {_key(prefix, level, position): node}
    while position & 1:
        node = node_hash(_row(reader, prefix, level, position - 1), node)
        level, position = level + 1, position >> 1
        rows[_key(prefix, level, position)] = node
    return rows


def root(reader: Reader, prefix: bytes, size: int) -> bytes:
    """Return the root (32 bytes) of the first `size` leaves. Raises `HistoryCorrupt` where rows lack."""
    return _range_hash(reader, prefix, 0, size)


def frontier(reader: Reader, prefix: bytes, size: int) -> Frontier:
    """Return the frontier of the first `size` leaves. Raises `HistoryCorrupt` when rows are missing."""
    return Frontier(size, _peaks(reader, prefix, 0, size))


def inclusion(reader: Reader, prefix: bytes, index: int, size: int) -> tuple[bytes, ...]:
    """Return the audit path (lowest first) of leaf `index` in the tree of `size` leaves: RFC 6962 §2.1.1.

    Raises `ValueError` unless 0 <= index < size, `HistoryCorrupt` when rows are missing.
    """
    if not 0 <= index < size:
        raise ValueError("no such leaf in a tree of this size")
    ranges, start, stop = [], 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    return tuple(_range_hash(reader, prefix, *pair) for pair in reversed(ranges))


def consistency(reader: Reader, prefix: bytes, old: int, new: int) -> tuple[bytes, ...]:
    """Return the proof that the tree of `new` leaves extends that of `old`: RFC 6962 §2.1.2.

    Empty for old = 0 and for equal sizes. Raises `ValueError` unless 0 <= old <= new, `HistoryCorrupt` when
    rows are missing.
    """
    if not 0 <= old <= new:
        raise ValueError("a tree extends only trees of its size or smaller")
    if old == 0:
        return ()
    ranges, start, stop = [], 0, new
    while stop != old:
        middle = start + _split(stop - start)
        if old <= middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((start, middle))
            start = middle
    if start:  # The old tree itself is the one node that the verifier has already.
        ranges.append((start, stop))
    return tuple(_range_hash(reader, prefix, *pair) for pair in reversed(ranges))


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether `path` proves that `leaf` is leaf `index` of the tree of `size` leaves with `root`.

    RFC 9162 §2.1.3.2; the path must have exactly the length that index and size give.
    """
    return verify_inclusion_of_hash(leaf_hash(leaf), index, size, path, root)


def verify_inclusion_of_hash(
    hashed: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> bool:
    """As `verify_inclusion`, with the leaf's hash in place of the leaf."""
    if not 0 <= index < size <= MAX_U64 or not _all_hashes([hashed, *path]):
        return False
    node, position, last = hashed, index, size - 1
    for sibling in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while position and not position & 1:  # Levels where a lone right edge has no sibling.
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and node == root


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether `proof` shows that the tree (new, new_root) extends the tree (old, old_root).

    RFC 9162 §2.1.4.2. Sizes 0 and equal sizes need an empty proof and the roots such sizes have.
    """
    if not 0 <= old <= new <= MAX_U64 or not _all_hashes(proof):
        return False
    if old == 0:
        return not proof and old_root == EMPTY_ROOT and (new > 0 or new_root == EMPTY_ROOT)
    if old == new:
        return not proof and old_root == new_root
    nodes = list(proof)
    if old & (old - 1) == 0:
        nodes.insert(0, old_root)
    if not nodes:
        return False
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            first, second = node_hash(node, first), node_hash(node, second)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, node)
        position, last = position >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root


def _all_hashes(nodes: Sequence[bytes]) -> bool:
    return all(len(node) == HASH_BYTES for node in nodes)


def _split(size: int) -> int:
    """The largest power of two smaller than `size`, for size > 1."""
    return 1 << (size - 1).bit_length() - 1


def _fold(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    node = peaks[-1]
    for peak in reversed(peaks[:-1]):
        node = node_hash(peak, node)
    return node


def _range_hash(reader: Reader, prefix: bytes, start: int, stop: int) -> bytes:
    return _fold(_peaks(reader, prefix, start, stop))


def _peaks(reader: Reader, prefix: bytes, start: int, stop: int) -> tuple[bytes, ...]:
    """Complete subtrees of leaves start … stop - 1, largest first; `start` is a multiple of the largest."""
    peaks = []
    for level in reversed(range((stop - start).bit_length())):
        if (stop - start) >> level & 1:
            peaks.append(_row(reader, prefix, level, start >> level))
            start += 1 << level
    return tuple(peaks)


def _key(prefix: bytes, level: int, position: int) -> bytes:
    return prefix + bytes((level,)) + u64(position)


def _row(reader: Reader, prefix: bytes, level: int, position: int) -> bytes:
    row = reader.get(_key(prefix, level, position))
    if row is None or len(row) != HASH_BYTES:
        raise HistoryCorrupt(f"log tree: no hash at level {level}, position {position}")
    return row
