"""Private parts of commands <-> bytes: what fills private rows, and decides nothing.

The public part of a command names the hash of its private part. One that is blank, of another hash, or does
not decode is as good as none: it may have been blanked in the log since.
"""

from dataclasses import dataclass

from e2eks.v1 import command_pb2 as pb

from verifier import encoding, limits
from verifier.crypto import hashing
from verifier.encoding import at_most, canonical, exact
from verifier.errors import Malformed

# A profile with its user id, nonce and salt, and some room for their tags.
PRIVATE_PART_BYTES = limits.PROFILE_BYTES + 1024


@dataclass(frozen=True, slots=True)
class PrivateContents:
    """What outsiders must not see. `profile` is the exact bytes of a Profile, `nonce` 32 bytes."""

    user_id: str
    profile: bytes
    nonce: bytes


def encode_private_contents(user_id: str, profile: bytes, nonce: bytes) -> bytes:
    """Strict bytes of private contents."""
    return canonical(pb.PrivateContents(user_id=user_id, profile=profile, nonce=nonce))


def encode_private_part(salt: bytes, contents: bytes) -> bytes:
    """Strict bytes of a private part; `salt` is 32 fresh random bytes."""
    return canonical(pb.PrivatePart(salt=salt, contents=contents))


def private_hash(salt: bytes, contents: bytes) -> bytes:
    """What the public part says about the private part: SHA-256(salt ‖ contents)."""
    return hashing.sha256(salt + contents)


def open_private_part(part: bytes, expected_hash: bytes) -> PrivateContents | None:
    """The contents, or None where the part is blank, is not the one that was hashed, or does not decode."""
    if not part or not expected_hash:
        return None
    try:
        outer = encoding.parse(pb.PrivatePart, part, PRIVATE_PART_BYTES, "private part")
        exact(outer.salt, limits.NONCE_BYTES, "salt")
        if private_hash(outer.salt, outer.contents) != expected_hash:
            return None
        inner = encoding.parse(pb.PrivateContents, outer.contents, PRIVATE_PART_BYTES, "private contents")
        at_most(len(inner.user_id), limits.USER_ID_BYTES, "characters in a user id")
        exact(inner.nonce, limits.NONCE_BYTES, "profile nonce")
        encoding.decode_profile(inner.profile)
    except Malformed:
        return None
    return PrivateContents(user_id=inner.user_id, profile=inner.profile, nonce=inner.nonce)
