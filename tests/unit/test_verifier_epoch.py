"""The head law and the policy chain of the contract, one test a rule and side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from samples import (
    REALM,
    REPLICAS,
    START_MS,
    VERIFIERS,
    Key,
    key,
    majority_of,
    make_realm,
    sign_head,
)

from verifier import encoding
from verifier import epoch as law
from verifier.errors import Malformed, VerificationError
from verifier.types import AuthorizationPolicy, EpochHead, Realm, Signature

ROOT, HISTORY, DIGEST = b"r" * 32, b"h" * 32, b"d" * 32
GENESIS = law.genesis_chain(REALM)


def compose(
    chain: law.Chain = GENESIS, realm: Realm = REALM, issue_time_ms: int = START_MS, **changes: object
) -> bytes:
    fields: dict[str, object] = {"root_hash": ROOT, "history_root": HISTORY, "state_digest": DIGEST}
    return law.compose_head(realm, chain, issue_time_ms=issue_time_ms, **{**fields, **changes})  # type: ignore[arg-type]


def check(head: bytes, chain: law.Chain = GENESIS) -> law.Chain:
    return law.check_head(REALM, chain, encoding.decode_head(head), root_hash=ROOT, history_root=HISTORY)


def refused(head: bytes, chain: law.Chain = GENESIS) -> str:
    with pytest.raises(VerificationError) as caught:
        check(head, chain)
    return caught.value.check


def test_first_head_follows_the_realm_hash() -> None:
    head = encoding.decode_head(compose())
    assert head.previous_head_hash == REALM.hash == head.realm_hash
    after = check(head.encoded)
    assert after == law.Chain(1, head.hash, START_MS, REALM.genesis_policy)


def test_second_head_follows_the_hash_of_the_first() -> None:
    chain = check(compose())
    second = compose(chain, issue_time_ms=START_MS + 1)
    assert encoding.decode_head(second).previous_head_hash == chain.head_hash
    assert check(second, chain).epoch == 2


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(replace(GENESIS, epoch=1), id="skipped epoch"),
        pytest.param(replace(GENESIS, head_hash=b"x" * 32), id="another previous head"),
        pytest.param(replace(GENESIS, issue_time_ms=START_MS), id="not later than its predecessor"),
    ],
)
def test_head_that_does_not_follow_is_refused(chain: law.Chain) -> None:
    assert refused(compose(), chain) == "head"


def test_head_with_another_root_is_refused() -> None:
    assert refused(compose(root_hash=b"x" * 32)) == "head"


def test_head_with_another_history_root_is_refused() -> None:
    assert refused(compose(history_root=b"x" * 32)) == "head"


def test_head_of_another_realm_is_refused() -> None:
    assert refused(compose(realm=make_realm(name="other.test"))) == "realm"


def test_head_of_a_realm_with_another_genesis_is_refused() -> None:
    assert refused(compose(realm=make_realm(replicas=REPLICAS[:1]))) == "realm"


def test_head_of_an_unknown_rules_level_is_refused_with_upgrade() -> None:
    message = encoding.pb.EpochHead.FromString(compose())
    message.rules = 2
    with pytest.raises(VerificationError, match="upgrade"):
        check(encoding.canonical(message))


def test_head_at_epoch_0_is_malformed() -> None:
    message = encoding.pb.EpochHead.FromString(compose())
    message.epoch = 0
    with pytest.raises(Malformed):
        encoding.decode_head(encoding.canonical(message))


def test_verifiers_do_not_claim_state_digest_nor_provenance() -> None:
    check(compose(state_digest=b"x" * 32, provenance_root=b"y" * 32, provenance_size=9))


# Signatures


def signers_of(head: bytes, *, replicas: tuple[Key, ...], verifiers: tuple[Key, ...]) -> law.Signers:
    signed = sign_head(head, replicas, verifiers)
    known = {k.id: k.public for k in REPLICAS}, {k.id: k.public for k in VERIFIERS}
    return law.signers(signed, *known, [k.id for k in (*REPLICAS, *VERIFIERS)])


def test_signers_are_told_apart_by_role() -> None:
    found = signers_of(compose(), replicas=REPLICAS[:2], verifiers=VERIFIERS[:1])
    assert found.replicas == {k.id for k in REPLICAS[:2]}
    assert found.verifiers == {VERIFIERS[0].id: START_MS + 1000}
    assert not found.failed


def test_replica_signature_with_another_timestamp_than_the_issue_time_does_not_count() -> None:
    head = compose()
    late = START_MS + 5
    made = REPLICAS[0].sign(law.replica_message(head, late))
    signed = encoding.decode_signed_head(
        encoding.encode_signed_head(head, [encoding.Ratification(late, (made,))])
    )
    found = law.signers(signed, {REPLICAS[0].id: REPLICAS[0].public}, {}, [REPLICAS[0].id])
    assert not found.replicas
    assert found.failed == {REPLICAS[0].id}


def test_verifier_signature_under_the_replicas_label_does_not_count() -> None:
    head = compose()
    made = VERIFIERS[0].sign(law.replica_message(head, START_MS))
    signed = encoding.decode_signed_head(
        encoding.encode_signed_head(head, [encoding.Ratification(START_MS, (made,))])
    )
    found = law.signers(signed, {}, {VERIFIERS[0].id: VERIFIERS[0].public}, [VERIFIERS[0].id])
    assert not found.verifiers
    assert found.failed == {VERIFIERS[0].id}


def test_forged_signature_fails_and_a_good_one_by_the_same_key_wins() -> None:
    head = compose()
    good = REPLICAS[0].sign(law.replica_message(head, START_MS))
    bad = Signature(good.key_id, b"\x01" * 64)
    for made in ((bad, good), (good, bad)):
        signed = encoding.decode_signed_head(
            encoding.encode_signed_head(head, [encoding.Ratification(START_MS, made)])
        )
        found = law.signers(signed, {good.key_id: REPLICAS[0].public}, {}, [good.key_id])
        assert found.replicas == {good.key_id}
        assert not found.failed


def test_majority_of_the_replicas_policy_is_enough_and_less_is_not() -> None:
    law.check_majority(REALM.genesis_policy, sign_head(compose(), REPLICAS[:2], ()))
    with pytest.raises(VerificationError) as caught:
        law.check_majority(REALM.genesis_policy, sign_head(compose(), REPLICAS[:1], VERIFIERS))
    assert caught.value.check == "signature"


# The policy chain

NEW = tuple(key(f"new-replica-{n}") for n in range(3))
NEW_POLICY = majority_of(*NEW)


def change_at(epoch: int, policy: AuthorizationPolicy | None = NEW_POLICY) -> bytes:
    chain = replace(GENESIS, epoch=epoch - 1, head_hash=b"p" * 32, issue_time_ms=1)
    return compose(chain, next_epoch_policy=policy)


def test_policy_change_needs_the_old_policy_and_a_majority_of_the_new_keys() -> None:
    head = change_at(3)
    law.check_majority(REALM.genesis_policy, sign_head(head, (*REPLICAS[:2], *NEW[:2]), ()))
    for too_few in ((*REPLICAS, *NEW[:1]), (REPLICAS[0], *NEW)):
        with pytest.raises(VerificationError) as caught:
            law.check_majority(REALM.genesis_policy, sign_head(head, too_few, ()))
        assert caught.value.check == "signature"


def test_policy_at_an_epoch_follows_the_changes_before_it() -> None:
    change = sign_head(change_at(3), (*REPLICAS, *NEW), ())
    assert law.policy_at(REALM, [change], 3) == REALM.genesis_policy
    assert law.policy_at(REALM, [change], 4) == NEW_POLICY
    assert law.policy_at(REALM, [], 9) == REALM.genesis_policy


def test_policy_chain_signed_by_the_wrong_policy_is_refused() -> None:
    first = sign_head(change_at(3), (*REPLICAS, *NEW), ())
    second = sign_head(change_at(5, majority_of(*REPLICAS)), REPLICAS, ())
    with pytest.raises(VerificationError) as caught:
        law.policy_at(REALM, [first, second], 9)
    assert caught.value.check == "signature"


def test_policy_chain_out_of_order_or_without_a_change_is_refused() -> None:
    change = sign_head(change_at(3), (*REPLICAS, *NEW), ())
    plain = sign_head(change_at(4, None), NEW, ())
    for chain in ([change, change], [change, plain]):
        with pytest.raises(VerificationError) as caught:
            law.policy_at(REALM, chain, 9)
        assert caught.value.check == "policy"


def test_chain_takes_the_next_epoch_policy_of_a_head_if_present() -> None:
    head: EpochHead = encoding.decode_head(compose(next_epoch_policy=NEW_POLICY))
    assert law.follow(GENESIS, head).policy == NEW_POLICY
