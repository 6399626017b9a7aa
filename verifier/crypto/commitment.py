"""Commitment of an entry to its profile: binding, and hiding for who does not know the nonce."""

import hmac

from verifier.crypto.hashing import tagged
from verifier.limits import NONCE_BYTES

_LABEL_PROFILE = "e2eks/1/profile"


def commit(nonce: bytes, index: bytes, version: int, profile: bytes) -> bytes:
    """Return HMAC-SHA256(nonce, tagged(profile label, index, u64be version, profile)), 32 bytes.

    `nonce` is 32 bytes, fresh per version; `index` 32 bytes; `profile` the exact bytes of a Profile. Raises
    `ValueError` for another nonce length (HMAC would pad a short key, so two nonces could mean one) and
    `OverflowError` for a version outside u64.
    """
    if len(nonce) != NONCE_BYTES:
        raise ValueError("a profile nonce has 32 bytes")
    return hmac.digest(nonce, tagged(_LABEL_PROFILE, index, version.to_bytes(8, "big"), profile), "sha256")
