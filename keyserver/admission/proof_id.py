"""What a registration proof is known by, so that it admits once (contract section 3, endorsements)."""

from verifier.crypto import hashing


def proof_id(method: str, *parts: bytes) -> bytes:
    """The id (32 bytes) of a proof of `method` (ASCII) with `parts` that identify it and cannot be varied."""
    return hashing.tagged("e2eks/1/proof-id", method.encode("ascii"), *parts)
