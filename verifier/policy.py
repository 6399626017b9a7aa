"""Quorum arithmetic: who must sign, who signed, and whether two clients can be shown different worlds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from verifier.crypto import signatures
from verifier.types import AuthorizationPolicy, QuorumExpr, Signature


def satisfied(expr: QuorumExpr, signers: Collection[bytes]) -> bool:
    """Whether the key ids in `signers` satisfy the expression."""
    count = 0
    for candidate in expr.candidates:
        count += candidate in signers
    for sub in expr.subexpressions:
        count += satisfied(sub, signers)
    return count >= expr.threshold


def valid_signers(
    keys: Mapping[bytes, bytes], message: bytes, made: Iterable[Signature]
) -> tuple[set[bytes], set[bytes]]:
    """Key ids among `keys` whose signature over `message` is valid, and those whose is not; others are
    ignored."""
    valid: set[bytes] = set()
    invalid: set[bytes] = set()
    for signature in made:
        public_key = keys.get(signature.key_id)
        if public_key is not None:
            ok = signatures.verify(public_key, message, signature.signature)
            (valid if ok else invalid).add(signature.key_id)
    return valid, invalid - valid


def majority(key_ids: Collection[bytes]) -> QuorumExpr:
    """More than half of the given keys, in the given order."""
    return QuorumExpr(threshold=len(key_ids) // 2 + 1, candidates=tuple(key_ids))


def default_quorum(replicas: Collection[bytes], verifiers: Collection[bytes]) -> QuorumExpr:
    """Majority of replicas and majority of verifiers; of replicas alone while there is no verifier."""
    if not verifiers:
        return majority(replicas)
    return QuorumExpr(threshold=2, subexpressions=(majority(replicas), majority(verifiers)))


def succeed(expr: QuorumExpr, policies: Sequence[AuthorizationPolicy]) -> QuorumExpr:
    """What `expr` asks of a head whose replicas' policies are `policies`, P(1) to P(n), repeats left out.

    A part that is the quorum of a former policy means the replicas, whoever they are by now: it is read as
    the quorum of P(n). All else, single keys of replicas too, means what it says.
    """
    *former, present = policies
    if not expr.subexpressions:
        asked = expr.threshold, frozenset(expr.candidates)
        known = ((law.quorum.threshold, frozenset(law.quorum.candidates)) for law in former)
        return present.quorum if asked in known else expr
    subexpressions = tuple(succeed(sub, policies) for sub in expr.subexpressions)
    return QuorumExpr(expr.threshold, expr.candidates, subexpressions)


def tolerated_faults(policy: AuthorizationPolicy) -> int:
    """f = (n - 1) // 2 for the n keys of a replicas' policy."""
    return (len(policy.keys) - 1) // 2


def can_split(expr: QuorumExpr, replicas: AbstractSet[bytes]) -> bool:
    """Whether two sets of signers that share no verifier can both satisfy the expression.

    Replicas may sign for both sides (they can lie); each verifier signs for one side. Exact, because a key id
    occurs at
    most once in an expression: the pairs of truth values a node can take follow from those of its children.
    """
    return (True, True) in _reachable(expr, replicas)


def _reachable(expr: QuorumExpr, replicas: AbstractSet[bytes]) -> frozenset[tuple[bool, bool]]:
    children: list[tuple[tuple[bool, bool], ...]] = [
        ((True, True),) if candidate in replicas else ((True, False), (False, True))
        for candidate in expr.candidates
    ]
    children += [tuple(sorted(_reachable(sub, replicas))) for sub in expr.subexpressions]
    counts = {(0, 0)}
    for pairs in children:
        counts = {(a + left, b + right) for a, b in counts for left, right in pairs}
    return frozenset((a >= expr.threshold, b >= expr.threshold) for a, b in counts)
