"""Client acceptance as the contract states it, one test a rule and side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from e2eks.v1 import client_pb2
from samples import (
    EVE,
    REALM,
    REPLICAS,
    START_MS,
    TTL_MS,
    VERIFIERS,
    VRF_KEY,
    index_of,
    key,
    majority_of,
    make_realm,
    make_revocation,
    sign_head,
)
from samples.directory import Directory, bit, tree_path

from verifier import encoding, limits, policy
from verifier import realm as realms
from verifier.crypto import vrf
from verifier.errors import HistoryConflict, Malformed, NotRatified, VerificationError
from verifier.lookup import Absent, Erased, LookupResult, Present, Revoked, Trust, verify_lookup
from verifier.types import QuorumExpr

USER, OTHER, NOBODY = "alice@example.test", "bob@example.test", "nobody@example.test"
PROFILE = encoding.encode_profile({"ssh": b"ssh-ed25519 AAAA"})


def directory() -> Directory:
    """Epoch 1: eight users; epoch 2: alice has her second version."""
    made = Directory()
    for n in range(7):
        made.put(f"user{n}@example.test")
    made.put(USER, b"")
    made.close()
    made.put(USER, PROFILE)
    made.close()
    return made


D = directory()
NOW = START_MS + 4000
TRUST = Trust(realm=REALM, quorum=REALM.verification_policy.quorum, replicas=REALM.genesis_policy)


def look(
    proof: bytes, trust: Trust = TRUST, user_id: str = USER, now_ms: int = NOW, **how: Any
) -> LookupResult:
    return verify_lookup(trust, user_id, proof, now_ms=now_ms, **how)


def failed_check(proof: bytes, trust: Trust = TRUST, user_id: str = USER, **how: Any) -> str:
    with pytest.raises(VerificationError) as caught:
        look(proof, trust, user_id, **how)
    return caught.value.check


def missing(proof: bytes, trust: Trust = TRUST, **how: Any) -> str:
    with pytest.raises(NotRatified) as caught:
        look(proof, trust, **how)
    return caught.value.cause


# What a proof can prove


def test_present_gives_the_profile_and_who_signed() -> None:
    result = look(D.lookup(USER, 2))
    assert isinstance(result, Present)
    assert dict(result.profile.keys) == {"ssh": b"ssh-ed25519 AAAA"}
    assert result.entry.version == 1
    assert result.signers.replicas == {k.id for k in REPLICAS}
    assert result.signers.verifiers.keys() == {k.id for k in VERIFIERS}


def test_absent_beside_another_leaf_or_in_an_empty_place() -> None:
    kinds = set()
    for n in range(40):
        user_id = f"absent{n}@example.test"
        _, existing = tree_path(D.leaves(2), index_of(user_id)[0])
        assert isinstance(look(D.lookup(user_id, 2), user_id=user_id), Absent)
        kinds.add(existing is None)
    assert kinds == {True, False}


def test_absent_in_an_empty_realm() -> None:
    empty = Directory()
    empty.close()
    assert isinstance(look(empty.lookup(USER, 1)), Absent)


def test_entry_without_contents_is_erased_and_never_a_key() -> None:
    assert isinstance(look(D.lookup(USER, 2, profile=b"", profile_nonce=b"")), Erased)


def test_revocation_is_revoked() -> None:
    revoked = directory()
    revoked.entries[USER] = (make_revocation(USER, 9), b"")
    revoked.close()
    assert isinstance(look(revoked.lookup(USER, 3), now_ms=NOW + 1000), Revoked)


def test_empty_profile_is_present() -> None:
    result = look(D.lookup(USER, 1))
    assert isinstance(result, Present)
    assert not result.profile.keys


# User id, realm, VRF


def test_proof_for_another_user_id_is_refused() -> None:
    assert failed_check(D.lookup("user1@example.test", 2)) == "user-id"


def test_proof_of_another_realm_is_refused() -> None:
    other = make_realm(name="other.test")
    elsewhere = Directory(realm=other)
    elsewhere.close()
    assert failed_check(elsewhere.lookup(USER, 1)) == "realm"


def test_proof_under_another_realm_hash_is_refused() -> None:
    smaller = make_realm(replicas=REPLICAS[:1])
    assert failed_check(D.lookup(USER, 2), replace(TRUST, realm=smaller)) == "realm"


def test_unknown_rules_level_is_refused_with_upgrade() -> None:
    message = encoding.pb.EpochHead.FromString(D.heads[1])
    message.rules = 2
    assert failed_check(D.lookup(USER, 2, signed=sign_head(encoding.canonical(message)))) == "rules"


def test_index_proof_by_another_vrf_key_is_refused() -> None:
    forged = vrf.prove(vrf.VrfKey(b"x" * 32), realms.user_id_alpha(REALM.name, USER))
    assert failed_check(D.lookup(USER, 2, index_proof=forged)) == "vrf"


def test_index_proof_of_another_user_is_refused() -> None:
    index, proof = index_of("user1@example.test")
    assert failed_check(D.lookup(USER, 2, index=index, index_proof=proof)) == "vrf"


def test_index_that_is_not_the_vrf_output_is_refused() -> None:
    assert failed_check(D.lookup(NOBODY, 2, index=b"\x07" * 32), user_id=NOBODY) == "vrf"


def test_vrf_key_is_the_realms() -> None:
    assert VRF_KEY.public_key == REALM.vrf_public_key


# Tree


def test_absence_proof_for_a_present_entry_is_refused() -> None:
    index = index_of(USER)[0]
    _, leaf = tree_path(D.leaves(2), index)
    hidden = {"entry": b"", "profile": b"", "profile_nonce": b""}
    assert failed_check(D.lookup(USER, 2, **hidden)) == "tree"
    assert failed_check(D.lookup(USER, 2, existing=leaf, **hidden)) == "tree"
    other = next(i for i in D.leaves(2) if bit(i, 0) != bit(index, 0))
    assert failed_check(D.lookup(USER, 2, existing=(other, D.leaves(2)[other]), **hidden)) == "tree"


def test_entry_that_is_not_in_the_tree_is_refused() -> None:
    old = D.states[0][USER][0]
    assert failed_check(D.lookup(USER, 2, entry=old.encoded)) in ("tree", "commitment")
    assert failed_check(D.lookup(USER, 2, entry=old.encoded, profile=b"", profile_nonce=b"")) == "tree"


def test_entry_of_another_index_is_refused() -> None:
    strangers = D.states[1]["user1@example.test"][0]
    assert failed_check(D.lookup(USER, 2, entry=strangers.encoded, profile=b"", profile_nonce=b"")) == "tree"


def test_every_neighbour_counts() -> None:
    neighbors, _ = tree_path(D.leaves(2), index_of(USER)[0])
    for n in range(len(neighbors)):
        for other in (b"", b"x" * 32):
            if other != neighbors[n]:
                changed = (*neighbors[:n], other, *neighbors[n + 1 :])
                assert failed_check(D.lookup(USER, 2, neighbors=changed)) == "tree"
    assert failed_check(D.lookup(USER, 2, neighbors=neighbors[:-1])) == "tree"
    assert failed_check(D.lookup(USER, 2, neighbors=(*neighbors, b""))) == "tree"


# Commitment


def test_profile_with_another_nonce_is_refused() -> None:
    assert failed_check(D.lookup(USER, 2, profile_nonce=b"n" * 32)) == "commitment"


def test_other_profile_is_refused() -> None:
    forged = encoding.encode_profile({"ssh": b"ssh-ed25519 EVE"})
    assert failed_check(D.lookup(USER, 2, profile=forged)) == "commitment"


# Quorum


def test_quorum_counts_distinct_valid_signatures_of_replicas_and_verifiers() -> None:
    enough = D.signed(2, replicas=REPLICAS[:2], verifiers=VERIFIERS[1:])
    assert isinstance(look(D.lookup(USER, 2, signed=enough)), Present)


@pytest.mark.parametrize(("replicas", "verifiers"), [(1, 3), (3, 1), (0, 3), (3, 0)])
def test_too_few_signatures_are_not_ratified(replicas: int, verifiers: int) -> None:
    few = D.signed(2, replicas=REPLICAS[:replicas], verifiers=VERIFIERS[:verifiers])
    assert missing(D.lookup(USER, 2, signed=few)) == "quorum"


def test_signatures_by_strangers_do_not_count() -> None:
    strangers = tuple(key(f"stranger-{n}") for n in range(3))
    assert missing(D.lookup(USER, 2, signed=D.signed(2, verifiers=strangers))) == "quorum"


def test_one_signature_given_twice_counts_once() -> None:
    twice = D.signed(2, verifiers=(VERIFIERS[0], VERIFIERS[0]))
    assert missing(D.lookup(USER, 2, signed=twice)) == "quorum"


def test_needed_signature_that_does_not_verify_is_refused() -> None:
    message = encoding.pb.SignedEpochHead.FromString(D.signed(2, verifiers=VERIFIERS[:2]).encoded)
    message.ratifications[1].signatures[0].signature = bytes(64)
    bad = encoding.decode_signed_head(encoding.canonical(message))
    assert failed_check(D.lookup(USER, 2, signed=bad)) == "signature"


def test_failed_signature_that_the_quorum_does_not_need_changes_nothing() -> None:
    message = encoding.pb.SignedEpochHead.FromString(D.signed(2).encoded)
    message.ratifications[1].signatures[0].signature = bytes(64)
    spare = encoding.decode_signed_head(encoding.canonical(message))
    assert isinstance(look(D.lookup(USER, 2, signed=spare)), Present)


def test_clients_own_quorum_takes_the_place_of_the_realms() -> None:
    only_first = replace(TRUST, quorum=QuorumExpr(1, (VERIFIERS[0].id,)))
    assert isinstance(
        look(D.lookup(USER, 2, signed=D.signed(2, verifiers=VERIFIERS[:1])), only_first), Present
    )
    assert missing(D.lookup(USER, 2, signed=D.signed(2, verifiers=VERIFIERS[1:])), only_first) == "quorum"


def test_after_a_policy_change_the_new_replicas_count_and_the_old_do_not() -> None:
    new = tuple(key(f"new-replica-{n}") for n in range(3))
    later = Trust(REALM, policy.majority([k.id for k in new]), majority_of(*new))
    assert isinstance(look(D.lookup(USER, 2, signed=D.signed(2, replicas=new)), later), Present)
    assert missing(D.lookup(USER, 2), later) == "quorum"
    former = replace(later, quorum=policy.majority([k.id for k in REPLICAS]))
    assert missing(D.lookup(USER, 2), former) == "quorum"


# Freshness of the latest


def test_latest_may_be_issued_at_most_skew_after_now() -> None:
    issued = START_MS + 2000
    early = D.signed(2)
    assert isinstance(look(D.lookup(USER, 2, signed=early), now_ms=issued - limits.SKEW_MS + 1000), Present)
    assert missing(D.lookup(USER, 2), now_ms=issued - limits.SKEW_MS - 1) == "future"


def test_latest_is_at_most_the_ttl_old() -> None:
    issued = START_MS + 2000
    assert isinstance(look(D.lookup(USER, 2), now_ms=issued + TTL_MS), Present)
    assert missing(D.lookup(USER, 2), now_ms=issued + TTL_MS + 1) == "stale"


@pytest.mark.parametrize("offset", [-limits.SKEW_MS - 1, 2000 + limits.SKEW_MS + 1])
def test_verifier_time_outside_issue_minus_skew_to_now_plus_skew_does_not_count(offset: int) -> None:
    signed = sign_head(D.heads[1], verifier_time_ms=START_MS + 2000 + offset)
    assert missing(D.lookup(USER, 2, signed=signed)) == "stale"


@pytest.mark.parametrize("offset", [-limits.SKEW_MS, 0, 2000 + limits.SKEW_MS])
def test_verifier_time_within_issue_minus_skew_to_now_plus_skew_counts(offset: int) -> None:
    signed = sign_head(D.heads[1], verifier_time_ms=START_MS + 2000 + offset)
    assert isinstance(look(D.lookup(USER, 2, signed=signed)), Present)


def test_verifier_time_older_than_the_ttl_does_not_count() -> None:
    issued = START_MS + 2000
    signed = sign_head(D.heads[1], verifier_time_ms=issued - limits.SKEW_MS)
    assert missing(D.lookup(USER, 2, signed=signed), now_ms=issued + TTL_MS - limits.SKEW_MS + 1) == "stale"


def test_historic_has_no_freshness_but_needs_the_quorum_and_the_epoch_asked() -> None:
    ancient = NOW + 10 * TTL_MS
    assert isinstance(look(D.lookup(USER, 1), now_ms=ancient, epoch=1), Present)
    assert failed_check(D.lookup(USER, 1), now_ms=ancient, epoch=2) == "head"
    few = D.signed(1, verifiers=())
    assert missing(D.lookup(USER, 1, signed=few), now_ms=ancient, epoch=1) == "quorum"


# Rollback and fork


def test_latest_older_than_the_pinned_epoch_is_a_rollback() -> None:
    pinned = replace(TRUST, pinned_epoch=2)
    assert isinstance(look(D.lookup(USER, 2), pinned), Present)
    assert missing(D.lookup(USER, 1), pinned) == "rollback"
    assert isinstance(look(D.lookup(USER, 1), pinned, saved=True), Present)
    assert isinstance(look(D.lookup(USER, 1), pinned, epoch=1), Present)


def forked() -> tuple[Trust, bytes]:
    """A client that holds head 2, and a proof under another head 2 with all the same signers."""
    other = directory()
    other.entries = dict(other.states[0])
    other.put(USER, encoding.encode_profile({"ssh": b"eve"}), owner=EVE)
    other.states.pop()
    other.heads.pop()
    other.chain = replace(other.chain, epoch=1, head_hash=encoding.decode_head(other.heads[0]).hash)
    other.close()
    return replace(TRUST, pinned=D.signed(2), pinned_epoch=2), other.lookup(USER, 2)


def test_other_validly_signed_head_of_the_pinned_epoch_is_a_fork_with_both_heads_as_evidence() -> None:
    trust, proof = forked()
    with pytest.raises(HistoryConflict) as caught:
        look(proof, trust)
    first, second = (encoding.decode_signed_head(e) for e in (caught.value.first, caught.value.second))
    assert first.head.epoch == second.head.epoch == 2
    assert first.head.hash != second.head.hash
    assert isinstance(look(proof, replace(trust, pinned=None)), Present)


def test_fork_precedes_stale_and_missing_ratifications() -> None:
    trust, proof = forked()
    with pytest.raises(HistoryConflict):
        look(proof, trust, now_ms=NOW + 10 * TTL_MS)


def test_fork_signed_by_a_majority_of_replicas_alone_is_a_fork() -> None:
    trust, proof = forked()
    value = look(proof, replace(trust, pinned=None))
    alone = sign_head(value.head.head.encoded, REPLICAS[:2], ())
    with pytest.raises(HistoryConflict):
        look(with_head(proof, alone.encoded), trust)


def with_head(proof: bytes, signed_head: bytes) -> bytes:
    message = client_pb2.LookupProof.FromString(proof)
    message.head.CopyFrom(encoding.pb.SignedEpochHead.FromString(signed_head))
    return encoding.canonical(message)


def test_other_head_without_valid_signatures_is_no_fork_but_refused() -> None:
    trust, proof = forked()
    value = look(proof, replace(trust, pinned=None))
    strangers = tuple(key(f"stranger-{n}") for n in range(3))
    with pytest.raises(NotRatified):
        look(with_head(proof, sign_head(value.head.head.encoded, strangers, ()).encoded), trust)


def test_what_does_not_verify_precedes_a_fork() -> None:
    trust, proof = forked()
    message = client_pb2.LookupProof.FromString(proof)
    message.profile_nonce = bytes(32)
    assert failed_check(encoding.canonical(message), trust) == "commitment"


def test_bytes_that_are_no_proof_are_malformed() -> None:
    for data in (b"", b"\xff", D.lookup(USER, 2)[:-1], D.heads[1]):
        with pytest.raises(Malformed):
            look(data)
