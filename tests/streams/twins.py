"""Dumb twins of both trees, so that a stream is not made by the code that checks it."""

from collections.abc import Mapping, Sequence
from hashlib import sha256


def prefix_root(leaves: Mapping[bytes, bytes], depth: int = 0) -> bytes:
    """Root of the prefix tree over index -> entry hash (contract section 3)."""
    if not leaves:
        return bytes(32)
    if len(leaves) == 1:
        ((index, entry_hash),) = leaves.items()
        return sha256(b"\x02" + index + entry_hash).digest()
    sides: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
    for index, entry_hash in leaves.items():
        sides[index[depth // 8] >> (7 - depth % 8) & 1][index] = entry_hash
    left, right = (prefix_root(side, depth + 1) for side in sides)
    return sha256(b"\x03" + left + right).digest()


def history_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + history_root(leaves[:split]) + history_root(leaves[split:])).digest()
