"""What a replica owes, from its rows alone: nothing is forgotten by a crash, nothing is owed too early."""

from dataclasses import replace

import pytest
from workload.cast import Key, User
from workload.replica import MIN_INTERVAL_MS, Replica

from keyserver.machine.codes import Code, Halt
from keyserver.machine.commands import AdmitVerifier, Delimiter, Tick
from keyserver.machine.obligations import (
    LATE_SIGNATURES,
    Facts,
    Obligation,
    OweAdmission,
    OweDelimiter,
    OweSignature,
    OweTick,
    wanted,
)
from keyserver.machine.state import load_state
from verifier import limits

MAX_INTERVAL_MS = 10 * MIN_INTERVAL_MS


def owed(
    replica: Replica,
    *,
    by: Key | None = None,
    leader: bool = True,
    admit: tuple[bytes, ...] = (),
    in_ms: int = 0,
) -> tuple[Obligation, ...]:
    """What the replica owes after a restart, in_ms from now on its own clock."""
    key = by or replica.replicas[0]
    facts = Facts(replica.clock_ms + in_ms, key.id, leader, MAX_INTERVAL_MS, admit)
    return wanted(replica.store, replica.machine, load_state(replica.store, replica.machine), facts)


@pytest.fixture
def replica() -> Replica:
    one = Replica()
    one.close_epoch()
    return one


# Signatures


def test_a_signature_is_owed_from_the_delimiter_until_it_is_in_the_log() -> None:
    replica = Replica(3)
    replica.delimit()
    head, log_index = replica.head(), replica.position.index
    for key in replica.replicas:
        (signature,) = owed(replica, by=key)
        assert signature == OweSignature(1, head.encoded, head.issue_time_ms, log_index, head.state_digest)
        replica.run(replica.signature(key), by=key)
        assert owed(replica, by=key) == ()


def test_a_replica_that_missed_epochs_owes_them_all_oldest_first() -> None:
    replica = Replica(3)
    slow = replica.replicas[2]
    for _ in range(3):
        replica.delimit()
        for key in replica.replicas[:2]:
            replica.run(replica.signature(key), by=key)
    late = owed(replica, by=slow)
    assert [made.epoch for made in late if isinstance(made, OweSignature)] == [1, 2, 3]
    assert replica.run(replica.signature(slow, epoch=2), by=slow) == (Code.APPLIED,)
    late = owed(replica, by=slow)
    assert [made.epoch for made in late if isinstance(made, OweSignature)] == [1, 3]


def test_signatures_of_long_ago_are_not_owed(replica: Replica) -> None:
    three = Replica(3)
    for _ in range(LATE_SIGNATURES + 2):
        three.delimit()
        for key in three.replicas[:2]:
            three.run(three.signature(key), by=key)
    late = owed(three, by=three.replicas[2])
    epochs = [made.epoch for made in late if isinstance(made, OweSignature)]
    assert epochs == list(range(3, LATE_SIGNATURES + 3))


def test_late_signatures_that_no_client_takes_any_more_are_not_owed() -> None:
    replica, late = Replica(3), 2
    for _ in range(late + 1):
        replica.delimit()
        if replica.state.epoch <= late:
            for key in replica.replicas[:2]:
                replica.run(replica.signature(key), by=key)
    slow, ttl_ms = replica.replicas[2], replica.realm.epoch_ttl_ms
    for in_ms, epochs in ((ttl_ms - 10 * MIN_INTERVAL_MS, [1, 2, 3]), (2 * ttl_ms, [3])):
        made = owed(replica, by=slow, in_ms=in_ms)
        assert [duty.epoch for duty in made if isinstance(duty, OweSignature)] == epochs


def test_who_has_left_owes_nothing_once_the_last_head_is_signed() -> None:
    replica = Replica(3)
    leaving = replica.replicas[2]
    replica.close_epoch()
    replica.run(replica.change(remove=leaving))
    replica.delimit()
    assert len(owed(replica, by=leaving)) == 1
    for key in replica.replicas[:2]:
        replica.run(replica.signature(key), by=key)
    assert owed(replica, by=leaving, in_ms=MAX_INTERVAL_MS) == ()


def test_a_stranger_owes_nothing(replica: Replica) -> None:
    replica.register(User.named("alice"))
    stranger = Key("stranger")
    public_key = replica.verifiers[0].public_key
    assert owed(replica, by=stranger, admit=(public_key,), in_ms=MAX_INTERVAL_MS) == ()


# Delimiters


