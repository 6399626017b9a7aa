"""Prefix tree proofs: how a path of neighbours and a leaf, or its absence, give a root. Reads nothing.

Leaf = SHA-256(0x02 ‖ index ‖ entry hash), parent = SHA-256(0x03 ‖ left ‖ right), a subtree with one leaf is
that leaf, an empty subtree is 32 zero bytes. Bits of an index are taken most significant first.
"""

from collections.abc import Sequence
from hashlib import sha256

from verifier.errors import VerificationError
from verifier.limits import HASH_BYTES, TREE_NEIGHBORS

EMPTY_ROOT = bytes(HASH_BYTES)
LEAF_TAG = b"\x02"
PARENT_TAG = b"\x03"


def leaf_hash(index: bytes, entry_hash: bytes) -> bytes:
    """Return the hash of the leaf (index, entry hash), 32 bytes each."""
    return sha256(LEAF_TAG + index + entry_hash).digest()


def parent_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over its two subtrees' hashes, 32 bytes each."""
    return sha256(PARENT_TAG + left + right).digest()


def root_from_path(index: bytes, leaf: tuple[bytes, bytes] | None, neighbors: Sequence[bytes]) -> bytes:
    """Return the root (32 bytes) of the tree in which the path of `index` ends at `leaf` below `neighbors`.

    `leaf` is (index, entry hash) of the leaf at the end of the path, whose index may be another one that
    shares the first len(neighbors) bits, or None for an empty subtree. neighbors[0] is at depth 1; an empty
    sibling is b"". Raises `VerificationError` ("tree") for other lengths, a neighbour of zeros or a leaf off
    the path.
    """
    depth = len(neighbors)
    if depth > TREE_NEIGHBORS:
        raise VerificationError("tree", "more neighbours than an index has bits")
    if len(index) != HASH_BYTES:
        raise VerificationError("tree", "an index has 32 bytes")
    path = int.from_bytes(index, "big")
    node = EMPTY_ROOT
    if leaf is not None:
        if len(leaf[0]) != HASH_BYTES or len(leaf[1]) != HASH_BYTES:
            raise VerificationError("tree", "a leaf has two parts of 32 bytes")
        if (int.from_bytes(leaf[0], "big") ^ path) >> (8 * HASH_BYTES - depth):
            raise VerificationError("tree", "the leaf does not lie on the path")
        node = leaf_hash(*leaf)
    path >>= 8 * HASH_BYTES - depth
    for neighbor in reversed(neighbors):
        # One encoding for one tree: zeros would be a second spelling of the empty sibling.
        if len(neighbor) not in (0, HASH_BYTES) or neighbor == EMPTY_ROOT:
            raise VerificationError("tree", "a neighbour has 32 bytes, not all zero, or none")
        sibling = neighbor or EMPTY_ROOT
        # parent_hash, written out: this is the inner loop of every verification.
        node = sha256(PARENT_TAG + (sibling + node if path & 1 else node + sibling)).digest()
        path >>= 1
    return node
