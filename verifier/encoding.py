"""Bytes <-> values for everything that is hashed or signed; all limits of `limits` hold afterwards.

Strict: a message is accepted only if its deterministic re-encoding equals the bytes (contract section 2), so
there are
no unknown, repeated-singular or default-valued fields and no trailing bytes. Any bytes give a value or
`Malformed`.
"""

from __future__ import annotations

import re
from typing import TypeVar

from e2eks.v1 import types_pb2 as pb
from google.protobuf.message import DecodeError, Message

from verifier import limits
from verifier.crypto import hashing
from verifier.errors import Malformed, Reason
from verifier.types import (
    AuthorizationPolicy,
    Entry,
    EpochHead,
    Profile,
    QuorumExpr,
    Ratification,
    Signature,
    SignedHead,
    SignedUpdate,
)

M = TypeVar("M", bound=Message)

APPLICATION = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)


def parse(kind: type[M], data: bytes, limit: int, what: str) -> M:
    """The message of type `kind` in `data`, at most `limit` bytes of strict encoding; raises Malformed."""
    if len(data) > limit:
        raise Malformed(f"{what} has {len(data)} bytes, more than {limit}", Reason.TOO_LARGE)
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise Malformed(f"{what} is not an encoded {kind.DESCRIPTOR.name}") from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != data:
        raise Malformed(f"{what} is not in its deterministic encoding")
    return message


def canonical(message: Message) -> bytes:
    """Deterministic encoding of a message made here."""
    return message.SerializeToString(deterministic=True)


def exact(data: bytes, size: int, what: str) -> bytes:
    """`data` if it has exactly `size` bytes; raises Malformed."""
    if len(data) != size:
        raise Malformed(f"{what} has {len(data)} bytes, not {size}")
    return data


def at_most(count: int, limit: int, what: str) -> None:
    """Raises Malformed (TOO_LARGE) if there are more than `limit` of `what`."""
    if count > limit:
        raise Malformed(f"{count} {what}, more than {limit}", Reason.TOO_LARGE)


# Quorums and policies


def quorum_from(message: pb.QuorumExpr) -> QuorumExpr:
    """A quorum expression within the limits: depth, candidates, thresholds, each key id at most once."""
    expr = _quorum_level(message, limits.QUORUM_DEPTH)
    candidates = list(expr.all_candidates())
    at_most(len(candidates), limits.QUORUM_CANDIDATES, "quorum candidates")
    if len(set(candidates)) != len(candidates):
        raise Malformed("a key id occurs twice in a quorum expression")
    return expr


def _quorum_level(message: pb.QuorumExpr, depth: int) -> QuorumExpr:
    if depth == 0:
        raise Malformed(f"a quorum expression is nested deeper than {limits.QUORUM_DEPTH}", Reason.TOO_LARGE)
    at_most(len(message.candidates), limits.QUORUM_CANDIDATES, "quorum candidates")
    at_most(len(message.subexpressions), limits.QUORUM_CANDIDATES, "quorum subexpressions")
    if not 1 <= message.threshold <= len(message.candidates) + len(message.subexpressions):
        raise Malformed("a quorum threshold lies outside 1..candidates + subexpressions")
    return QuorumExpr(
        threshold=message.threshold,
        candidates=tuple(exact(c, limits.HASH_BYTES, "quorum candidate") for c in message.candidates),
        subexpressions=tuple(_quorum_level(sub, depth - 1) for sub in message.subexpressions),
    )


def quorum_message(expr: QuorumExpr) -> pb.QuorumExpr:
    """The wire form of a quorum expression."""
    return pb.QuorumExpr(
        threshold=expr.threshold,
        candidates=expr.candidates,
        subexpressions=[quorum_message(sub) for sub in expr.subexpressions],
    )


def decode_quorum(data: bytes) -> QuorumExpr:
    """A quorum expression from strict bytes; raises Malformed."""
    return quorum_from(parse(pb.QuorumExpr, data, limits.ENTRY_BYTES, "quorum expression"))


def encode_quorum(expr: QuorumExpr) -> bytes:
    """Strict bytes of a quorum expression."""
    return canonical(quorum_message(expr))


