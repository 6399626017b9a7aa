"""Prefix tree proofs, against the formulas of the contract written out by hand."""

from hashlib import sha256

import pytest

from verifier.errors import VerificationError
from verifier.merkle.proof import EMPTY_ROOT, root_from_path

LEFT = b"\x00" * 32  # Begins with bit 0.
RIGHT = b"\x80" + bytes(31)  # Begins with bits 1 0.
RIGHT_TWO = b"\xc0" + bytes(31)  # Begins with bits 1 1.
ENTRY = b"e" * 32


def leaf(index: bytes, entry_hash: bytes = ENTRY) -> bytes:
    return sha256(b"\x02" + index + entry_hash).digest()


def parent(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x03" + left + right).digest()


def test_empty_tree_and_lone_leaf() -> None:
    assert root_from_path(LEFT, None, []) == EMPTY_ROOT == bytes(32)
    assert root_from_path(LEFT, (LEFT, ENTRY), []) == leaf(LEFT)
    # A lone leaf is also the proof that every other index is absent.
    assert root_from_path(RIGHT, (LEFT, ENTRY), []) == leaf(LEFT)


def test_bits_are_taken_most_significant_first_and_neighbours_from_depth_1() -> None:
    pair = parent(leaf(RIGHT), leaf(RIGHT_TWO))
    root = parent(leaf(LEFT), pair)
    assert root_from_path(LEFT, (LEFT, ENTRY), [pair]) == root
    assert root_from_path(RIGHT, (RIGHT, ENTRY), [leaf(LEFT), leaf(RIGHT_TWO)]) == root
    assert root_from_path(RIGHT_TWO, (RIGHT_TWO, ENTRY), [leaf(LEFT), leaf(RIGHT)]) == root


def test_an_empty_sibling_is_32_zero_bytes_in_the_hash_and_none_in_the_proof() -> None:
    root = parent(bytes(32), parent(leaf(RIGHT), leaf(RIGHT_TWO)))
    assert root_from_path(RIGHT, (RIGHT, ENTRY), [b"", leaf(RIGHT_TWO)]) == root
    assert root_from_path(LEFT, None, [parent(leaf(RIGHT), leaf(RIGHT_TWO))]) == root


def test_a_path_may_have_all_bits_of_an_index() -> None:
    twin = bytes(31) + b"\x01"
    node = parent(leaf(LEFT), leaf(twin))
    for _ in range(255):
        node = parent(node, bytes(32))
    assert root_from_path(LEFT, (LEFT, ENTRY), [b""] * 255 + [leaf(twin)]) == node
    assert root_from_path(twin, (twin, ENTRY), [b""] * 255 + [leaf(LEFT)]) == node


@pytest.mark.parametrize(
    ("index", "found", "neighbors"),
    [
        pytest.param(LEFT, (LEFT, ENTRY), [bytes(32)], id="zeros for an empty sibling"),
        pytest.param(LEFT, (LEFT, ENTRY), [b"n" * 31], id="short neighbour"),
        pytest.param(LEFT, (LEFT, ENTRY), [b"n" * 33], id="long neighbour"),
        pytest.param(LEFT, (LEFT, ENTRY), [b"n" * 32] * 257, id="more neighbours than bits"),
        pytest.param(LEFT, (RIGHT, ENTRY), [b"n" * 32], id="leaf off the path"),
        pytest.param(RIGHT, (RIGHT_TWO, ENTRY), [b"n" * 32] * 2, id="leaf off the path at its last bit"),
        pytest.param(LEFT[1:], (LEFT, ENTRY), [], id="short index"),
        pytest.param(LEFT, (LEFT[1:], ENTRY), [], id="short index of the leaf"),
        pytest.param(LEFT, (LEFT, ENTRY + b"e"), [], id="long entry hash"),
    ],
)
def test_malformed_proofs_are_refused(
    index: bytes, found: tuple[bytes, bytes], neighbors: list[bytes]
) -> None:
    with pytest.raises(VerificationError) as caught:
        root_from_path(index, found, neighbors)
    assert caught.value.check == "tree"
