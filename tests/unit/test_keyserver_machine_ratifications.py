"""Pushed ratifications and the admission of verifiers: nothing a verifier sends changes what others see."""

from dataclasses import replace

import pytest
from workload.cast import Key, derive
from workload.replica import Replica

from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AddRatification, AdmitVerifier
from keyserver.machine.notices import RatificationAdded, VerifierContradiction, VerifierListed
from verifier import encoding, limits
from verifier.epoch import compose_head


@pytest.fixture
def replica() -> Replica:
    """One replica with a listed verifier (number 0) and an unlisted one, and one signed head."""
    one = Replica()
    one.admit(one.verifiers[0])
    one.close_epoch()
    return one


def other_head(replica: Replica, epoch_before: int = 0) -> bytes:
    chain = replace(replica.state.chain, epoch=epoch_before)
    return compose_head(
        replica.realm,
        chain,
        root_hash=derive("another root"),
        issue_time_ms=replica.clock_ms,
        history_root=derive("history"),
        state_digest=derive("digest"),
    )


def test_a_ratification_by_a_listed_verifier_is_stored(replica: Replica) -> None:
    verifier = replica.verifiers[0]
    outcome = replica.commit(replica.entry(replica.ratification(verifier)))
    assert outcome.notices[:-1] == (RatificationAdded(1, verifier.id),)
    assert verifier.id in views.signers_at(replica.store, 1)
    signed = encoding.decode_signed_head(views.signed_head(replica.store, 1))
    assert [made.timestamp_ms for made in signed.ratifications] == [
        signed.head.issue_time_ms,
        replica.clock_ms,
    ]


@pytest.mark.parametrize("who", ["unlisted", "stranger", "replica"])
def test_a_ratification_needs_a_listed_key(replica: Replica, who: str) -> None:
    key = {
        "unlisted": replica.verifiers[1],
        "stranger": Key("stranger"),
        "replica": replica.replicas[0],
    }[who]
    assert replica.run(replica.ratification(key)) == (Code.NOT_AUTHORIZED,)


def test_a_ratification_needs_a_valid_signature(replica: Replica) -> None:
    made = replica.ratification(replica.verifiers[0]).ratification
    (given,) = made.ratifications
    forged = replace(given, timestamp_ms=given.timestamp_ms + 1)
    pushed = encoding.decode_signed_head(encoding.encode_signed_head(made.head.encoded, [forged]))
    assert replica.run(AddRatification(pushed)) == (Code.BAD_SIGNATURE,)


def test_a_replicas_kind_of_signature_is_no_ratification(replica: Replica) -> None:
    made = replica.ratification(replica.verifiers[0]).ratification
    (given,) = made.ratifications
    signature = replica.signature(replica.verifiers[0]).signature
    forged = replace(given, signatures=(replace(given.signatures[0], signature=signature),))
    pushed = encoding.decode_signed_head(encoding.encode_signed_head(made.head.encoded, [forged]))
    assert replica.run(AddRatification(pushed)) == (Code.BAD_SIGNATURE,)


def test_a_ratification_of_another_head_is_kept_as_evidence_only(replica: Replica) -> None:
    verifier = replica.verifiers[0]
    pushed = replica.ratification(verifier, other_head(replica))
    outcome = replica.commit(replica.entry(pushed))
    assert outcome.verdicts == (Code.HEAD_MISMATCH,)
    assert outcome.notices[0] == VerifierContradiction(1, verifier.id, pushed.ratification.encoded)
    assert verifier.id not in views.signers_at(replica.store, 1)
    assert replica.run(replica.ratification(verifier)) == (Code.APPLIED,)


@pytest.mark.parametrize("before", [1, 2, 2**64 - 2])
def test_a_ratification_of_an_epoch_to_come_is_refused(replica: Replica, before: int) -> None:
    verifier = replica.verifiers[0]
    assert replica.run(replica.ratification(verifier, other_head(replica, before))) == (Code.NO_SUCH_EPOCH,)
    assert views.newest_ratified(replica.store, verifier.id) == 0


