"""Other replicas: accepted once, in force from a head that both majorities signed, time going on unmoved."""

from dataclasses import replace

import pytest
from workload.cast import Key, User, derive, draft, policy_of
from workload.replica import Replica

from keyserver import log_dump
from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AdmitVerifier, AnnounceRules, Command, Delimiter, Tick
from keyserver.machine.obligations import Facts, OweSignature, wanted
from keyserver.machine.state import load_state
from keyserver.machine.turn import log_time
from keyserver.published import Published
from verifier import encoding
from verifier import epoch as epoch_law
from verifier.errors import Reason, Refused

NEW = Key("replica", "new")


def lived_in(replicas: int = 3) -> Replica:
    replica = Replica(replicas)
    replica.admit(replica.verifiers[0])
    replica.register(User.named("alice"))
    replica.close_epoch()
    return replica


@pytest.fixture
def replica() -> Replica:
    return lived_in()


def refused(replica: Replica, command: Command) -> Code:
    """The verdict on a command that must change nothing."""
    before = replica.state
    (code,) = replica.run(command)
    assert replica.state == before
    return code


# Acceptance


def test_a_change_waits_for_the_delimiter_and_survives_a_restart(replica: Replica) -> None:
    assert replica.run(replica.change(add=NEW)) == (Code.APPLIED,)
    state = load_state(replica.store, replica.machine)
    assert state == replica.state
    assert state.next_policy is not None
    assert list(state.policy.keys) == [key.id for key in replica.replicas]
    assert NEW.id in state.next_policy.keys


def test_a_change_needs_a_majority_and_every_added_key(replica: Replica) -> None:
    one, two, _ = replica.replicas
    for by in ([], [one, NEW], [one, two], [NEW, Key("stranger"), one], [replica.verifiers[0], one, NEW]):
        assert refused(replica, replica.change(add=NEW, by=by)) is Code.NOT_AUTHORIZED
    assert replica.run(replica.change(add=NEW, by=[one, two, NEW])) == (Code.APPLIED,)


def test_the_first_of_two_changes_stands(replica: Replica) -> None:
    first = replica.change(add=NEW)
    assert replica.run(first) == (Code.APPLIED,)
    assert refused(replica, first) is Code.DUPLICATE
    assert refused(replica, replica.change(add=Key("other"))) is Code.CHANGE_PENDING


def test_a_change_serves_once_at_one_place_of_the_chain(replica: Replica) -> None:
    there = replica.change(add=NEW)
    assert replica.run(there) == (Code.APPLIED,)
    replica.delimit()
    replica.sign_all()
    assert refused(replica, there) is Code.CHANGE_OUTDATED
    replica.changed(remove=NEW)  # the same replicas as at first
    assert refused(replica, there) is Code.CHANGE_OUTDATED
    assert replica.run(replica.change(add=NEW)) == (Code.APPLIED,)


def test_a_change_expires_in_log_time(replica: Replica) -> None:
    late = replica.change(add=NEW, not_after_ms=replica.clock_ms - 1)
    assert refused(replica, late) is Code.CHANGE_OUTDATED
    assert replica.run(replica.change(add=NEW, not_after_ms=replica.clock_ms)) == (Code.APPLIED,)


def test_a_change_of_two_keys_or_to_less_than_a_majority_is_unlawful(replica: Replica) -> None:
    two = policy_of([*replica.replicas[1:], NEW, Key("another")], 3)
    weak = policy_of([*replica.replicas, NEW], 2)
    for unlawful in (two, weak):
        change = replica.change(add=NEW, policy=encoding.policy_message(unlawful))
        assert refused(replica, change) is Code.CHANGE_UNLAWFUL


def test_a_key_is_a_replicas_or_a_verifiers(replica: Replica) -> None:
    assert refused(replica, replica.change(add=replica.verifiers[0])) is Code.KEY_IN_USE
    replica.run(replica.change(add=NEW))
    assert refused(replica, AdmitVerifier(NEW.public_key)) is Code.KEY_IN_USE


