"""Updates of one's own entry, made and signed here. Nothing is sent; randomness is handed in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb

from verifier import encoding, limits, update
from verifier import erasure as erasures
from verifier.crypto import commitment
from verifier.crypto.hashing import key_id
from verifier.crypto.signatures import SigningKey
from verifier.errors import Reason, Refused
from verifier.types import AuthorizationPolicy, Entry, QuorumExpr, Realm, Signature, SignedUpdate

# How far ahead of the current version a revocation made in advance lies: beyond a century of updates at the
# limit of 20 a day, and with room for a registration after it.
REVOCATION_AHEAD = 2**20

Randomness = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Draft:
    """An update ready to be sent, any number of times. `profile` and `nonce` are empty in a revocation."""

    user_id: str
    update: SignedUpdate
    profile: bytes
    nonce: bytes
    request_id: bytes


def any_of(public_keys: Collection[bytes]) -> AuthorizationPolicy:
    """The policy that any one of the keys satisfies. Raises Malformed."""
    ids = tuple(key_id(public_key) for public_key in public_keys)
    return encoding.make_policy(list(public_keys), QuorumExpr(threshold=1, candidates=ids))


def registration(
    realm: Realm,
    user_id: str,
    index: bytes,
    keys: Mapping[str, bytes],
    signers: Collection[SigningKey],
    *,
    policy: AuthorizationPolicy,
    revoked: Entry | None,
    randomness: Randomness,
) -> Draft:
    """The first entry of a free name, or the one after a revocation. Raises Malformed, Refused."""
    return _draft(realm, user_id, index, revoked, keys, signers, policy, randomness)


def change(
    realm: Realm,
    user_id: str,
    current: Entry,
    keys: Mapping[str, bytes],
    signers: Collection[SigningKey],
    *,
    policy: AuthorizationPolicy | None,
    randomness: Randomness,
) -> Draft:
    """The next version of `current` with the given keys; `policy` None = unchanged.

    Raises Malformed, Refused.
    """
    if current.revocation or current.update_policy is None:
        raise Refused(Reason.REVOKED, "the entry is revoked: register the name anew")
    return _draft(
        realm, user_id, current.index, current, keys, signers, policy or current.update_policy, randomness
    )


def _draft(
    realm: Realm,
    user_id: str,
    index: bytes,
    previous: Entry | None,
    keys: Mapping[str, bytes],
    signers: Collection[SigningKey],
    policy: AuthorizationPolicy,
    randomness: Randomness,
) -> Draft:
    version = 0 if previous is None else previous.version + 1
    profile = encoding.encode_profile(dict(keys))
    encoding.decode_profile(profile)  # what a server would refuse is refused here, in the same words
    nonce = randomness(limits.NONCE_BYTES)
    entry = encoding.encode_entry(
        index=index,
        version=version,
        update_policy=policy,
        profile_commitment=commitment.commit(nonce, index, version, profile),
        previous_entry_hash=b"" if previous is None else previous.hash,
    )
    signed = _signed(realm, previous, encoding.decode_entry(entry), signers)
    return Draft(user_id, signed, profile, nonce, randomness(limits.REQUEST_ID_BYTES))


def revocation(
    realm: Realm, current: Entry, signers: Collection[SigningKey], *, ahead: int = 1
) -> SignedUpdate:
    """The end of `current`, `ahead` versions after it. Raises Refused.

    With REVOCATION_AHEAD it stays valid while the entry's policy stays the same: keep it apart from the keys.
    """
    entry = encoding.encode_entry(
        index=current.index, version=current.version + ahead, update_policy=None, revocation=True
    )
    return _signed(realm, current, encoding.decode_entry(entry), signers)


def revocation_draft(user_id: str, signed: SignedUpdate, randomness: Randomness) -> Draft:
    """A revocation made before, ready to be sent."""
    return Draft(user_id, signed, b"", b"", randomness(limits.REQUEST_ID_BYTES))


def erasure(
    realm: Realm, user_id: str, current: Entry, signers: Collection[SigningKey], randomness: Randomness
) -> bytes:
    """The encoded EraseRequest for a user whose entry is `current`. Raises Refused (NOT_AUTHORIZED).

    For a revoked entry all signers sign: the policy that counts is no longer in sight.
    """
    law = current.update_policy if not current.revocation else None
    message = erasures.erasure_message(realm.hash, current.index, current.hash)
    made = [
        Signature(key_id=key_id(signer.public_key), signature=signer.sign(message))
        for signer in signers
        if law is None or key_id(signer.public_key) in law.keys
    ]
    if law is not None:
        erasures.verify_erasure(law, message, made)
    request = client_pb2.EraseRequest(
        user_id=user_id,
        index=current.index,
        entry_hash=current.hash,
        signatures=[pb.Signature(key_id=s.key_id, signature=s.signature) for s in made],
        request_id=randomness(limits.REQUEST_ID_BYTES),
    )
    return encoding.canonical(request)


def _signed(
    realm: Realm, current: Entry | None, entry: Entry, signers: Collection[SigningKey]
) -> SignedUpdate:
    """`entry` signed by those of `signers` that the policies name, if the update law accepts it."""
    policies = (current.update_policy if current else None, entry.update_policy)
    named = {known for policy in policies if policy is not None for known in policy.keys}
    message = update.update_message(realm.hash, entry.encoded)
    made = [
        Signature(key_id=key_id(signer.public_key), signature=signer.sign(message))
        for signer in signers
        if key_id(signer.public_key) in named
    ]
    signed = encoding.decode_update(encoding.encode_update(entry.encoded, made))
    update.verify_update(current, signed, realm_hash=realm.hash)
    return signed
