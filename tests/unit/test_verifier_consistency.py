"""One history between any two heads (contract: ConsistencyProof), accepting and refusing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from samples import REALM, REPLICAS, sign_head
from samples.directory import Directory

from verifier import encoding, proof_encoding
from verifier.consistency import verify_consistency
from verifier.errors import HistoryConflict, NotRatified, VerificationError
from verifier.lookup import Trust
from verifier.types import SignedHead

SIZE = 9
TRUST = Trust(realm=REALM, quorum=REALM.verification_policy.quorum, replicas=REALM.genesis_policy)


def history(other_from: int = SIZE + 1) -> Directory:
    """Nine epochs; from `other_from` on they differ from those of `history()`."""
    made = Directory()
    for epoch in range(1, SIZE + 1):
        made.put(f"user{epoch if epoch < other_from else -epoch}@example.test")
        made.close()
    return made


D = history()


def check(held: SignedHead, proof: bytes) -> SignedHead:
    return verify_consistency(TRUST, held, proof_encoding.decode_consistency_proof(proof))


@pytest.mark.parametrize("old", range(1, SIZE + 1))
def test_every_newer_head_continues_every_older_one(old: int) -> None:
    for new in range(old, SIZE + 1):
        assert check(D.signed(old), D.consistency(old, new)).head.encoded == D.heads[new - 1]


@pytest.mark.parametrize("old", range(1, SIZE))
def test_head_of_another_history_does_not_continue_the_held_one(old: int) -> None:
    fork = history(other_from=old)
    for new in range(old, SIZE + 1):
        with pytest.raises(HistoryConflict) as caught:
            check(D.signed(old), fork.consistency(old, new))
        assert caught.value.first == D.signed(old).encoded
        assert caught.value.second == fork.signed(new).encoded


def test_held_bytes_count_not_those_in_the_proof() -> None:
    fork = history(other_from=3)
    mixed = fork.consistency(3, 8, old_head=D.signed(3).encoded)
    with pytest.raises(HistoryConflict):
        check(D.signed(3), mixed)


@pytest.mark.parametrize("part", ["inclusion", "consistency"])
def test_both_paths_are_required_and_exact(part: str) -> None:
    path = getattr(proof_encoding.decode_consistency_proof(D.consistency(3, 8)), part)
    assert path
    for wrong in ((), path[:-1], (*path, b"x" * 32), (b"x" * 32, *path[1:])):
        with pytest.raises(HistoryConflict):
            check(D.signed(3), D.consistency(3, 8, **{part: wrong}))


def test_next_epoch_is_included_by_previous_head_hash_and_takes_no_inclusion_path() -> None:
    with pytest.raises(HistoryConflict):
        check(D.signed(3), D.consistency(3, 4, inclusion=(b"x" * 32,)))


def test_from_epoch_1_the_consistency_path_is_empty() -> None:
    assert not proof_encoding.decode_consistency_proof(D.consistency(1, 8)).consistency
    with pytest.raises(HistoryConflict):
        check(D.signed(1), D.consistency(1, 8, consistency=(b"x" * 32,)))


def test_same_epoch_is_the_same_bytes() -> None:
    assert check(D.signed(4), D.consistency(4, 4)).head.epoch == 4
    fork = history(other_from=4)
    with pytest.raises(HistoryConflict):
        check(D.signed(4), fork.consistency(4, 4))


def test_proof_about_other_epochs_than_asked_is_refused() -> None:
    for proof in (D.consistency(2, 8), D.consistency(1, 2)):
        with pytest.raises(VerificationError) as caught:
            check(D.signed(3), proof)
        assert caught.value.check == "history"


def test_newer_head_needs_the_quorum() -> None:
    few = sign_head(D.heads[7], REPLICAS, ())
    with pytest.raises(NotRatified):
        check(D.signed(3), D.consistency(3, 8, new_head=few.encoded))


def test_failed_paths_under_an_unsigned_head_are_no_evidence() -> None:
    few = sign_head(D.heads[7], REPLICAS[:1], ())
    with pytest.raises(NotRatified):
        check(D.signed(3), D.consistency(3, 8, new_head=few.encoded, inclusion=()))


def test_pinned_head_of_the_new_epoch_still_conflicts() -> None:
    fork = history(other_from=8)
    trust = replace(TRUST, pinned=D.signed(8))
    proof = proof_encoding.decode_consistency_proof(fork.consistency(3, 8))
    with pytest.raises(HistoryConflict):
        verify_consistency(trust, D.signed(3), proof)
    assert encoding.decode_head(fork.heads[7]).epoch == 8