def policy_from(message: pb.AuthorizationPolicy, max_keys: int, what: str) -> AuthorizationPolicy:
    """A policy with distinct 32-byte keys and a quorum over them; raises Malformed."""
    at_most(len(message.public_keys), max_keys, f"keys in {what}")
    keys: dict[bytes, bytes] = {}
    for public_key in message.public_keys:
        key = exact(public_key.ed25519, limits.KEY_BYTES, f"a public key in {what}")
        keys[hashing.key_id(key)] = key
    if len(keys) != len(message.public_keys):
        raise Malformed(f"a public key occurs twice in {what}")
    quorum = quorum_from(message.quorum)
    if not keys.keys() >= set(quorum.all_candidates()):
        raise Malformed(f"a quorum candidate in {what} is not one of its keys")
    return AuthorizationPolicy(keys=keys, quorum=quorum, encoded=canonical(message))


def decode_policy(data: bytes, max_keys: int, what: str) -> AuthorizationPolicy:
    """A policy from strict bytes; raises Malformed."""
    return policy_from(parse(pb.AuthorizationPolicy, data, limits.HEAD_BYTES, what), max_keys, what)


def make_policy(public_keys: list[bytes], quorum: QuorumExpr) -> AuthorizationPolicy:
    """A policy made here; raises Malformed if it would be refused."""
    message = pb.AuthorizationPolicy(
        public_keys=[pb.PublicKey(ed25519=key) for key in public_keys], quorum=quorum_message(quorum)
    )
    return policy_from(message, limits.VERIFICATION_POLICY_KEYS, "policy")


def policy_message(policy: AuthorizationPolicy) -> pb.AuthorizationPolicy:
    """The wire form of a policy."""
    return pb.AuthorizationPolicy.FromString(policy.encoded)


# Entries, updates, profiles


def decode_entry(data: bytes) -> Entry:
    """An entry from strict bytes; shape only, the update law judges versions. Raises Malformed."""
    message = parse(pb.Entry, data, limits.ENTRY_BYTES, "entry")
    policy = None
    if message.HasField("update_policy"):
        policy = policy_from(message.update_policy, limits.UPDATE_POLICY_KEYS, "update policy")
    if message.revocation:
        exact(message.profile_commitment, 0, "profile commitment of a revocation")
        exact(message.previous_entry_hash, 0, "previous entry hash of a revocation")
    else:
        exact(message.profile_commitment, limits.HASH_BYTES, "profile commitment")
        exact(message.previous_entry_hash, limits.HASH_BYTES if message.version else 0, "previous entry hash")
        if policy is None:
            raise Malformed("entry has no update policy")
    return Entry(
        index=exact(message.index, limits.HASH_BYTES, "index"),
        version=message.version,
        update_policy=policy,
        profile_commitment=message.profile_commitment,
        previous_entry_hash=message.previous_entry_hash,
        revocation=message.revocation,
        encoded=data,
        hash=hashing.entry_hash(data),
    )


def encode_entry(
    *,
    index: bytes,
    version: int,
    update_policy: AuthorizationPolicy | None,
    profile_commitment: bytes = b"",
    previous_entry_hash: bytes = b"",
    revocation: bool = False,
) -> bytes:
    """Strict bytes of an entry."""
    message = pb.Entry(
        index=index,
        version=version,
        profile_commitment=profile_commitment,
        previous_entry_hash=previous_entry_hash,
        revocation=revocation,
    )
    if update_policy is not None:
        message.update_policy.CopyFrom(policy_message(update_policy))
    return canonical(message)


def signature_from(message: pb.Signature) -> Signature:
    return Signature(
        key_id=exact(message.key_id, limits.HASH_BYTES, "key id"),
        signature=exact(message.signature, limits.SIGNATURE_BYTES, "signature"),
    )


def update_from(message: pb.SignedEntryUpdate) -> SignedUpdate:
    """A signed update whose signatures are well-formed and by distinct keys; raises Malformed."""
    at_most(len(message.signatures), limits.UPDATE_SIGNATURES, "signatures of an update")
    signatures = tuple(signature_from(s) for s in message.signatures)
    if len({s.key_id for s in signatures}) != len(signatures):
        raise Malformed("two signatures of an update are by one key")
    return SignedUpdate(entry=decode_entry(message.entry), signatures=signatures, encoded=canonical(message))


