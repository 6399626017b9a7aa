"""Domain-separated SHA-256 of suite 1. Only this file knows how parts are joined before they are hashed."""

from hashlib import sha256 as _sha256

LABEL_BYTES_MAX = 255  # The label's length travels in one byte.

KEY_TYPE_ED25519 = b"\x01"

_LABEL_KEY = "e2eks/1/key"
_LABEL_ENTRY = "e2eks/1/entry"
_LABEL_EPOCH_HEAD = "e2eks/1/epoch-head"


def sha256(data: bytes) -> bytes:
    """Return the plain SHA-256 (32 bytes) of `data`; for trees and for contents that carry no label."""
    return _sha256(data).digest()


def tagged(label: str, *parts: bytes) -> bytes:
    """Return SHA-256(u8 len(label) ‖ label ‖ (u32be len(part) ‖ part)…), 32 bytes.

    Lengths make the encoding injective: no two different lists of parts share a preimage. Raises `ValueError`
    for a label that is empty, not ASCII or longer than 255 bytes: labels are constants, so that is a bug.
    """
    name = label.encode("ascii")
    if not 1 <= len(name) <= LABEL_BYTES_MAX:
        raise ValueError("a label has 1 to 255 ASCII characters")
    pieces = [bytes((len(name),)), name]
    for part in parts:
        pieces.append(len(part).to_bytes(4, "big"))
        pieces.append(part)
    return _sha256(b"".join(pieces)).digest()


def key_id(public_key: bytes) -> bytes:
    """Return the id (32 bytes) of an Ed25519 public key (32 bytes)."""
    return tagged(_LABEL_KEY, KEY_TYPE_ED25519, public_key)


def entry_hash(entry: bytes) -> bytes:
    """Return the hash (32 bytes) of the exact bytes of an Entry."""
    return tagged(_LABEL_ENTRY, entry)


def head_hash(head: bytes) -> bytes:
    """Return the hash (32 bytes) of the exact bytes of an EpochHead."""
    return tagged(_LABEL_EPOCH_HEAD, head)
