"""The head law: what a head must say, who must have signed it, and how the replicas' policy changes from head
to head.

The server's step composes with these functions and the verifier daemon checks with them, so the server cannot
emit what
its verifiers refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from e2eks.v1 import types_pb2 as pb

from verifier import encoding, limits, policy, replica_set
from verifier.crypto import hashing, signatures
from verifier.errors import Refused, VerificationError
from verifier.types import AuthorizationPolicy, EpochHead, Realm, SignedHead


@dataclass(frozen=True, slots=True)
class Chain:
    """Where a history stands after head `epoch` (0 = before the first): what the next head must follow.

    `policy` is P(epoch + 1); `head_hash` is the realm hash at epoch 0.
    """

    epoch: int
    head_hash: bytes
    issue_time_ms: int
    policy: AuthorizationPolicy
    rules: int = 1  # of head `epoch`, and of the updates behind it


def genesis_chain(realm: Realm) -> Chain:
    """The chain before epoch 1."""
    return Chain(epoch=0, head_hash=realm.hash, issue_time_ms=0, policy=realm.genesis_policy)


def replica_message(head: bytes, timestamp_ms: int) -> bytes:
    """What a replica signs; its timestamp is the issue time."""
    return hashing.tagged("e2eks/1/head-replica", head, timestamp_ms.to_bytes(8, "big"))


def verifier_message(head: bytes, timestamp_ms: int) -> bytes:
    """What a verifier signs; its timestamp is its own clock."""
    return hashing.tagged("e2eks/1/head-verifier", head, timestamp_ms.to_bytes(8, "big"))


def compose_head(
    realm: Realm,
    chain: Chain,
    *,
    root_hash: bytes,
    issue_time_ms: int,
    history_root: bytes,
    state_digest: bytes,
    provenance_root: bytes = bytes(limits.HASH_BYTES),
    provenance_size: int = 0,
    next_epoch_policy: AuthorizationPolicy | None = None,
    rules: int | None = None,
) -> bytes:
    """The exact bytes of the head that follows `chain`, of the chain's rules level unless another begins."""
    message = pb.EpochHead(
        realm=realm.name,
        epoch=chain.epoch + 1,
        root_hash=root_hash,
        issue_time_ms=issue_time_ms,
        previous_head_hash=chain.head_hash,
        history_root=history_root,
        state_digest=state_digest,
        provenance_root=provenance_root,
        realm_hash=realm.hash,
        rules=chain.rules if rules is None else rules,
        provenance_size=provenance_size,
    )
    if next_epoch_policy is not None:
        message.next_epoch_policy.CopyFrom(encoding.policy_message(next_epoch_policy))
    return encoding.canonical(message)


def check_realm(realm: Realm, head: EpochHead) -> None:
    """Raises VerificationError unless the head is of this realm and of a rules level this version knows."""
    if head.realm != realm.name:
        raise VerificationError("realm", "the head names another realm")
    if head.realm_hash != realm.hash:
        raise VerificationError("realm", "the head's realm hash differs from the configuration's")
    if not 1 <= head.rules <= limits.RULES:
        what = f"the head follows rules level {head.rules}, this version knows {limits.RULES}: upgrade"
        raise VerificationError("rules", what)


def check_head(
    realm: Realm, chain: Chain, head: EpochHead, *, root_hash: bytes, history_root: bytes
) -> Chain:
    """The chain after `head`, if it follows `chain` with the given roots.

    Everything a verifier claims about a head but its signatures. Raises VerificationError naming the
    difference.
    """
    check_realm(realm, head)
    compared = (
        ("epoch", head.epoch, chain.epoch + 1),
        ("previous head hash", head.previous_head_hash, chain.head_hash),
        ("root hash", head.root_hash, root_hash),
        ("history root", head.history_root, history_root),
    )
    for name, said, expected in compared:
        if said != expected:
            raise VerificationError("head", f"{name} of head {head.epoch} differs from the replayed one")
    if head.issue_time_ms <= chain.issue_time_ms:
        raise VerificationError("head", f"head {head.epoch} was not issued after its predecessor")
    if head.rules - chain.rules not in (0, 1):
        raise VerificationError("rules", f"head {head.epoch} does not continue rules level {chain.rules}")
    if head.next_epoch_policy is not None:
        check_policy_change(chain.policy, head.next_epoch_policy)
    return follow(chain, head)


def follow(chain: Chain, head: EpochHead) -> Chain:
    """The chain after a head already known to follow: P(n+1) is its next_epoch_policy if present, else
    P(n)."""
    return Chain(
        epoch=head.epoch,
        head_hash=head.hash,
        issue_time_ms=head.issue_time_ms,
        policy=head.next_epoch_policy or chain.policy,
        rules=head.rules,
    )