def test_one_replica_cannot_stand_in_the_way_by_approving_the_key_as_a_verifiers(replica: Replica) -> None:
    replica.run(AdmitVerifier(NEW.public_key), by=replica.replicas[2])
    assert replica.run(replica.change(add=NEW)) == (Code.APPLIED,)


# The head between


def handed_over(replica: Replica, *, add: Key | None = None, remove: Key | None = None) -> None:
    """Up to the delimiter, which nobody has signed yet."""
    assert replica.run(replica.change(add=add, remove=remove)) == (Code.APPLIED,)
    assert replica.delimit() is Code.APPLIED


def test_the_head_carries_the_new_policy_and_needs_both_majorities(replica: Replica) -> None:
    one, two, three = replica.replicas
    handed_over(replica, add=NEW, remove=three)
    change = replica.head().next_epoch_policy
    assert change == replica.state.policy == policy_of([one, two, NEW], 2)
    replica.run(replica.signature(one))
    replica.run(replica.signature(three), by=three)
    assert not replica.state.is_signed  # two of the old, one of the new
    replica.run(replica.signature(NEW), by=NEW)
    assert replica.state.is_signed
    signed = encoding.decode_signed_head(views.signed_head(replica.store, 2))
    epoch_law.check_majority(replica.realm.genesis_policy, signed)


def test_new_keys_alone_do_not_sign_for_the_old(replica: Replica) -> None:
    one, two, three = replica.replicas
    handed_over(replica, add=NEW, remove=three)
    replica.run(replica.signature(NEW), by=NEW)
    replica.run(replica.signature(two), by=two)
    assert not replica.state.is_signed  # two of the new, one of the old
    replica.run(replica.signature(one))
    assert replica.state.is_signed


def test_who_leaves_signs_the_last_head_and_does_nothing_else(replica: Replica) -> None:
    leaving = replica.replicas[2]
    handed_over(replica, remove=leaving)
    made = replica.signature(leaving)
    for payload in (
        replica.entry(Tick(), by=leaving),
        replica.entry(made, Tick(), by=leaving),
        replica.entry(Delimiter(3, replica.clock_ms), by=leaving),
    ):
        outcome = replica.commit(payload)
        assert (outcome.refused, outcome.verdicts) == (True, (Code.UNKNOWN_REPLICA,))
    assert replica.run(made, by=leaving) == (Code.APPLIED,)
    for key in replica.replicas[:2]:
        replica.run(replica.signature(key), by=key)
    late = replica.commit(replica.entry(replica.signature(leaving, 1), by=leaving))
    assert late.verdicts == (Code.UNKNOWN_REPLICA,)


def test_nobody_comes_before_the_delimiter(replica: Replica) -> None:
    replica.run(replica.change(add=NEW))
    assert replica.commit(replica.entry(Tick(), by=NEW)).verdicts == (Code.UNKNOWN_REPLICA,)
    replica.delimit()
    assert replica.run(Tick(), by=NEW) == (Code.APPLIED,)
    assert replica.run(replica.signature(NEW, 1), by=NEW) == (Code.NOT_AUTHORIZED,)


def test_a_lone_replica_hands_over_to_its_new_key() -> None:
    replica = lived_in(1)
    (old,) = replica.replicas
    handed_over(replica, add=NEW, remove=old)
    replica.run(replica.signature(old), by=old)
    assert not replica.state.is_signed
    replica.run(replica.signature(NEW), by=NEW)
    assert replica.state.is_signed
    replica.close_epoch()


def test_who_signs_the_head_between_owes_it(replica: Replica) -> None:
    three = replica.replicas[2]
    handed_over(replica, add=NEW, remove=three)
    for key in (three, *replica.replicas):
        owed = wanted(
            replica.store, replica.machine, replica.state, Facts(replica.clock_ms, key.id, False, 60_000)
        )
        assert [duty.epoch for duty in owed if isinstance(duty, OweSignature)] == [2]
        assert len(owed) == 1


