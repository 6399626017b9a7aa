"""Erase: who may, what goes, what stays, and what the replica owes its own disk afterwards."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from e2eks.v1 import command_pb2, state_pb2
from workload.cast import Draft, Key, User, derive, draft, erasure, policy_of
from workload.replay import blanked, replay
from workload.replica import Replica

from keyserver.machine import commands, views
from keyserver.machine.codes import Code, Halt
from keyserver.machine.erasure import ALL_PARTS, owed_blankings, without_parts
from keyserver.machine.rows import vrf_cache_key
from keyserver.machine.tables import Tables
from verifier import erasure as law
from verifier import limits
from verifier.errors import Malformed, Reason, Refused
from verifier.types import Signature

MANY = 10_000


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def alice(replica: Replica) -> User:
    """Registered, published, and updated in the running epoch."""
    user = User.named("alice")
    assert replica.register(user) is Code.APPLIED
    replica.close_epoch()
    assert replica.update(user) is Code.APPLIED
    return user


def private_rows(replica: Replica, user: User) -> list[bytes]:
    return [key for key, _ in replica.store.scan(*Tables.PROFILES.span(user.index))]


def owed(replica: Replica) -> dict[int, set[int]]:
    """Log index -> numbers of the parts to be blanked."""
    return {one.log_index: set(one.parts) for one in owed_blankings(replica.store, MANY)}


# The law


def test_erasure_law_the_policy_of_the_entry_decides(replica: Replica, alice: User) -> None:
    message = law.erasure_message(replica.realm.hash, alice.index, alice.previous)
    keys = [Key("a"), Key("b"), Key("c")]
    two = policy_of(keys, 2)
    made = [key.signature(message) for key in keys]
    assert law.verify_erasure(two, message, made[1:]) == tuple(made[1:])
    stranger = Key("stranger").signature(message)
    assert law.verify_erasure(two, message, [stranger, *made[:2]]) == tuple(made[:2])
    forged = replace(made[1], signature=made[0].signature)
    for short in ([], made[:1], [made[0], stranger], [made[0], forged]):
        with pytest.raises(Refused) as refused:
            law.verify_erasure(two, message, short)
        assert refused.value.reason is Reason.NOT_AUTHORIZED


def test_erasure_law_signatures_are_bounded_and_by_distinct_keys() -> None:
    made = [Signature(derive(number), bytes(64)) for number in range(limits.UPDATE_SIGNATURES + 1)]
    assert law.check_signatures(made[:-1]) == tuple(made[:-1])
    for wrong in (made, [made[0], made[0]]):
        with pytest.raises(Malformed):
            law.check_signatures(wrong)


# The command


def test_the_owner_erases_all_versions_and_nothing_of_others(replica: Replica, alice: User) -> None:
    bob = User.named("bob")
    replica.register(bob)
    assert len(private_rows(replica, alice)) == 2
    before = dict(replica.store.scan(*Tables.CURRENT.span())), replica.state
    assert replica.run(erasure(replica.realm, alice)) == (Code.APPLIED,)
    assert private_rows(replica, alice) == []
    assert len(private_rows(replica, bob)) == 1
    assert (dict(replica.store.scan(*Tables.CURRENT.span())), replica.state) == before
    assert replica.run(erasure(replica.realm, alice)) == (Code.APPLIED,)


def test_everything_still_verifies_in_every_epoch_without_the_profile(replica: Replica, alice: User) -> None:
    replica.close_epoch()
    before = [views.lookup_parts(replica.store, alice.index, epoch) for epoch in (1, 2)]
    assert all(parts.profile for parts in before)
    replica.run(erasure(replica.realm, alice))
    after = [views.lookup_parts(replica.store, alice.index, epoch) for epoch in (1, 2)]
    assert after == [replace(parts, profile=b"", nonce=b"") for parts in before]


def test_later_updates_are_private_again_until_they_are_erased_too(replica: Replica, alice: User) -> None:
    first = erasure(replica.realm, alice)
    replica.run(first)
    replica.close_epoch()
    assert replica.update(alice) is Code.APPLIED
    assert len(private_rows(replica, alice)) == 1
    assert replica.run(first) == (Code.VERSION_MISMATCH,)
    assert len(private_rows(replica, alice)) == 1
    assert replica.run(erasure(replica.realm, alice)) == (Code.APPLIED,)
    assert private_rows(replica, alice) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"signers": []}, Code.NOT_AUTHORIZED),
        ({"signers": [Key("stranger")]}, Code.NOT_AUTHORIZED),
        ({"entry_hash": derive("another")}, Code.VERSION_MISMATCH),
    ],
)
def test_nobody_else_erases(replica: Replica, alice: User, changes: dict[str, object], code: Code) -> None:
    assert replica.run(erasure(replica.realm, alice, **changes)) == (code,)  # type: ignore[arg-type]
    assert len(private_rows(replica, alice)) == 2
    assert owed(replica) == {}


def test_a_signature_for_another_index_or_realm_erases_nothing(replica: Replica, alice: User) -> None:
    twin = User.named("twin")
    twin.keys = alice.keys
    replica.register(twin)
    theirs = erasure(replica.realm, twin)
    moved = replace(theirs, index=alice.index, entry_hash=alice.previous)
    elsewhere = erasure(Replica(name="elsewhere").realm, alice)
    assert replica.run(moved, elsewhere) == (Code.NOT_AUTHORIZED, Code.NOT_AUTHORIZED)


def test_an_index_without_an_entry_cannot_be_erased(replica: Replica) -> None:
    nobody = User.named("nobody")
    assert replica.run(erasure(replica.realm, nobody, entry_hash=derive("x"))) == (Code.VERSION_MISMATCH,)


def test_after_a_revocation_the_policy_it_ended_decides(replica: Replica, alice: User) -> None:
    replica.close_epoch()
    assert replica.update(alice, revocation=True, version=9) is Code.APPLIED
    assert replica.run(erasure(replica.realm, alice, signers=[Key("stranger")])) == (Code.NOT_AUTHORIZED,)
    assert replica.run(erasure(replica.realm, alice)) == (Code.APPLIED,)
    assert private_rows(replica, alice) == []


def test_after_a_rotation_the_old_key_erases_nothing(replica: Replica, alice: User) -> None:
    replica.close_epoch()
    old, alice.keys = alice.keys, [Key("new device")]
    made = draft(replica.realm, alice, signers=[*old, *alice.keys])
    assert replica.submit(made, alice) is Code.APPLIED
    assert replica.run(erasure(replica.realm, alice, signers=old)) == (Code.NOT_AUTHORIZED,)
    assert replica.run(erasure(replica.realm, alice)) == (Code.APPLIED,)


@pytest.mark.parametrize(
    "message",
    [
        command_pb2.Erase(),
        command_pb2.Erase(index=bytes(31), entry_hash=bytes(32)),
        command_pb2.Erase(index=bytes(32), entry_hash=bytes(33)),
    ],
)
def test_a_malformed_erase_is_refused(replica: Replica, message: command_pb2.Erase) -> None:
    wire = command_pb2.Command(erase=message).SerializeToString(deterministic=True)
    assert replica.run(wire) == (Code.MALFORMED,)


def test_a_damaged_private_row_halts(replica: Replica, alice: User) -> None:
    replica.store.write({Tables.PROFILES.key(alice.index, bytes(8)): b"\xff"})
    with pytest.raises(Halt):
        replica.run(erasure(replica.realm, alice))


def test_a_revocation_without_its_past_halts(replica: Replica, alice: User) -> None:
    replica.close_epoch()
    replica.update(alice, revocation=True)
    replica.store.write({key: None for key, _ in replica.store.scan(*Tables.PAST.span(alice.index))})
    with pytest.raises(Halt):
        replica.run(erasure(replica.realm, alice))


def test_the_digest_does_not_know_what_was_private(replica: Replica, alice: User) -> None:
    replica.run(erasure(replica.realm, alice))
    replica.close_epoch()
    lines = replay(replica.machine, replica.log)
    assert replay(replica.machine, blanked(replica.log)) == lines


# What is owed


def test_an_erasure_owes_the_parts_in_the_log_and_the_rows_that_were_deleted(
    replica: Replica, alice: User
) -> None:
    indices = [n for n, payload in enumerate(replica.log, 1) if payload != commands.public_part(payload)]
    rows = private_rows(replica, alice)
    replica.run(erasure(replica.realm, alice))
    found = owed_blankings(replica.store, MANY)
    assert [one.log_index for one in found] == indices
    assert all(one.parts == {0} for one in found)
    cached = vrf_cache_key(alice.user_id)
    assert [one.deleted for one in found] == [{row, cached} for row in rows]
    assert {key for one in found for key in one.duties} == {
        key for key, _ in replica.store.scan(*Tables.BLANKING.span())
    }


def test_only_the_erased_part_of_an_entry_is_owed(replica: Replica) -> None:
    users = [User.named(name) for name in ("a", "b", "c")]
    made = [draft(replica.realm, user, endorsers=replica.endorsers) for user in users]
    entry = replica.entry(*(one.command for one in made), parts=[one.part for one in made])
    assert replica.commit(entry).verdicts == (Code.APPLIED,) * 3
    users[1].accepted(made[1].entry)
    replica.run(erasure(replica.realm, users[1]))
    assert owed(replica) == {1: {1}}
    left = commands.decode_log_entry(without_parts(entry, {1})).private_parts
    assert left == (made[0].part, b"", made[2].part)
    assert commands.public_part(without_parts(entry, {1})) == commands.public_part(entry)


def test_the_cached_place_in_the_tree_is_deleted(replica: Replica, alice: User) -> None:
    key = vrf_cache_key(alice.user_id)
    assert alice.user_id.encode() not in key
    replica.store.write({key: b"index and proof"})
    replica.run(erasure(replica.realm, alice))
    assert replica.store.get(key) is None


def refused_updates(replica: Replica, alice: User) -> list[Draft]:
    """Updates that fill no row: pending, unauthorised, not of the version, again, unendorsed."""
    again = draft(replica.realm, alice)
    return [
        again,
        draft(replica.realm, alice, label="x", signers=[]),
        draft(replica.realm, alice, label="x", version=7),
        draft(replica.realm, User.named("new")),
    ]


def test_parts_that_filled_no_row_are_owed_at_once(replica: Replica, alice: User) -> None:
    made = refused_updates(replica, alice)
    outcome = replica.commit(replica.entry(*(one.command for one in made), parts=[one.part for one in made]))
    assert Code.APPLIED not in outcome.verdicts
    assert owed(replica) == {replica.position.index: {0, 1, 2, 3}}
    assert all(not one.deleted for one in owed_blankings(replica.store, MANY))


def test_a_part_of_no_update_is_owed_at_once(replica: Replica, alice: User) -> None:
    parts = [b"what should not be here", b"nor here"]
    replica.commit(replica.entry(erasure(replica.realm, alice), commands.Tick(), parts=parts))
    assert owed(replica)[replica.position.index] == {0, 1}


def test_the_parts_of_a_refused_entry_are_owed_at_once(replica: Replica, alice: User) -> None:
    made = draft(replica.realm, alice, label="x")
    outcome = replica.commit(replica.entry(made.command, parts=[made.part], by=Key("stranger")))
    assert outcome.refused
    assert owed(replica) == {replica.position.index: {0}}


def test_parts_that_belong_to_no_command_are_owed_altogether(replica: Replica) -> None:
    entry = replica.entry(commands.Tick(), parts=[b"one", b"two"])
    replica.commit(entry)
    assert owed(replica) == {1: {ALL_PARTS}}
    assert without_parts(entry, {ALL_PARTS}) == commands.public_part(entry)


def test_blanked_entries_owe_nothing(replica: Replica, alice: User) -> None:
    replica.run(erasure(replica.realm, alice))
    other = Replica()
    for payload in blanked(replica.log):
        other.commit(payload)
    assert owed(other) == {}
    assert other.position == replica.position


def test_duties_are_given_oldest_first_and_a_few_at_a_time(replica: Replica, alice: User) -> None:
    for number in range(5):
        made = draft(replica.realm, alice, label=number, signers=[])
        replica.commit(replica.entry(made.command, parts=[made.part]))
    first = owed_blankings(replica.store, 2)
    assert [one.log_index for one in first] == sorted(owed(replica))[:2]
    replica.store.write(dict.fromkeys((key for one in first for key in one.duties), None))
    assert len(owed(replica)) == 3


def test_a_damaged_duty_halts(replica: Replica) -> None:
    for key, row in ((b"short", b""), (bytes(10), b"\xff")):
        replica.store.write({Tables.BLANKING.key(key): row})
        with pytest.raises(Halt):
            owed_blankings(replica.store, MANY)
        replica.store.write({Tables.BLANKING.key(key): None})


def test_random_blankings_never_change_what_is_public(
    replica: Replica, alice: User, rng: Random, count: Callable[[int], int]
) -> None:
    made = refused_updates(replica, alice)
    entry = replica.entry(*(one.command for one in made), parts=[one.part for one in made])
    for _ in range(count(50)):
        numbers = set(rng.sample(range(6), rng.randint(0, 6)))
        left = without_parts(entry, numbers)
        assert commands.public_part(left) == commands.public_part(entry)
        parts = commands.decode_log_entry(left).private_parts
        assert parts == tuple(b"" if n in numbers else one.part for n, one in enumerate(made))
        assert without_parts(left, numbers) == left


def test_private_rows_say_where_in_the_log_they_stand(replica: Replica, alice: User) -> None:
    for key, row in replica.store.scan(*Tables.PROFILES.span(alice.index)):
        kept = state_pb2.PrivateRow.FromString(row)
        part = commands.decode_log_entry(replica.log[kept.log_index - 1]).private_parts[kept.part]
        assert kept.profile in part, key
