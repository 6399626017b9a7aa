"""The update law of the contract, one test a rule and side."""

from __future__ import annotations

import pytest
from samples import ALICE, BOB, EVE, REALM, any_of, key, make_entry, make_realm, make_revocation, sign_entry

from verifier import encoding
from verifier.errors import Reason, Refused
from verifier.types import Entry, QuorumExpr, Signature, SignedUpdate
from verifier.update import Change, verify_update

USER = "alice@example.test"
V0 = make_entry(USER)
V1 = make_entry(USER, 1, previous=V0, profile=b"")
REVOKED = make_revocation(USER, 7)


def judge(current: Entry | None, update: SignedUpdate, *, pending: bool = False) -> Change:
    return verify_update(current, update, realm_hash=REALM.hash, pending=pending)


def refusal(current: Entry | None, update: SignedUpdate, *, pending: bool = False) -> Reason:
    with pytest.raises(Refused) as caught:
        judge(current, update, pending=pending)
    return caught.value.reason


def test_registration_is_version_0_signed_under_its_own_policy() -> None:
    assert judge(None, sign_entry(V0, ALICE)) is Change.REGISTRATION


def test_registration_of_a_later_version_is_refused() -> None:
    assert refusal(None, sign_entry(V1, ALICE)) is Reason.VERSION_MISMATCH


def test_registration_without_the_new_policys_signature_is_refused() -> None:
    assert refusal(None, sign_entry(V0)) is Reason.NOT_AUTHORIZED


def test_update_has_the_next_version_the_hash_of_the_current_entry_and_its_signatures() -> None:
    assert judge(V0, sign_entry(V1, ALICE)) is Change.UPDATE


@pytest.mark.parametrize("version", [2, 5, 2**64 - 1])
def test_update_with_a_gap_in_versions_is_refused(version: int) -> None:
    assert refusal(V0, sign_entry(make_entry(USER, version, previous=V0), ALICE)) is Reason.VERSION_MISMATCH


def test_update_without_version_increase_is_refused() -> None:
    other = make_entry(USER, 0, profile=encoding.encode_profile({"ssh": b"k"}))
    assert refusal(V0, sign_entry(other, ALICE)) is Reason.VERSION_MISMATCH


def test_update_with_another_previous_entry_hash_is_refused() -> None:
    stranger = make_entry("bob@example.test")
    assert refusal(V0, sign_entry(make_entry(USER, 1, previous=stranger), ALICE)) is Reason.VERSION_MISMATCH


def test_unsigned_update_is_refused() -> None:
    assert refusal(V0, sign_entry(V1)) is Reason.NOT_AUTHORIZED


def test_update_signed_by_a_wrong_key_under_the_right_id_is_refused() -> None:
    good = sign_entry(V1, ALICE).signatures[0]
    forged = Signature(key_id=good.key_id, signature=EVE.sign(b"x").signature)
    update = encoding.decode_update(encoding.encode_update(V1.encoded, [forged]))
    assert refusal(V0, update) is Reason.NOT_AUTHORIZED


def test_update_must_satisfy_the_current_policy() -> None:
    taken = make_entry(USER, 1, previous=V0, owner=EVE)
    assert refusal(V0, sign_entry(taken, EVE)) is Reason.NOT_AUTHORIZED


def test_update_must_satisfy_the_new_policy_too() -> None:
    handed = make_entry(USER, 1, previous=V0, owner=BOB)
    assert refusal(V0, sign_entry(handed, ALICE)) is Reason.NOT_AUTHORIZED
    assert judge(V0, sign_entry(handed, ALICE, BOB)) is Change.UPDATE


def test_signature_by_an_unknown_key_id_is_refused_even_beside_good_ones() -> None:
    assert refusal(V0, sign_entry(V1, ALICE, EVE)) is Reason.NOT_AUTHORIZED


def test_threshold_policy_counts_distinct_valid_signatures() -> None:
    keys = [key(f"device-{n}") for n in range(3)]
    law = encoding.make_policy([k.public for k in keys], QuorumExpr(2, tuple(k.id for k in keys)))
    v0 = make_entry(USER, update_policy=law)
    assert judge(None, sign_entry(v0, keys[0], keys[2])) is Change.REGISTRATION
    assert refusal(None, sign_entry(v0, keys[0])) is Reason.NOT_AUTHORIZED


def test_signature_for_another_realm_is_refused() -> None:
    elsewhere = sign_entry(V0, ALICE, realm=make_realm(name="other.test"))
    assert refusal(None, elsewhere) is Reason.NOT_AUTHORIZED


def test_revocation_may_skip_versions_and_was_signed_under_the_current_policy() -> None:
    assert judge(V0, sign_entry(REVOKED, ALICE)) is Change.REVOCATION


def test_revocation_by_another_key_is_refused() -> None:
    assert refusal(V0, sign_entry(REVOKED, EVE)) is Reason.NOT_AUTHORIZED


def test_revocation_of_the_current_version_is_refused() -> None:
    assert refusal(REVOKED_LIKE_V7, sign_entry(REVOKED, ALICE)) is Reason.VERSION_MISMATCH


REVOKED_LIKE_V7 = make_entry(USER, 7, previous=V0)


def test_revocation_of_an_unregistered_index_is_refused() -> None:
    assert refusal(None, sign_entry(REVOKED, ALICE)) is Reason.VERSION_MISMATCH


def test_after_a_revocation_a_registration_with_the_next_version_is_accepted() -> None:
    again = make_entry(USER, 8, previous=REVOKED, owner=BOB)
    assert judge(REVOKED, sign_entry(again, BOB)) is Change.REGISTRATION


def test_after_a_revocation_anything_else_is_refused() -> None:
    assert refusal(REVOKED, sign_entry(make_entry(USER, 0), ALICE)) is Reason.REVOKED
    assert refusal(REVOKED, sign_entry(make_entry(USER, 9, previous=REVOKED), ALICE)) is Reason.REVOKED
    assert refusal(REVOKED, sign_entry(make_entry(USER, 8, previous=V0), ALICE)) is Reason.REVOKED
    assert refusal(REVOKED, sign_entry(make_revocation(USER, 9), ALICE)) is Reason.REVOKED


def test_second_update_between_two_delimiters_is_refused() -> None:
    assert refusal(V0, sign_entry(V1, ALICE), pending=True) is Reason.UPDATE_PENDING


def test_update_whose_bytes_equal_the_current_entry_is_unchanged_even_when_pending() -> None:
    assert judge(V0, sign_entry(V0, ALICE), pending=True) is Change.UNCHANGED
    assert judge(V0, sign_entry(V0)) is Change.UNCHANGED


def test_old_update_cannot_be_replayed() -> None:
    v1 = sign_entry(V1, ALICE)
    v2 = make_entry(USER, 2, previous=V1, owner=ALICE)
    assert judge(V1, sign_entry(v2, ALICE)) is Change.UPDATE
    assert refusal(v2, v1) is Reason.VERSION_MISMATCH


def test_policy_that_requires_nothing_cannot_be_made() -> None:
    with pytest.raises(Refused) as caught:
        encoding.make_policy([ALICE.public], QuorumExpr(0, (ALICE.id,)))
    assert caught.value.reason is Reason.MALFORMED
    assert any_of(ALICE).quorum.threshold == 1
