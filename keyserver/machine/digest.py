"""The state digest: one hash chain over entries, verdicts and replicated writes (contract section 3)."""

from collections.abc import Mapping, Sequence

from keyserver.machine.codes import Code
from verifier.crypto import hashing

GENESIS = bytes(32)  # D(0)
REFUSED_ENTRY = b"\xff"  # no code of a command; the entry's code follows


def next_digest(previous: bytes, index: int, public: bytes, verdicts: bytes, writes: bytes) -> bytes:
    """D(index) after the entry with this public part; `writes`, encoded, are those to replicated tables."""
    return hashing.tagged(
        "e2eks/1/state",
        previous,
        index.to_bytes(8, "big"),
        hashing.sha256(public),
        verdicts,
        hashing.sha256(writes),
    )


def encode_writes(writes: Mapping[bytes, bytes | None]) -> bytes:
    """A write = 0x01 ‖ u32be len(key) ‖ key ‖ value, a delete = 0x00 ‖ key, in key order."""
    pieces: list[bytes] = []
    for key in sorted(writes):
        value = writes[key]
        if value is None:
            pieces += (b"\x00", key)
        else:
            pieces += (b"\x01", len(key).to_bytes(4, "big"), key, value)
    return b"".join(pieces)


def applied_verdicts(codes: Sequence[Code]) -> bytes:
    """One byte for each command."""
    return bytes(codes)


def refused_verdict(code: Code) -> bytes:
    """A refused entry: 0xff, then its code."""
    return REFUSED_ENTRY + bytes((code,))
