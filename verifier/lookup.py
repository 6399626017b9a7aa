"""Client acceptance (contract section 3): what a lookup proof proves, to somebody who trusts only a quorum of
keys.

Order of the checks = precedence of the results: what does not verify (VerificationError), then a fork
(HistoryConflict), then too few, stale or older-than-pinned ratifications (NotRatified).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from verifier import epoch as epoch_law
from verifier import limits, policy, proof_encoding
from verifier import realm as realms
from verifier.crypto import commitment, vrf
from verifier.epoch import Signers
from verifier.errors import HistoryConflict, NotRatified, VerificationError
from verifier.merkle import proof as tree
from verifier.types import (
    AuthorizationPolicy,
    Entry,
    LookupProof,
    Profile,
    QuorumExpr,
    Realm,
    SignedHead,
)


@dataclass(frozen=True, slots=True)
class Trust:
    """What a client relies on and remembers.

    `replicas` is P(n) of the head's epoch. `pinned` is the newest head seen of the realm (fork),
    `pinned_epoch` the
    newest epoch accepted under this quorum (rollback).
    """

    realm: Realm
    quorum: QuorumExpr
    replicas: AuthorizationPolicy
    pinned: SignedHead | None = None
    pinned_epoch: int = 0

    @property
    def verifiers(self) -> Mapping[bytes, bytes]:
        """Keys that sign as verifiers: those the realm names that never were a replica's."""
        listed = {v.key_id: v.public_key for v in self.realm.verifiers}
        named = {**self.realm.verification_policy.keys, **listed}
        excluded = self.replicas.keys.keys() | self.realm.genesis_policy.keys.keys()
        return {key_id: key for key_id, key in named.items() if key_id not in excluded}


@dataclass(frozen=True, slots=True)
class Verified:
    """A proof that holds. `signers` are the key ids that the quorum was met with, verifiers with their
    time."""

    user_id: str
    head: SignedHead
    signers: Signers
    proof: LookupProof


@dataclass(frozen=True, slots=True)
class Present(Verified):
    """The user's keys: `profile.keys` by application, as committed to by `entry`."""

    entry: Entry
    profile: Profile


@dataclass(frozen=True, slots=True)
class Absent(Verified):
    """Proven: the epoch has no entry for the user id."""


@dataclass(frozen=True, slots=True)
class Erased(Verified):
    """Proven: there is an entry, but its contents were erased. Never a key."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Revoked(Verified):
    """Proven: the entry was revoked; the name is free for a new registration."""

    entry: Entry


LookupResult = Present | Absent | Erased | Revoked


def verify_lookup(
    trust: Trust, user_id: str, proof: bytes, *, now_ms: int, epoch: int = 0, saved: bool = False
) -> LookupResult:
    """The result that the bytes of a LookupProof prove for `user_id`.

    `epoch` 0 = latest: fresh at `now_ms`, Unix milliseconds, and not older than pinned (a `saved` proof may
    be older);
    otherwise historic: exactly that epoch, whatever its age; its place in the newest history is for
    `consistency.verify_consistency`.
    Raises Malformed, VerificationError, HistoryConflict, NotRatified.
    """
    value = proof_encoding.decode_lookup_proof(proof)
    _check_contents(trust.realm, user_id, value)
    if epoch and value.head.head.epoch != epoch:
        raise VerificationError(
            "head", f"the proof is of epoch {value.head.head.epoch}, not of epoch {epoch}"
        )
    signers = verify_head(trust, value.head, now_ms=None if epoch else now_ms)
    if not epoch and not saved and value.head.head.epoch < trust.pinned_epoch:
        what = f"epoch {value.head.head.epoch} was answered, epoch {trust.pinned_epoch} was seen before"
        raise NotRatified("rollback", what)
    return _result(user_id, value, signers)


def _result(user_id: str, proof: LookupProof, signers: Signers) -> LookupResult:
    entry, profile = proof.entry, proof.profile
    if entry is None:
        return Absent(user_id, proof.head, signers, proof)
    if entry.revocation:
        return Revoked(user_id, proof.head, signers, proof, entry)
    if profile is None:
        return Erased(user_id, proof.head, signers, proof, entry)
    return Present(user_id, proof.head, signers, proof, entry, profile)


def _check_contents(realm: Realm, user_id: str, proof: LookupProof) -> None:
    """All that the head's signatures do not say: user id, realm, VRF, tree, entry, commitment."""
    if proof.user_id != user_id:
        raise VerificationError("user-id", "the proof is for another user id")
    realms.check_user_id(user_id, realm.domains)
    epoch_law.check_realm(realm, proof.head.head)
    output = vrf.verify(realm.vrf_public_key, realms.user_id_alpha(realm.name, user_id), proof.index_proof)
    if output is None:
        raise VerificationError("vrf", "the index proof does not verify under the realm's VRF key")
    if vrf.index(output) != proof.index:
        raise VerificationError("vrf", "the index is not the output of the index proof")
    _check_tree(proof)
    if proof.entry is not None:
        _check_entry(proof.entry, proof)