def test_the_log_shows_who_is_to_replace_whom_and_who_approved(replica: Replica) -> None:
    change = replica.change(add=NEW, remove=replica.replicas[0], by=[NEW])
    shown = log_dump.describe(9, replica.entry(change, AnnounceRules(2)))["commands"]
    assert [command["command"] for command in shown] == ["ChangeReplicas", "AnnounceRules"]
    assert shown[0]["replicas"] == [key.id.hex() for key in (NEW, *replica.replicas[1:])]
    assert (shown[0]["approvals"], shown[1]["rules"]) == ([NEW.id.hex()], 2)


# Afterwards


def test_every_replica_can_be_exchanged_one_after_the_other(replica: Replica) -> None:
    genesis, first = replica.realm.genesis_policy, list(replica.replicas)
    for number, old in enumerate(first):
        replica.changed(add=Key("rolled", number), remove=old)
    replica.changed(add=NEW)
    replica.changed(remove=replica.replicas[0])
    replica.register(User.named("bob"))
    replica.close_epoch()
    heads = [encoding.decode_signed_head(head) for head in views.policy_heads(replica.store, 1)]
    followed = epoch_law.policy_at(replica.realm, heads, replica.state.epoch)
    assert followed == replica.state.policy == views.policies(replica.store, genesis)[-1][1]
    assert not {key.id for key in first} & followed.keys.keys()


def test_endorsements_count_by_the_new_set(replica: Replica) -> None:
    one, _, three = replica.replicas
    replica.changed(add=NEW, remove=three)
    by_former = draft(replica.realm, User.named("bob"), endorsers=[one, three])
    assert replica.submit(by_former) is Code.PROOF_INVALID
    assert replica.submit(draft(replica.realm, User.named("bob"), endorsers=[one, NEW])) is Code.APPLIED


@pytest.mark.parametrize("leaving", [0, 1, 2, None])
@pytest.mark.parametrize("coming", [True, False])
def test_time_neither_jumps_nor_goes_back(replica: Replica, leaving: int | None, coming: bool) -> None:
    now = replica.clock_ms
    for key, ahead_ms in zip(replica.replicas, (0, 400_000, -300_000), strict=True):
        replica.run(Tick(), by=key, time_ms=now + 1_000_000 + ahead_ms)
    before = log_time(replica.store, replica.state.policy)
    gone = None if leaving is None else replica.replicas[leaving]
    if gone is None and not coming:
        return
    assert replica.run(replica.change(add=NEW if coming else None, remove=gone)) == (Code.APPLIED,)
    assert replica.run(Delimiter(2, before), time_ms=1) == (Code.APPLIED,)
    assert log_time(replica.store, replica.state.policy) == before
    if gone is not None:
        assert log_time(replica.store, policy_of([gone])) == 0


def test_clients_who_asked_for_the_replicas_get_those_of_the_epoch(replica: Replica) -> None:
    quorum = replica.realm.genesis_policy.quorum
    for number, old in enumerate(list(replica.replicas)):
        replica.changed(add=Key("rolled", number), remove=old)
    replica.close_epoch()
    newest = replica.state.epoch
    published = Published(replica.realm, replica.store, replica.state)
    assert published.choose(quorum, 0, 0, 0) == newest
    assert published.choose(quorum, 1, 0, 0) == 1
    for epoch in (1, newest):
        signed = encoding.decode_signed_head(published.signed_head(epoch, quorum))
        by = {made.key_id for one in signed.ratifications for made in one.signatures}
        laws = [
            law
            for first, law in views.policies(replica.store, replica.realm.genesis_policy)
            if first <= epoch
        ]
        assert by == laws[-1].keys.keys()
    stranger = replace(quorum, candidates=(derive("a"), derive("b"), derive("c")))
    with pytest.raises(Refused) as caught:
        published.choose(stranger, 0, 0, 0)
    assert caught.value.reason is Reason.QUORUM_UNSATISFIABLE
