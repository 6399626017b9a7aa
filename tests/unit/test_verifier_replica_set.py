"""The replica set law: what may follow what, who must have agreed, and for which one place of the chain."""

from collections.abc import Sequence

import pytest
from workload.cast import Key, derive, majority_of, policy_of

from verifier import policy, replica_set
from verifier.encoding import canonical
from verifier.errors import Malformed, Reason, Refused
from verifier.types import AuthorizationPolicy, QuorumExpr

REALM, BASE = derive("realm"), derive("base")
A, B, C, D, E = (Key("replica", name) for name in "abcde")
THREE = majority_of([A, B, C])


def change(add: Key | None = None, remove: Key | None = None) -> replica_set.ReplicaSetChange:
    added, removed = add and add.public_key, remove and remove.id
    return replica_set.make_change(BASE, THREE, add=added, remove=removed, not_after_ms=5)


@pytest.mark.parametrize(
    ("add", "remove", "after"),
    [(D, None, [A, B, C, D]), (None, B, [A, C]), (D, B, [A, D, C])],
)
def test_one_key_is_added_removed_or_put_in_the_place_of_another(
    add: Key | None, remove: Key | None, after: Sequence[Key]
) -> None:
    made = change(add, remove)
    assert made.policy == majority_of(after)
    assert (made.base, made.not_after_ms) == (BASE, 5)
    assert replica_set.decode_change(made.encoded) == made
    replica_set.check_change(THREE, made.policy)


@pytest.mark.parametrize(
    "unlawful",
    [
        THREE,
        majority_of([C, B, A]),
        majority_of([A, B, C, D, E]),
        majority_of([A]),
        majority_of([A, D, E]),
        policy_of([A, B, C, D], 2),
        policy_of([A, B, C, D], 4),
        policy_of([A, B], 1),
    ],
)
def test_more_than_one_key_or_no_majority_is_unlawful(unlawful: AuthorizationPolicy) -> None:
    with pytest.raises(Refused) as refused:
        replica_set.check_change(THREE, unlawful)
    assert refused.value.reason is Reason.MALFORMED


def test_what_cannot_be_changed_is_not_made() -> None:
    one = majority_of([A])
    for current, add, remove in (
        (THREE, None, None), (THREE, A.public_key, None), (THREE, None, D.id), (THREE, bytes(32), None),
        (one, None, A.id), (THREE, B.public_key, A.id),
    ):  # fmt: skip
        with pytest.raises(Refused):
            replica_set.make_change(BASE, current, add=add, remove=remove, not_after_ms=5)


@pytest.mark.parametrize(
    ("by", "missing", "unconfirmed"),
    [
        ([A, B, D], 0, ()),
        ([A, B], 0, (D,)),
        ([A, D], 1, ()),
        ([], 2, (D,)),
        ([A, E, D], 1, ()),
    ],
)
def test_a_majority_of_the_present_keys_and_every_added_key_approve(
    by: Sequence[Key], missing: int, unconfirmed: Sequence[Key]
) -> None:
    made = change(D, C)
    message = replica_set.approval_message(REALM, made.encoded)
    found = replica_set.approvals(REALM, THREE, made, [key.signature(message) for key in by])
    assert found.valid == {key.id for key in by} - {E.id}
    assert (found.missing, found.unconfirmed) == (missing, tuple(key.id for key in unconfirmed))
    assert found.complete is (not missing and not unconfirmed)


def test_an_approval_is_for_one_change_of_one_realm() -> None:
    made, other = change(D, C), change(D, B)
    of_other = [key.signature(replica_set.approval_message(REALM, other.encoded)) for key in (A, B, D)]
    assert replica_set.approvals(REALM, THREE, made, of_other).valid == frozenset()
    elsewhere = [
        key.signature(replica_set.approval_message(derive("other"), made.encoded)) for key in (A, B, D)
    ]
    assert replica_set.approvals(REALM, THREE, made, elsewhere).valid == frozenset()


def test_the_approvals_of_a_change_are_by_distinct_keys_and_bounded() -> None:
    made = A.signature(bytes(32))
    assert replica_set.check_approvals([made]) == (made,)
    with pytest.raises(Malformed):
        replica_set.check_approvals([made, made])
    with pytest.raises(Malformed) as refused:
        replica_set.check_approvals([Key(number).signature(bytes(32)) for number in range(66)])
    assert refused.value.reason is Reason.TOO_LARGE


def test_bytes_that_are_no_change_are_malformed() -> None:
    good = change(D).encoded
    wire = replica_set.pb.ReplicaSetChange.FromString(good)
    wire.base = b"short"
    for bad in (b"", good + b"\x00", good[:-1], canonical(wire)):
        with pytest.raises(Malformed):
            replica_set.decode_change(bad)


# What a quorum means after a change


def test_a_part_that_means_the_replicas_follows_them_and_all_else_stays() -> None:
    verifiers = QuorumExpr(2, (D.id, E.id))
    after = majority_of([A, B, Key("new")])
    both = QuorumExpr(2, (), (THREE.quorum, verifiers))
    assert policy.succeed(both, [THREE]) == both
    assert policy.succeed(both, [THREE, after]) == QuorumExpr(2, (), (after.quorum, verifiers))
    assert policy.succeed(THREE.quorum, [THREE, after, majority_of([A])]) == majority_of([A]).quorum
    any_order = QuorumExpr(2, (C.id, A.id, B.id))
    assert policy.succeed(any_order, [THREE, after]) == after.quorum
    for own in (QuorumExpr(1, (A.id, B.id, C.id)), QuorumExpr(2, (A.id, B.id)), QuorumExpr(1, (C.id,))):
        assert policy.succeed(own, [THREE, after]) == own
