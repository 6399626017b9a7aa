"""The update law (contract section 3): may this signed update replace the current entry of its index?

One function for the server's step, the verifier daemon and the client. Current = last accepted entry of the
index, the
running epoch's included. That the index belongs to the user is private and checked elsewhere.
"""

from __future__ import annotations

from enum import Enum

from verifier import policy
from verifier.crypto import hashing
from verifier.errors import Reason, Refused
from verifier.types import AuthorizationPolicy, Entry, SignedUpdate


class Change(Enum):
    """What an accepted update does."""

    UNCHANGED = "unchanged"  # the bytes equal the current entry: succeeds without writes
    REGISTRATION = "registration"  # needs admission
    UPDATE = "update"
    REVOCATION = "revocation"


def update_message(realm_hash: bytes, entry: bytes) -> bytes:
    """The 32 bytes that an update's signatures are over."""
    return hashing.tagged("e2eks/1/update", realm_hash, entry)


def verify_update(
    current: Entry | None, update: SignedUpdate, *, realm_hash: bytes, pending: bool = False
) -> Change:
    """The change that `update` makes to `current`; `pending` = an update of this epoch was already accepted.

    Raises Refused with UPDATE_PENDING, VERSION_MISMATCH, REVOKED or NOT_AUTHORIZED.
    """
    entry = update.entry
    if current is not None and entry.encoded == current.encoded:
        return Change.UNCHANGED
    if pending:
        raise Refused(Reason.UPDATE_PENDING, "the index has an update in this epoch already")
    change = _versions(current, entry)
    required = _required_policies(change, current, entry)
    known = {key_id: key for law in required for key_id, key in law.keys.items()}
    if any(signature.key_id not in known for signature in update.signatures):
        raise Refused(Reason.NOT_AUTHORIZED, "a signature is by a key that no required policy names")
    message = update_message(realm_hash, entry.encoded)
    signers, _ = policy.valid_signers(known, message, update.signatures)
    if not all(policy.satisfied(law.quorum, signers) for law in required):
        raise Refused(Reason.NOT_AUTHORIZED, "the signatures do not satisfy the required policies")
    return change


def _versions(current: Entry | None, entry: Entry) -> Change:
    if current is None:
        if entry.revocation or entry.version != 0:
            raise Refused(Reason.VERSION_MISMATCH, "the index has no entry: only version 0 can be registered")
        return Change.REGISTRATION
    if current.revocation and entry.revocation:
        raise Refused(Reason.REVOKED, "the entry is revoked already")
    if entry.revocation:
        if entry.version <= current.version:
            raise Refused(Reason.VERSION_MISMATCH, "a revocation must have a version above the current one")
        return Change.REVOCATION
    if entry.version != current.version + 1 or entry.previous_entry_hash != current.hash:
        if current.revocation:
            raise Refused(Reason.REVOKED, "the entry is revoked: only a new registration can follow it")
        what = f"the next version is {current.version + 1}, with the hash of the current entry"
        raise Refused(Reason.VERSION_MISMATCH, what)
    return Change.REGISTRATION if current.revocation else Change.UPDATE


def _required_policies(change: Change, current: Entry | None, entry: Entry) -> list[AuthorizationPolicy]:
    """The policies whose quorums must all have signed, by kind of change."""
    before = current.update_policy if current is not None else None
    needed = {
        Change.REGISTRATION: [entry.update_policy],
        Change.UPDATE: [before, entry.update_policy],
        Change.REVOCATION: [before],
    }[change]
    return [law for law in needed if law is not None]  # decoding gave every entry but a revocation its policy
