"""The hash chain over the public parts of a log: link n says what was decided by entries 1 to n."""

import hashlib

from kv.keys import u64

LINK_BYTES = 32
# The link before entry 1.
FIRST_LINK = bytes(LINK_BYTES)

_LABEL = b"e2eks/1/log-link"
_HEAD = bytes((len(_LABEL),)) + _LABEL
_LENGTHS = (LINK_BYTES.to_bytes(4, "big"), (8).to_bytes(4, "big"))


def next_link(previous: bytes, index: int, public: bytes) -> bytes:
    """Return tagged("e2eks/1/log-link", previous, u64be index, SHA-256(public)), 32 bytes.

    The construction is that of the contract §3; it is written out because this room knows no other.
    """
    content = hashlib.sha256(public).digest()
    return hashlib.sha256(
        b"".join((_HEAD, _LENGTHS[0], previous, _LENGTHS[1], u64(index), _LENGTHS[0], content))
    ).digest()
