"""Bytes of requests -> checked values. Pure; any bytes give a value or Refused with its reason.

Unknown fields of a request are passed over, so that newer clients may ask older servers; in what is hashed,
signed or counted (entry, profile, quorum) they are refused, as contract section 2 demands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from e2eks.v1 import client_pb2, verification_pb2
from google.protobuf.message import DecodeError, Message

from verifier import encoding, erasure, limits, realm
from verifier.crypto import commitment
from verifier.encoding import exact
from verifier.errors import Malformed, Reason, Refused
from verifier.types import Profile, QuorumExpr, Realm, Signature, SignedUpdate

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Lookup:
    """`epoch` 0 = the latest that satisfies `quorum`, which is the realm's unless the client named one."""

    user_id: str
    epoch: int
    min_epoch: int
    quorum: QuorumExpr


@dataclass(frozen=True, slots=True)
class Update:
    """`profile` is None in a revocation. `proof` is as received: admission judges it."""

    update: SignedUpdate
    profile: Profile | None
    nonce: bytes
    lookup: Lookup
    proof: client_pb2.RegistrationProof | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """`entry_hash` is that of the entry as the user knows it; signatures are by distinct keys."""

    user_id: str
    index: bytes
    entry_hash: bytes
    signatures: tuple[Signature, ...]


def parse(kind: type[M], data: bytes, what: str, limit: int = limits.REQUEST_BYTES) -> M:
    """The message in a request of at most `limit` bytes. Raises Malformed."""
    if len(data) > limit:
        raise Malformed(f"a request has more than {limit} bytes", Reason.TOO_LARGE)
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise Malformed(f"the request is not an encoded {what}") from None
    return message


def decode_lookup(data: bytes, of: Realm) -> Lookup:
    """A LookupRequest. Raises Refused."""
    return _lookup(parse(client_pb2.LookupRequest, data, "LookupRequest"), of)


def _lookup(message: client_pb2.LookupRequest, of: Realm) -> Lookup:
    user_id = realm.check_user_id(message.user_id, of.domains)
    quorum = of.verification_policy.quorum
    if message.HasField("quorum_requirement"):
        quorum = encoding.quorum_from(message.quorum_requirement)
        known = encoding.encode_quorum(quorum)
        if message.quorum_requirement.SerializeToString(deterministic=True) != known:
            raise Malformed("the quorum has fields that this version does not know")
    if message.epoch and message.epoch < message.min_epoch:
        raise Malformed("the epoch asked for is below min_epoch")
    return Lookup(user_id=user_id, epoch=message.epoch, min_epoch=message.min_epoch, quorum=quorum)


def decode_update(data: bytes, of: Realm) -> Update:
    """An UpdateRequest whose parts fit together, all but the index, which is secret. Raises Refused."""
    message = parse(client_pb2.UpdateRequest, data, "UpdateRequest")
    if not message.HasField("lookup_parameters"):
        raise Malformed("an update request has no lookup_parameters: they name the user")
    lookup = _lookup(message.lookup_parameters, of)
    if lookup.epoch:
        raise Malformed("the epoch in the lookup_parameters of an update is 0")
    if message.request_id:
        exact(message.request_id, limits.REQUEST_ID_BYTES, "request id")
    if not message.HasField("update"):
        raise Malformed("an update request has no update")
    update = encoding.update_from(message.update)
    profile = _profile(update, message.profile, message.profile_nonce)
    proof = message.registration_proof if message.HasField("registration_proof") else None
    return Update(update=update, profile=profile, nonce=message.profile_nonce, lookup=lookup, proof=proof)


def _profile(update: SignedUpdate, profile: bytes, nonce: bytes) -> Profile | None:
    """The profile that the entry commits to; None for a revocation, which has none."""
    entry = update.entry
    if entry.revocation:
        if profile or nonce:
            raise Malformed("a revocation has neither a profile nor a nonce")
        return None
    decoded = encoding.decode_profile(profile)
    exact(nonce, limits.NONCE_BYTES, "profile nonce")
    if commitment.commit(nonce, entry.index, entry.version, profile) != entry.profile_commitment:
        raise Refused(Reason.COMMITMENT_MISMATCH, "the entry does not commit to this profile and nonce")
    return decoded


def decode_erase(data: bytes, of: Realm) -> Erasure:
    """An EraseRequest. Raises Refused."""
    message = parse(client_pb2.EraseRequest, data, "EraseRequest")
    user_id = realm.check_user_id(message.user_id, of.domains)
    if message.request_id:
        exact(message.request_id, limits.REQUEST_ID_BYTES, "request id")
    return Erasure(
        user_id=user_id,
        index=exact(message.index, limits.HASH_BYTES, "index"),
        entry_hash=exact(message.entry_hash, limits.HASH_BYTES, "entry hash"),
        signatures=erasure.check_signatures([encoding.signature_from(s) for s in message.signatures]),
    )


def decode_consistency(data: bytes) -> tuple[int, int]:
    """(old epoch, new epoch) of a ConsistencyRequest; new 0 = the latest. Raises Refused."""
    message = parse(client_pb2.ConsistencyRequest, data, "ConsistencyRequest")
    if message.old_epoch == 0 or (message.new_epoch and message.new_epoch < message.old_epoch):
        raise Malformed("a consistency proof leads from an epoch, 1 or later, to the same or a later one")
    return message.old_epoch, message.new_epoch


def decode_policy_heads(data: bytes) -> int:
    """The first epoch of a PolicyHeadsRequest. Raises Malformed."""
    return parse(client_pb2.PolicyHeadsRequest, data, "PolicyHeadsRequest").start_epoch


def decode_get_realm(data: bytes) -> None:
    """A GetRealmRequest, which says nothing. Raises Malformed."""
    parse(client_pb2.GetRealmRequest, data, "GetRealmRequest")


def decode_verifier_stream(data: bytes) -> tuple[int, int]:
    """(index of the first step, steps wanted; 0 = follow for ever). Raises Malformed."""
    message = parse(verification_pb2.VerifierStreamRequest, data, "VerifierStreamRequest")
    if message.start == 0:
        raise Malformed("verifier steps are numbered from 1")
    return message.start, message.page_size