def test_a_ratification_waits_for_the_replicas_majority(replica: Replica) -> None:
    replica.delimit()
    made = replica.ratification(replica.verifiers[0], replica.head().encoded)
    assert replica.run(made) == (Code.EPOCH_PENDING,)
    replica.sign_all()
    assert replica.run(made) == (Code.APPLIED,)


def test_the_first_ratification_per_epoch_and_key_wins(replica: Replica) -> None:
    verifier = replica.verifiers[0]
    first = replica.ratification(verifier)
    assert replica.run(first) == (Code.APPLIED,)
    assert replica.run(first) == (Code.DUPLICATE,)
    later = replica.ratification(verifier, time_ms=replica.clock_ms + 5)
    assert replica.run(later) == (Code.DUPLICATE,)
    signed = encoding.decode_signed_head(views.signed_head(replica.store, 1, {verifier.id}))
    assert [made.timestamp_ms for made in signed.ratifications] == [replica.clock_ms]


def test_a_late_ratification_of_an_old_epoch_is_stored(replica: Replica) -> None:
    old = replica.ratification(replica.verifiers[0])
    replica.close_epoch()
    assert replica.run(old) == (Code.APPLIED,)


# Admission of verifiers


def test_a_verifier_is_listed_once_a_majority_of_replicas_approved() -> None:
    replica = Replica(3)
    verifier = replica.verifiers[0]
    first, second, third = replica.replicas
    listed = []
    for key in (first, second, third):
        outcome = replica.commit(replica.entry(AdmitVerifier(verifier.public_key), by=key))
        assert outcome.verdicts == (Code.APPLIED,)
        listed.append(VerifierListed(verifier.public_key) in outcome.notices)
    assert listed == [False, True, False]
    row = views.verifiers(replica.store)[verifier.id]
    assert list(row.approvals) == sorted(key.id for key in replica.replicas)


def test_a_minority_cannot_list_a_verifier() -> None:
    replica = Replica(3)
    verifier = replica.verifiers[0]
    for code in (Code.APPLIED, Code.DUPLICATE):
        assert replica.run(AdmitVerifier(verifier.public_key)) == (code,)
    replica.close_epoch()
    assert replica.run(replica.ratification(verifier)) == (Code.NOT_AUTHORIZED,)


def test_a_replicas_key_cannot_be_a_verifiers() -> None:
    replica = Replica(3)
    assert replica.run(AdmitVerifier(replica.replicas[1].public_key)) == (Code.KEY_IN_USE,)


def test_no_more_verifiers_than_the_limit() -> None:
    replica = Replica()
    spare = [AdmitVerifier(Key("spare", number).public_key) for number in range(limits.VERIFIERS + 1)]
    codes = replica.run(*spare)
    assert codes == (*[Code.APPLIED] * limits.VERIFIERS, Code.TOO_MANY_VERIFIERS)
    assert sum(row.listed for row in views.verifiers(replica.store).values()) == limits.VERIFIERS


def test_one_replica_cannot_use_up_the_room_for_verifiers() -> None:
    replica = Replica(3)
    spam = [AdmitVerifier(Key("spam", number).public_key) for number in range(limits.VERIFIERS + 1)]
    codes = replica.run(*spam, by=replica.replicas[2])
    assert codes[-1] is Code.TOO_MANY_VERIFIERS
    for key in replica.replicas[:2]:
        assert replica.run(AdmitVerifier(replica.verifiers[0].public_key), by=key) == (Code.APPLIED,)
    assert views.verifiers(replica.store)[replica.verifiers[0].id].listed


def test_no_more_listed_verifiers_than_the_limit_among_several_replicas() -> None:
    replica = Replica(3)
    first, second, third = replica.replicas
    many = [AdmitVerifier(Key("many", number).public_key) for number in range(96)]
    replica.run(*many[:64], by=first)
    replica.run(*many[:32], *many[64:], by=second)
    codes = replica.run(*many[32:], by=third)
    assert codes[:32] == (Code.APPLIED,) * 32
    assert codes[32:] == (Code.TOO_MANY_VERIFIERS,) * 32
    assert sum(row.listed for row in views.verifiers(replica.store).values()) == limits.VERIFIERS
