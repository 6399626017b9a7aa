"""The replica set law: how one set of replicas becomes another, and who must have agreed to it.

One key is added, removed or replaced at a time. A majority of the present replicas approves, and every key
that is added too: whoever mistypes a key, or names one that nobody holds, cannot make a head wait for its
signature. An approval is over the exact change, which names the head that introduced the present policy; so
it serves once, at one place of the policy chain, and until a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from e2eks.v1 import types_pb2 as pb

from verifier import encoding, limits, policy
from verifier.crypto import hashing, signatures
from verifier.crypto.signatures import SigningKey
from verifier.encoding import at_most, canonical, exact
from verifier.errors import Malformed, Reason, Refused
from verifier.types import AuthorizationPolicy, Signature


@dataclass(frozen=True, slots=True)
class ReplicaSetChange:
    """What is approved. `base` is the hash of the head that introduced the present policy (the realm hash
    before the first change), `policy` what follows, `not_after_ms` log time.
    """

    base: bytes
    policy: AuthorizationPolicy
    not_after_ms: int
    encoded: bytes


@dataclass(frozen=True, slots=True)
class Approvals:
    """Who has validly approved a change, and what it lacks: so many more of the present replicas, and these
    added keys.
    """

    valid: frozenset[bytes]
    missing: int
    unconfirmed: tuple[bytes, ...]

    @property
    def complete(self) -> bool:
        """Whether the change may be submitted."""
        return not self.missing and not self.unconfirmed


def check_change(current: AuthorizationPolicy, new: AuthorizationPolicy) -> None:
    """Raises Refused unless `new` has one key added, removed or replaced and is a majority of its keys."""
    added, removed = new.keys.keys() - current.keys.keys(), current.keys.keys() - new.keys.keys()
    if not (added or removed) or len(added) > 1 or len(removed) > 1:
        what = (
            f"the change adds {len(added)} keys and removes {len(removed)}; it may add, remove or replace one"
        )
        raise Refused(Reason.MALFORMED, what)
    if not new.keys or new.quorum != policy.majority(tuple(new.keys)):
        raise Refused(Reason.MALFORMED, "the new policy is not a majority of its keys, in their order")


def make_change(
    base: bytes,
    current: AuthorizationPolicy,
    *,
    add: bytes | None = None,
    remove: bytes | None = None,
    not_after_ms: int,
) -> ReplicaSetChange:
    """The change that adds a public key, removes a key id, or puts the one in the place of the other.

    Raises Refused for a change that is none, or unlawful.
    """
    if remove is not None and remove not in current.keys:
        raise Refused(Reason.MALFORMED, "the key to be removed is no replica's")
    if add is not None and not signatures.is_valid_public_key(add):
        raise Refused(Reason.MALFORMED, "the key to be added is not an Ed25519 public key")
    keys = [add if key_id == remove else key for key_id, key in current.keys.items()]
    keys += [add] if remove is None else []
    kept = [key for key in keys if key is not None]
    if not kept:
        raise Refused(Reason.MALFORMED, "the last replica cannot be removed")
    new = encoding.make_policy(kept, policy.majority([hashing.key_id(key) for key in kept]))
    check_change(current, new)
    wire = pb.ReplicaSetChange(base=base, policy=encoding.policy_message(new), not_after_ms=not_after_ms)
    return decode_change(canonical(wire))


def decode_change(data: bytes) -> ReplicaSetChange:
    """A change from strict bytes; shape only, `check_change` judges it. Raises Malformed."""
    message = encoding.parse(pb.ReplicaSetChange, data, limits.HEAD_BYTES, "change of the replicas")
    most = limits.VERIFICATION_POLICY_KEYS
    return ReplicaSetChange(
        base=exact(message.base, limits.HASH_BYTES, "base of a change of the replicas"),
        policy=encoding.policy_from(message.policy, most, "policy of the replicas to come"),
        not_after_ms=message.not_after_ms,
        encoded=data,
    )


def approval_message(realm_hash: bytes, change: bytes) -> bytes:
    """The 32 bytes that an approval is over: the exact bytes of a ReplicaSetChange, in one realm."""
    return hashing.tagged("e2eks/1/replica-set", realm_hash, change)


def approve(key: SigningKey, realm_hash: bytes, change: ReplicaSetChange) -> Signature:
    """The approval by the holder of a present replica's head key, or of the one to be added."""
    made = key.sign(approval_message(realm_hash, change.encoded))
    return Signature(hashing.key_id(key.public_key), made)


def check_approvals(made: Sequence[Signature]) -> tuple[Signature, ...]:
    """At most APPROVALS signatures by distinct keys. Raises Malformed."""
    at_most(len(made), limits.APPROVALS, "approvals of a change")
    if len({signature.key_id for signature in made}) != len(made):
        raise Malformed("two approvals are by one key")
    return tuple(made)


def approvals(
    realm_hash: bytes,
    current: AuthorizationPolicy,
    change: ReplicaSetChange,
    made: Sequence[Signature],
) -> Approvals:
    """What the signatures amount to; those by strangers, and those that do not verify, count for nothing."""
    message = approval_message(realm_hash, change.encoded)
    valid, _ = policy.valid_signers({**change.policy.keys, **current.keys}, message, made)
    present = len(valid & current.keys.keys())
    added = tuple(key_id for key_id in change.policy.keys if key_id not in current.keys)
    majority = len(current.keys) // 2 + 1
    return Approvals(
        valid=frozenset(valid),
        missing=max(majority - present, 0),
        unconfirmed=tuple(key_id for key_id in added if key_id not in valid),
    )