def decode_update(data: bytes) -> SignedUpdate:
    """A signed update from strict bytes; raises Malformed."""
    return update_from(parse(pb.SignedEntryUpdate, data, 4 * limits.ENTRY_BYTES, "signed update"))


def encode_update(entry: bytes, signatures: list[Signature]) -> bytes:
    """Strict bytes of a signed update."""
    wire = [pb.Signature(key_id=s.key_id, signature=s.signature) for s in signatures]
    return canonical(pb.SignedEntryUpdate(entry=entry, signatures=wire))


def decode_profile(data: bytes) -> Profile:
    """A profile from strict bytes: application names sorted and distinct; raises Malformed."""
    message = parse(pb.Profile, data, limits.PROFILE_BYTES, "profile")
    at_most(len(message.keys), limits.PROFILE_KEYS, "keys in a profile")
    names = [key.application for key in message.keys]
    if any(not APPLICATION.fullmatch(name) for name in names):
        raise Malformed("an application name in a profile is not [a-z0-9-]{1,32}")
    if names != sorted(set(names)):
        raise Malformed("the applications of a profile are not sorted and distinct")
    return Profile(keys={key.application: key.key for key in message.keys}, encoded=data)


def encode_profile(keys: dict[str, bytes]) -> bytes:
    """Strict bytes of a profile."""
    return canonical(pb.Profile(keys=[pb.ApplicationKey(application=a, key=keys[a]) for a in sorted(keys)]))


# Heads


def decode_head(data: bytes) -> EpochHead:
    """An epoch head from strict bytes; raises Malformed."""
    message = parse(pb.EpochHead, data, limits.HEAD_BYTES, "epoch head")
    at_most(len(message.realm), limits.REALM_BYTES, "characters in a realm's name")
    if message.epoch == 0:
        raise Malformed("an epoch head has epoch 0")
    policy = None
    if message.HasField("next_epoch_policy"):
        policy = policy_from(message.next_epoch_policy, limits.VERIFICATION_POLICY_KEYS, "next epoch policy")
    return EpochHead(
        realm=message.realm,
        epoch=message.epoch,
        root_hash=exact(message.root_hash, limits.HASH_BYTES, "root hash"),
        issue_time_ms=message.issue_time_ms,
        previous_head_hash=exact(message.previous_head_hash, limits.HASH_BYTES, "previous head hash"),
        next_epoch_policy=policy,
        history_root=exact(message.history_root, limits.HASH_BYTES, "history root"),
        state_digest=exact(message.state_digest, limits.HASH_BYTES, "state digest"),
        provenance_root=exact(message.provenance_root, limits.HASH_BYTES, "provenance root"),
        realm_hash=exact(message.realm_hash, limits.HASH_BYTES, "realm hash"),
        rules=message.rules,
        provenance_size=message.provenance_size,
        encoded=data,
        hash=hashing.head_hash(data),
    )


def ratification_from(message: pb.Ratification) -> Ratification:
    if not message.signatures:
        raise Malformed("a ratification has no signature")
    return Ratification(
        timestamp_ms=message.timestamp_ms, signatures=tuple(signature_from(s) for s in message.signatures)
    )


def signed_head_from(message: pb.SignedEpochHead) -> SignedHead:
    """A head with its ratifications, at most 64 signatures in all; raises Malformed."""
    count = sum(len(r.signatures) for r in message.ratifications)
    at_most(max(count, len(message.ratifications)), limits.RATIFICATIONS_PER_HEAD, "ratifications of a head")
    ratifications = tuple(ratification_from(r) for r in message.ratifications)
    return SignedHead(head=decode_head(message.head), ratifications=ratifications, encoded=canonical(message))


def decode_signed_head(data: bytes) -> SignedHead:
    """A signed epoch head from strict bytes; raises Malformed."""
    return signed_head_from(parse(pb.SignedEpochHead, data, limits.SIGNED_HEAD_BYTES, "signed epoch head"))


def encode_signed_head(head: bytes, ratifications: list[Ratification]) -> bytes:
    """Strict bytes of a signed epoch head."""
    wire = [
        pb.Ratification(
            timestamp_ms=r.timestamp_ms,
            signatures=[pb.Signature(key_id=s.key_id, signature=s.signature) for s in r.signatures],
        )
        for r in ratifications
    ]
    return canonical(pb.SignedEpochHead(head=head, ratifications=wire))
