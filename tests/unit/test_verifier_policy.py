"""Quorum arithmetic against enumeration, and the split-view question against brute force."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from samples import ALICE, BOB, EVE

from verifier import policy
from verifier.types import QuorumExpr

IDS = [bytes([n]) * 32 for n in range(7)]


@st.composite
def read_once(draw: st.DrawFn) -> QuorumExpr:
    """Any expression of depth <= 3 in which each of at most seven key ids occurs at most once."""
    groups = draw(st.lists(st.integers(0, 3), min_size=len(IDS), max_size=len(IDS)))
    top = [i for i, g in zip(IDS, groups, strict=True) if g == 0]
    subs = []
    for group in (1, 2, 3):
        members = tuple(i for i, g in zip(IDS, groups, strict=True) if g == group)
        if members:
            subs.append(QuorumExpr(draw(st.integers(1, len(members))), members))
    if len(subs) > 1 and draw(st.booleans()):
        pair = QuorumExpr(draw(st.integers(1, 2)), (), tuple(subs[:2]))
        subs = [pair, *subs[2:]]
    return QuorumExpr(draw(st.integers(1, len(top) + len(subs))), tuple(top), tuple(subs))


def enumerated(expr: QuorumExpr, signers: frozenset[bytes]) -> bool:
    """The dumb twin: collect every part's truth value, then count."""
    parts = [c in signers for c in expr.candidates] + [enumerated(s, signers) for s in expr.subexpressions]
    return parts.count(True) >= expr.threshold


@given(read_once(), st.frozensets(st.sampled_from(IDS)))
def test_quorum_is_true_iff_enough_candidates_and_subexpressions_are(
    expr: QuorumExpr, signers: frozenset[bytes]
) -> None:
    assert policy.satisfied(expr, signers) == enumerated(expr, signers)


@given(read_once(), st.frozensets(st.sampled_from(IDS)))
def test_can_split_agrees_with_trying_every_division_of_the_verifiers(
    expr: QuorumExpr, replicas: frozenset[bytes]
) -> None:
    verifiers = [i for i in IDS if i not in replicas]
    divisions = product((False, True), repeat=len(verifiers))
    expected = False
    for division in divisions:
        left = replicas | {v for v, side in zip(verifiers, division, strict=True) if side}
        right = replicas | {v for v, side in zip(verifiers, division, strict=True) if not side}
        expected = expected or (enumerated(expr, left) and enumerated(expr, right))
    assert policy.can_split(expr, replicas) == expected


def test_default_quorum_needs_a_majority_of_replicas_and_of_verifiers_and_cannot_be_split() -> None:
    replicas, verifiers = IDS[:3], IDS[3:6]
    expr = policy.default_quorum(replicas, verifiers)
    assert policy.satisfied(expr, {*replicas[:2], *verifiers[:2]})
    assert not policy.satisfied(expr, {*replicas, verifiers[0]})
    assert not policy.satisfied(expr, {replicas[0], *verifiers})
    assert not policy.can_split(expr, frozenset(replicas))


def test_one_of_two_verifiers_can_be_split() -> None:
    replicas, verifiers = IDS[:1], IDS[1:3]
    expr = QuorumExpr(2, (), (policy.majority(replicas), QuorumExpr(1, tuple(verifiers))))
    assert policy.can_split(expr, frozenset(replicas))


def test_a_quorum_of_replicas_alone_can_be_split_by_lying_replicas() -> None:
    assert policy.can_split(policy.default_quorum(IDS[:3], []), frozenset(IDS[:3]))


def test_only_valid_signatures_by_known_keys_count() -> None:
    message = b"message"
    keys = {ALICE.id: ALICE.public, BOB.id: BOB.public}
    wrong = BOB.sign(b"another message")
    valid, invalid = policy.valid_signers(keys, message, [ALICE.sign(message), wrong, EVE.sign(message)])
    assert valid == {ALICE.id}
    assert invalid == {BOB.id}


def test_majority_is_more_than_half() -> None:
    assert [policy.majority(IDS[:n]).threshold for n in range(1, 6)] == [1, 2, 2, 3, 3]