def _check_tree(proof: LookupProof) -> None:
    existing = proof.tree_proof.existing
    leaf = existing
    if proof.entry is not None:
        leaf = (proof.index, proof.entry.hash)
    elif existing is not None and existing[0] == proof.index:
        raise VerificationError("tree", "an absence proof shows a leaf of the very index")
    root = tree.root_from_path(proof.index, leaf, proof.tree_proof.neighbors)
    if root != proof.head.head.root_hash:
        raise VerificationError("tree", "the tree proof does not lead to the root in the head")


def _check_entry(entry: Entry, proof: LookupProof) -> None:
    if entry.index != proof.index:
        raise VerificationError("entry", "the entry is of another index")
    if proof.profile is None:
        return
    if entry.revocation:
        raise VerificationError("entry", "a revocation comes with a profile")
    made = commitment.commit(proof.profile_nonce, proof.index, entry.version, proof.profile.encoded)
    if made != entry.profile_commitment:
        raise VerificationError("commitment", "the profile is not the one the entry commits to")


def verify_head(trust: Trust, head: SignedHead, *, now_ms: int | None) -> Signers:
    """Who of the quorum signed `head`; `now_ms` None = historic, no freshness.

    Raises VerificationError, HistoryConflict, NotRatified.
    """
    wanted = {*trust.quorum.all_candidates(), *trust.replicas.quorum.all_candidates()}
    epoch_law.check_realm(trust.realm, head.head)
    valid = epoch_law.signers(head, trust.replicas.keys, trust.verifiers, wanted)
    complete = policy.satisfied(trust.quorum, valid.replicas | valid.verifiers.keys())
    if not complete and valid.failed:
        raise VerificationError(
            "signature", f"{len(valid.failed)} needed signatures on the head do not verify"
        )
    _check_fork(trust, head, valid, complete)
    if not complete:
        raise NotRatified("quorum", "the signatures on the head do not satisfy the quorum")
    if now_ms is None:
        return valid
    return _check_fresh(trust, head, valid, now_ms)


def _check_fork(trust: Trust, head: SignedHead, valid: Signers, complete: bool) -> None:
    pinned = trust.pinned
    if pinned is None or pinned.head.epoch != head.head.epoch or pinned.head.encoded == head.head.encoded:
        return
    if complete or policy.satisfied(trust.replicas.quorum, valid.replicas):
        what = f"two different heads of epoch {head.head.epoch} are validly signed"
        raise HistoryConflict(what, pinned.encoded, head.encoded)


def _check_fresh(trust: Trust, head: SignedHead, valid: Signers, now_ms: int) -> Signers:
    issued, ttl = head.head.issue_time_ms, trust.realm.epoch_ttl_ms
    if issued > now_ms + limits.SKEW_MS:
        raise NotRatified("future", f"the head was issued {issued - now_ms} ms after now")
    if now_ms > issued + ttl:
        raise NotRatified("stale", f"the head was issued {now_ms - issued} ms ago, the limit is {ttl} ms")
    fresh = {
        key_id: time_ms
        for key_id, time_ms in valid.verifiers.items()
        if issued - limits.SKEW_MS <= time_ms <= now_ms + limits.SKEW_MS and now_ms <= time_ms + ttl
    }
    if not policy.satisfied(trust.quorum, valid.replicas | fresh.keys()):
        raise NotRatified("stale", "the ratifications that are in time do not satisfy the quorum")
    return Signers(valid.replicas, fresh, valid.failed)