def check_policy_change(law: AuthorizationPolicy, new: AuthorizationPolicy) -> None:
    """Raises VerificationError unless the replica set law lets `new` follow `law`."""
    try:
        replica_set.check_change(law, new)
    except Refused as refusal:
        raise VerificationError("policy", refusal.what) from None


@dataclass(frozen=True, slots=True)
class Signers:
    """Who validly signed a head: replicas, verifiers with their timestamps; and whose signatures failed."""

    replicas: frozenset[bytes]
    verifiers: Mapping[bytes, int]
    failed: frozenset[bytes]


def signers(
    head: SignedHead,
    replicas: Mapping[bytes, bytes],
    verifiers: Mapping[bytes, bytes],
    wanted: Iterable[bytes],
) -> Signers:
    """Check the signatures of `head` by keys in `wanted`; others are passed over unchecked.

    A replica's timestamp is the issue time. A verifier that signed twice counts with its newest timestamp.
    """
    needed = set(wanted)
    valid_replicas: set[bytes] = set()
    valid_verifiers: dict[bytes, int] = {}
    failed: set[bytes] = set()
    for ratification in head.ratifications:
        time_ms = ratification.timestamp_ms
        for made in ratification.signatures:
            key_id = made.key_id
            if key_id not in needed:
                continue
            if key_id in replicas:
                message = replica_message(head.head.encoded, time_ms)
                ok = time_ms == head.head.issue_time_ms and signatures.verify(
                    replicas[key_id], message, made.signature
                )
                (valid_replicas if ok else failed).add(key_id)
            elif key_id in verifiers:
                message = verifier_message(head.head.encoded, time_ms)
                if signatures.verify(verifiers[key_id], message, made.signature):
                    valid_verifiers[key_id] = max(time_ms, valid_verifiers.get(key_id, 0))
                else:
                    failed.add(key_id)
    failed -= valid_replicas | valid_verifiers.keys()
    return Signers(frozenset(valid_replicas), valid_verifiers, frozenset(failed))


def signing_keys(law: AuthorizationPolicy, head: EpochHead) -> Mapping[bytes, bytes]:
    """Whose signatures head n needs: the keys of P(n) and, if it changes the policy, those of P(n+1)."""
    change = head.next_epoch_policy
    return law.keys if change is None else {**law.keys, **change.keys}


def has_majority(law: AuthorizationPolicy, head: EpochHead, signers: Collection[bytes]) -> bool:
    """Whether these signers satisfy P(n), and a majority of the new keys if the head changes the policy."""
    change = head.next_epoch_policy
    if not policy.satisfied(law.quorum, signers):
        return False
    return change is None or policy.satisfied(policy.majority(tuple(change.keys)), signers)


def check_majority(law: AuthorizationPolicy, head: SignedHead) -> None:
    """Raises VerificationError unless signatures satisfy P(n), and the new keys' majority too if the policy
    changes."""
    valid = signers(head, law.keys, {}, law.quorum.all_candidates()).replicas
    if not policy.satisfied(law.quorum, valid):
        raise VerificationError(
            "signature", f"head {head.head.epoch} lacks the signatures of its replicas' policy"
        )
    change = head.head.next_epoch_policy
    if change is not None:
        valid = signers(head, change.keys, {}, change.keys).replicas
        if not policy.satisfied(policy.majority(tuple(change.keys)), valid):
            what = f"the policy change in head {head.head.epoch} lacks a majority of the new keys"
            raise VerificationError("signature", what)


def policy_at(realm: Realm, changes: Iterable[SignedHead], epoch: int) -> AuthorizationPolicy:
    """P(epoch), the last of `policies_until`."""
    return policies_until(realm, changes, epoch)[-1]


def policies_until(
    realm: Realm, changes: Iterable[SignedHead], epoch: int
) -> tuple[AuthorizationPolicy, ...]:
    """P(1) to P(epoch), repeats left out, following the heads that changed the policy, in order, from
    genesis.

    Raises VerificationError unless every change is of this realm, in order, and signed under the policy
    before it.
    """
    law = realm.genesis_policy
    followed = [law]
    last = 0
    for change in changes:
        head = change.head
        if head.epoch >= epoch:
            break
        check_realm(realm, head)
        if head.epoch <= last or head.next_epoch_policy is None:
            raise VerificationError("policy", "the chain of policy heads is out of order or without a change")
        check_majority(law, change)
        law, last = head.next_epoch_policy, head.epoch
        followed.append(law)
    return tuple(followed)
