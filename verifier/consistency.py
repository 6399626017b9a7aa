"""One history: that a newer head continues an older one the client holds (RFC 6962 section 2.1, contract
section 3)."""

from __future__ import annotations

from verifier.errors import HistoryConflict, VerificationError
from verifier.lookup import Trust, verify_head
from verifier.merkle import history
from verifier.types import ConsistencyProof, EpochHead, SignedHead


def verify_consistency(trust: Trust, held: SignedHead, proof: ConsistencyProof) -> SignedHead:
    """The newer head of `proof`, validly signed and continuing `held`, whose bytes the client keeps itself.

    `trust.replicas` is P(n) of the newer head. A historic lookup is placed in the newest history the same
    way, with
    the looked-up head as `held`. Raises HistoryConflict with both heads, VerificationError, NotRatified.
    """
    new = proof.new_head
    if new.head.epoch < held.head.epoch:
        raise VerificationError("history", "the newer head of a consistency proof is the older one")
    verify_head(trust, new, now_ms=None)
    if proof.old_head.head.epoch != held.head.epoch:
        raise VerificationError("history", "a consistency proof starts at another epoch than asked")
    if not continues(held.head, new.head, proof.inclusion, proof.consistency):
        what = f"head {new.head.epoch} does not continue head {held.head.epoch}"
        raise HistoryConflict(what, held.encoded, new.encoded)
    return new


def continues(
    old: EpochHead, new: EpochHead, inclusion: tuple[bytes, ...], consistency: tuple[bytes, ...]
) -> bool:
    """Whether the two paths show that `new` continues `old`: both heads in one append-only log of heads.

    Same epoch: equal bytes. Next epoch: previous_head_hash takes the place of inclusion.
    """
    if new.epoch == old.epoch:
        return new.encoded == old.encoded and not inclusion and not consistency
    if new.epoch == old.epoch + 1:
        included = not inclusion and new.previous_head_hash == old.hash
    else:
        included = history.verify_inclusion(
            old.encoded, old.epoch - 1, new.epoch - 1, inclusion, new.history_root
        )
    return included and history.verify_consistency(
        old.epoch - 1, new.epoch - 1, old.history_root, new.history_root, consistency
    )
