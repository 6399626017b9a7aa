"""Replicas' signatures on heads, the majority, and the one order in which verifiers see updates and heads."""

from dataclasses import replace

import pytest
from workload.cast import Key, User, derive, policy_of
from workload.replica import Replica

from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import SignHead
from keyserver.machine.notices import (
    CommandDecided,
    HeadSigned,
    RatificationAdded,
    ReplicaContradiction,
    VerifierLogGrew,
)
from keyserver.machine.step import apply
from keyserver.machine.tables import Tables
from kv.keys import u64
from kv.overlay import Overlay
from verifier import epoch as epoch_law
from verifier import proof_encoding
from verifier.types import EpochStep, UpdateStep, VerifierStep


@pytest.fixture
def replica() -> Replica:
    """Three replicas, one head that nobody signed."""
    three = Replica(3)
    assert three.delimit() is Code.APPLIED
    return three


def verifier_log(replica: Replica) -> list[VerifierStep]:
    steps = views.verifier_steps(replica.store, 1, 2**30, 2**30)
    return [proof_encoding.decode_step(step) for step in steps]


def test_a_majority_of_signatures_signs_the_head(replica: Replica) -> None:
    first, second, third = replica.replicas
    outcome = replica.commit(replica.entry(replica.signature(first), by=first))
    assert outcome.notices[:-1] == (RatificationAdded(1, first.id),)
    assert replica.state.signed_epoch == 0
    outcome = replica.commit(replica.entry(replica.signature(second), by=second))
    assert outcome.notices[:-1] == (RatificationAdded(1, second.id), HeadSigned(1), VerifierLogGrew(1))
    assert replica.state.signed_epoch == 1
    outcome = replica.commit(replica.entry(replica.signature(third), by=third))
    assert outcome.notices[:-1] == (RatificationAdded(1, third.id),)
    assert views.signers_at(replica.store, 1) == {key.id for key in replica.replicas}


def test_a_published_head_satisfies_the_head_law(replica: Replica) -> None:
    replica.sign_all()
    (step,) = verifier_log(replica)
    assert isinstance(step, EpochStep)
    epoch_law.check_majority(replica.realm.genesis_policy, step.head)
    assert [len(made.signatures) for made in step.head.ratifications] == [2]


def test_a_late_signature_is_stored_too(replica: Replica) -> None:
    late = replica.replicas[2]
    for _ in range(3):
        for key in replica.replicas[:2]:
            replica.run(replica.signature(key), by=key)
        replica.delimit()
    assert replica.run(replica.signature(late, epoch=1), by=late) == (Code.APPLIED,)
    assert late.id in views.signers_at(replica.store, 1)
    assert replica.state.signed_epoch == 3


def test_the_first_signature_per_epoch_and_replica_stands(replica: Replica) -> None:
    key = replica.replicas[0]
    assert replica.run(replica.signature(key), by=key) == (Code.APPLIED,)
    assert replica.run(replica.signature(key), by=key) == (Code.DUPLICATE,)
    junk = replace(replica.signature(key), signature=bytes(64))
    assert replica.run(junk, by=key) == (Code.DUPLICATE,)


@pytest.mark.parametrize("epoch", [0, 2, 2**64 - 1])
def test_only_composed_heads_are_signed(replica: Replica, epoch: int) -> None:
    key = replica.replicas[0]
    made = replace(replica.signature(key), epoch=epoch)
    assert replica.run(made, by=key) == (Code.NO_SUCH_EPOCH,)


def test_a_signature_must_be_valid_and_the_proposers_own(replica: Replica) -> None:
    first, second, _ = replica.replicas
    assert replica.run(replica.signature(second), by=first) == (Code.BAD_SIGNATURE,)
    junk = replace(replica.signature(first), signature=bytes(64))
    assert replica.run(junk, by=first) == (Code.BAD_SIGNATURE,)
    assert views.signers_at(replica.store, 1) == frozenset()
    assert replica.run(replica.signature(first), by=first) == (Code.APPLIED,)


def test_a_signature_at_another_time_than_the_issue_time_is_refused(replica: Replica) -> None:
    key, head = replica.replicas[0], replica.head()
    message = epoch_law.replica_message(head.encoded, head.issue_time_ms + 1)
    made = SignHead(1, head.hash, key.sign(message))
    assert replica.run(made, by=key) == (Code.BAD_SIGNATURE,)


def test_another_head_hash_is_a_contradiction_and_harms_nobody(replica: Replica) -> None:
    liar, *honest = reversed(replica.replicas)
    made = replace(replica.signature(liar), head_hash=derive("another head"))
    outcome = replica.commit(replica.entry(made, by=liar))
    contradiction, decided = outcome.notices
    index = outcome.position.index
    assert contradiction == ReplicaContradiction(1, liar.id, derive("another head"), index)
    assert isinstance(decided, CommandDecided)
    assert decided.code is Code.HEAD_MISMATCH
    for key in honest:
        assert replica.run(replica.signature(key), by=key) == (Code.APPLIED,)
    assert replica.state.signed_epoch == 1


def test_verifier_log_updates_before_their_head(replica: Replica) -> None:
    alice, bob = User.named("alice"), User.named("bob")
    replica.sign_all()
    replica.register(alice)
    replica.register(bob)
    replica.close_epoch()
    log = verifier_log(replica)
    assert [step.index for step in log] == [1, 2, 3, 4]
    assert [type(step) for step in log] == [EpochStep, UpdateStep, UpdateStep, EpochStep]
    assert replica.state.verifier_log_size == 4


def test_verifier_log_updates_behind_a_delimiter_wait_for_its_majority(replica: Replica) -> None:
    users = [User.named(f"user {number}") for number in range(12)]
    for user in users:
        replica.register(user)
    assert verifier_log(replica) == []
    assert replica.state.parked_updates == len(users)
    replica.sign_all()
    log = verifier_log(replica)
    assert isinstance(log[0], EpochStep)
    indices = [step.update.entry.index for step in log[1:] if isinstance(step, UpdateStep)]
    assert indices == [user.index for user in users]
    assert [step.index for step in log] == list(range(1, 14))
    assert replica.state.parked_updates == 0
    assert list(replica.store.scan(*Tables.PARKED.span())) == []
    assert isinstance(replica.close_epoch().root_hash, bytes)


def test_verifier_log_holds_no_user_ids_and_no_profiles(replica: Replica) -> None:
    replica.sign_all()
    replica.register(User.named("alice"))
    replica.close_epoch()
    for key, row in replica.store.scan(b"", b"\xff"):
        if Tables.table_of(key) is not Tables.PROFILES:
            assert b"alice" not in row + key


def test_a_stranger_cannot_sign(replica: Replica) -> None:
    stranger = Key("stranger")
    outcome = replica.commit(replica.entry(replica.signature(stranger), by=stranger))
    assert outcome.refused
    assert outcome.verdicts == (Code.UNKNOWN_REPLICA,)


def test_a_replica_signs_only_heads_of_epochs_whose_policy_names_it(replica: Replica) -> None:
    newcomer = replica.replicas[0]
    older = policy_of([Key("an older replica")])
    planted = Overlay(replica.store)
    planted.put(Tables.POLICY_HEADS.key(u64(0)), older.encoded)
    payload = replica.entry(replica.signature(newcomer), by=newcomer)
    outcome = apply(planted, replica.machine, replica.state, replica.position, payload)
    assert outcome.verdicts == (Code.NOT_AUTHORIZED,)
