"""Bytes <-> values for what a server answers and streams: lookup proofs, consistency proofs, verifier steps.

Strict like `encoding`, so that no byte of a proof is without meaning. Any bytes give a value or `Malformed`.
"""

from __future__ import annotations

from e2eks.v1 import client_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb

from verifier import encoding, limits
from verifier.encoding import at_most, canonical, exact
from verifier.errors import Malformed
from verifier.types import (
    ConsistencyProof,
    EpochStep,
    LookupProof,
    TreeProof,
    UpdateStep,
    VerifierStep,
)

ZERO = bytes(limits.HASH_BYTES)


def tree_proof_from(message: pb.TreeProof) -> TreeProof:
    """A tree proof of exact lengths; raises Malformed."""
    at_most(len(message.neighbors), limits.TREE_NEIGHBORS, "neighbours in a tree proof")
    for neighbor in message.neighbors:
        if neighbor and (len(neighbor) != limits.HASH_BYTES or neighbor == ZERO):
            raise Malformed("a neighbour in a tree proof is neither empty nor a hash")
    existing = None
    if message.existing_index or message.existing_entry_hash:
        existing = (
            exact(message.existing_index, limits.HASH_BYTES, "existing index"),
            exact(message.existing_entry_hash, limits.HASH_BYTES, "existing entry hash"),
        )
    return TreeProof(neighbors=tuple(message.neighbors), existing=existing)


def decode_lookup_proof(data: bytes) -> LookupProof:
    """A lookup proof from strict bytes; raises Malformed."""
    message = encoding.parse(client_pb2.LookupProof, data, limits.LOOKUP_PROOF_BYTES, "lookup proof")
    at_most(len(message.user_id), limits.USER_ID_BYTES, "characters in a user id")
    entry = encoding.decode_entry(message.entry) if message.entry else None
    if entry is None and (message.profile or message.profile_nonce):
        raise Malformed("a lookup proof has a profile but no entry")
    tree_proof = tree_proof_from(message.tree_proof)
    if entry is not None and tree_proof.existing is not None:
        raise Malformed("a lookup proof has an entry and another leaf in its place")
    nonce = message.profile_nonce
    if nonce or message.profile:
        exact(nonce, limits.NONCE_BYTES, "profile nonce")
    return LookupProof(
        user_id=message.user_id,
        index=exact(message.index, limits.HASH_BYTES, "index"),
        index_proof=exact(message.index_proof, limits.VRF_PROOF_BYTES, "index proof"),
        head=encoding.signed_head_from(message.head),
        tree_proof=tree_proof,
        entry=entry,
        profile=encoding.decode_profile(message.profile) if nonce else None,
        profile_nonce=nonce,
        encoded=data,
    )


def encode_lookup_proof(
    *,
    user_id: str,
    index: bytes,
    index_proof: bytes,
    signed_head: bytes,
    neighbors: tuple[bytes, ...],
    existing: tuple[bytes, bytes] | None = None,
    entry: bytes = b"",
    profile: bytes = b"",
    profile_nonce: bytes = b"",
) -> bytes:
    """Strict bytes of a lookup proof; `signed_head` is an encoded SignedEpochHead."""
    existing_index, existing_entry_hash = existing or (b"", b"")
    proof = client_pb2.LookupProof(
        user_id=user_id,
        index=index,
        index_proof=index_proof,
        head=pb.SignedEpochHead.FromString(signed_head),
        tree_proof=pb.TreeProof(
            neighbors=neighbors, existing_index=existing_index, existing_entry_hash=existing_entry_hash
        ),
        entry=entry,
        profile=profile,
        profile_nonce=profile_nonce,
    )
    return canonical(proof)


def decode_consistency_proof(data: bytes) -> ConsistencyProof:
    """A consistency proof from strict bytes; raises Malformed."""
    message = encoding.parse(
        client_pb2.ConsistencyProof, data, limits.CONSISTENCY_PROOF_BYTES, "consistency proof"
    )
    at_most(len(message.inclusion), limits.HISTORY_PATH, "hashes in an inclusion path")
    at_most(len(message.consistency), limits.HISTORY_PATH, "hashes in a consistency path")
    for node in (*message.inclusion, *message.consistency):
        exact(node, limits.HASH_BYTES, "a hash in a consistency proof")
    return ConsistencyProof(
        old_head=encoding.signed_head_from(message.old_head),
        new_head=encoding.signed_head_from(message.new_head),
        inclusion=tuple(message.inclusion),
        consistency=tuple(message.consistency),
    )


def encode_consistency_proof(
    *, old_head: bytes, new_head: bytes, inclusion: tuple[bytes, ...], consistency: tuple[bytes, ...]
) -> bytes:
    """Strict bytes of a consistency proof; heads are encoded SignedEpochHeads."""
    proof = client_pb2.ConsistencyProof(
        old_head=pb.SignedEpochHead.FromString(old_head),
        new_head=pb.SignedEpochHead.FromString(new_head),
        inclusion=inclusion,
        consistency=consistency,
    )
    return canonical(proof)


def step_from(message: verification_pb2.VerifierStep) -> VerifierStep:
    """A step of the verifier log; raises Malformed."""
    if message.index == 0:
        raise Malformed("a verifier step has index 0")
    if message.HasField("update"):
        return UpdateStep(index=message.index, update=encoding.update_from(message.update))
    if message.HasField("epoch"):
        return EpochStep(index=message.index, head=encoding.signed_head_from(message.epoch))
    raise Malformed("a verifier step is empty")


def decode_step(data: bytes) -> VerifierStep:
    """One step from strict bytes; raises Malformed."""
    limit = limits.SIGNED_HEAD_BYTES + limits.ENTRY_BYTES
    return step_from(encoding.parse(verification_pb2.VerifierStep, data, limit, "verifier step"))


def decode_steps(data: bytes) -> tuple[VerifierStep, ...]:
    """The steps of one streamed message, in order; raises Malformed."""
    limit = 2 * limits.VERIFIER_STEPS_BYTES
    message = encoding.parse(verification_pb2.VerifierSteps, data, limit, "verifier steps")
    return tuple(step_from(step) for step in message.steps)


def encode_update_step(index: int, update: bytes) -> bytes:
    """Strict bytes of a verifier step that carries an encoded SignedEntryUpdate."""
    step = verification_pb2.VerifierStep(index=index, update=pb.SignedEntryUpdate.FromString(update))
    return canonical(step)


def encode_epoch_step(index: int, signed_head: bytes) -> bytes:
    """Strict bytes of a verifier step that carries an encoded SignedEpochHead."""
    step = verification_pb2.VerifierStep(index=index, epoch=pb.SignedEpochHead.FromString(signed_head))
    return canonical(step)
