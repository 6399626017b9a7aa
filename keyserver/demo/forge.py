"""What a realm whose replicas and verifiers lie together could sign: another head for an epoch already shown.

Every signature in the forged proof is valid. Only a client that remembers the genuine head can tell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb

from verifier import encoding, epoch, proof_encoding
from verifier.crypto import commitment, hashing, signatures
from verifier.merkle import proof as tree
from verifier.types import LookupProof, QuorumExpr, Ratification, Signature


def tamper(proof: bytes) -> bytes:
    """A genuine LookupProof with one bit of a key in the profile turned over; still well-formed."""
    message = client_pb2.LookupProof.FromString(proof)
    profile = pb.Profile.FromString(message.profile)
    key = bytearray(profile.keys[0].key)
    key[-2] ^= 1
    profile.keys[0].key = bytes(key)
    message.profile = encoding.canonical(profile)
    return encoding.canonical(message)


def fork(genuine: LookupProof, replica_seeds: Sequence[bytes], verifier_seeds: Sequence[bytes]) -> bytes:
    """A LookupProof of the same user and epoch: a stranger's key under another, validly signed head."""
    entry, profile, nonce = _strangers_entry(genuine.index)
    message = pb.EpochHead.FromString(genuine.head.head.encoded)
    message.root_hash = tree.leaf_hash(genuine.index, hashing.entry_hash(entry))
    head = encoding.canonical(message)
    issued = genuine.head.head.issue_time_ms
    seen = max(r.timestamp_ms for r in genuine.head.ratifications)
    ratifications = [
        _ratification(epoch.replica_message(head, issued), issued, replica_seeds),
        _ratification(epoch.verifier_message(head, seen), seen, verifier_seeds),
    ]
    return proof_encoding.encode_lookup_proof(
        user_id=genuine.user_id,
        index=genuine.index,
        index_proof=genuine.index_proof,
        signed_head=encoding.encode_signed_head(head, ratifications),
        neighbors=(),
        entry=entry,
        profile=profile,
        profile_nonce=nonce,
    )


def _strangers_entry(index: bytes) -> tuple[bytes, bytes, bytes]:
    public_key = signatures.public_key(os.urandom(32))
    quorum = QuorumExpr(threshold=1, candidates=(hashing.key_id(public_key),))
    profile = encoding.encode_profile({"ssh": b"ssh-ed25519 AAAA not-the-users-key\n"})
    nonce = os.urandom(32)
    entry = encoding.encode_entry(
        index=index,
        version=0,
        update_policy=encoding.make_policy([public_key], quorum),
        profile_commitment=commitment.commit(nonce, index, 0, profile),
    )
    return entry, profile, nonce


def _ratification(message: bytes, timestamp_ms: int, seeds: Sequence[bytes]) -> Ratification:
    made = [
        Signature(
            key_id=hashing.key_id(signatures.public_key(seed)), signature=signatures.sign(seed, message)
        )
        for seed in seeds
    ]
    return Ratification(timestamp_ms=timestamp_ms, signatures=tuple(made))