@pytest.mark.parametrize(
    ("updates", "in_ms", "due"),
    [
        (1, MIN_INTERVAL_MS - 1, False),
        (1, MIN_INTERVAL_MS, True),
        (0, MAX_INTERVAL_MS - 1, False),
        (0, MAX_INTERVAL_MS, True),
    ],
)
def test_a_delimiter_is_owed_after_min_with_updates_and_after_max_without(
    replica: Replica, updates: int, in_ms: int, due: bool
) -> None:
    for number in range(updates):
        replica.register(User.named(f"user {number}"))
    expected = (OweDelimiter(2, replica.clock_ms + in_ms),) if due else ()
    assert owed(replica, in_ms=in_ms) == expected


def test_an_owed_delimiter_is_a_lawful_one(replica: Replica) -> None:
    replica.register(User.named("alice"))
    replica.clock_ms += MIN_INTERVAL_MS
    (delimiter,) = owed(replica)
    assert isinstance(delimiter, OweDelimiter)
    assert replica.delimit() is Code.APPLIED


def test_a_delimiter_is_owed_by_the_likely_leader_only(replica: Replica) -> None:
    assert owed(replica, leader=False, in_ms=MAX_INTERVAL_MS) == (OweTick(),)
    assert owed(replica, leader=True, in_ms=MAX_INTERVAL_MS) != ()


def test_no_delimiter_while_a_head_awaits_its_majority() -> None:
    replica = Replica(3)
    replica.delimit()
    replica.run(replica.signature(replica.replicas[0]))
    assert owed(replica, in_ms=MAX_INTERVAL_MS) == ()
    replica.run(replica.signature(replica.replicas[1]), by=replica.replicas[1])
    assert owed(replica, in_ms=MAX_INTERVAL_MS) == (OweDelimiter(2, replica.clock_ms + MAX_INTERVAL_MS),)


def test_the_first_epoch_is_due_at_once() -> None:
    replica = Replica()
    assert owed(replica) == (OweDelimiter(1, replica.clock_ms),)


# Ticks


@pytest.mark.parametrize(
    ("ahead_ms", "due"), [(limits.TICK_AHEAD_MS, False), (limits.TICK_AHEAD_MS + 1, True)]
)
def test_a_tick_is_owed_when_an_epoch_is_due_and_the_log_is_behind(ahead_ms: int, due: bool) -> None:
    replica = Replica(3)
    replica.close_epoch()
    replica.clock_ms += MAX_INTERVAL_MS
    for key in replica.replicas:
        replica.run(Tick(), by=key, time_ms=replica.clock_ms - ahead_ms)
    assert owed(replica, leader=False) == ((OweTick(),) if due else ())


def test_no_tick_while_no_epoch_is_due() -> None:
    replica = Replica(3)
    replica.close_epoch()
    assert owed(replica, leader=False, in_ms=MAX_INTERVAL_MS - 1) == ()
    replica.delimit()
    for key in replica.replicas:
        assert not any(isinstance(duty, OweTick) for duty in owed(replica, by=key, leader=False))


def test_ticks_and_the_leaders_delimiter_lead_to_a_new_epoch_after_a_long_silence() -> None:
    replica = Replica(3)
    replica.close_epoch()
    replica.clock_ms += 3_600_000
    leader, other, third = replica.replicas
    for key in (leader, other):
        assert owed(replica, by=key, leader=key is leader) == (OweTick(),)
        replica.run(Tick(), by=key)
    assert owed(replica, by=third, leader=False) == ()
    assert owed(replica, by=leader) == (OweDelimiter(2, replica.clock_ms),)
    assert replica.run(Delimiter(2, replica.clock_ms)) == (Code.APPLIED,)


# Admission of verifiers


def test_an_admission_is_owed_until_this_replica_approved_or_all_did() -> None:
    replica = Replica(3)
    public_key = replica.verifiers[0].public_key
    first, second, third = replica.replicas
    assert owed(replica, leader=False, admit=(public_key,))[-1:] == (OweAdmission(public_key),)
    replica.run(AdmitVerifier(public_key), by=first)
    assert OweAdmission(public_key) not in owed(replica, by=first, admit=(public_key,))
    assert OweAdmission(public_key) in owed(replica, by=second, admit=(public_key,))
    replica.run(AdmitVerifier(public_key), by=second)
    assert OweAdmission(public_key) not in owed(replica, by=third, admit=(public_key,))


def test_no_more_admissions_are_owed_than_there_is_room_for(replica: Replica) -> None:
    keys = tuple(Key("spare", number).public_key for number in range(limits.VERIFIERS + 5))
    assert len(owed(replica, admit=keys)) == limits.VERIFIERS
    replica.run(*(AdmitVerifier(key) for key in keys[: limits.VERIFIERS]))
    assert owed(replica, admit=keys) == ()


def test_a_storage_error_is_a_halt(replica: Replica) -> None:
    facts = Facts(0, replica.replicas[0].id, True, MAX_INTERVAL_MS)
    state = replace(replica.state)
    replica.store.close()
    with pytest.raises(Halt):
        wanted(replica.store, replica.machine, state, facts)
