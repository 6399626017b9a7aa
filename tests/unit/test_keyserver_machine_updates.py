"""SubmitUpdate: the update law, admission and quota, each on its accepting and on its refusing sides."""

from dataclasses import replace

import pytest
from e2eks.v1 import state_pb2
from workload.cast import Draft, Key, User, derive, draft, endorse
from workload.replica import Replica

from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import SubmitUpdate, Tick
from keyserver.machine.notices import CommandDecided, VerifierLogGrew
from keyserver.machine.tables import Tables
from kv.keys import u64
from verifier import limits


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def alice(replica: Replica) -> User:
    """Registered in epoch 1."""
    user = User.named("alice")
    assert replica.register(user) is Code.APPLIED
    replica.close_epoch()
    return user


# The update law, as the step applies it. The law itself is tested beside verifier/update.py.


def test_update_law_registration_then_update_are_accepted(replica: Replica, alice: User) -> None:
    assert replica.update(alice) is Code.APPLIED
    replica.close_epoch()
    first, second = (views.entry_at(replica.store, alice.index, epoch) for epoch in (1, 2))
    assert first is not None
    assert first.update.entry.version == 0
    assert first.since_epoch == 1
    assert second is not None
    assert second.update.entry.version == 1
    assert second.since_epoch == 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 0, "previous": b"", "label": "other"}, Code.VERSION_MISMATCH),
        ({"version": 2}, Code.VERSION_MISMATCH),
        ({"previous": derive("another entry")}, Code.VERSION_MISMATCH),
        ({"signers": []}, Code.NOT_AUTHORIZED),
        ({"signers": [Key("stranger")]}, Code.NOT_AUTHORIZED),
        ({"new_keys": [Key("new phone")], "signers": [Key("new phone")]}, Code.NOT_AUTHORIZED),
        ({"version": 1, "revocation": True, "signers": [Key("stranger")]}, Code.NOT_AUTHORIZED),
    ],
)
def test_update_law_refuses(replica: Replica, alice: User, changes: dict[str, object], code: Code) -> None:
    before = replica.state
    assert replica.update(alice, **changes) is code
    assert replica.state == before


def test_update_law_new_keys_need_old_and_new_signatures(replica: Replica, alice: User) -> None:
    phone = Key("new phone")
    assert replica.update(alice, new_keys=[phone], signers=[*alice.keys]) is Code.NOT_AUTHORIZED
    assert replica.update(alice, new_keys=[phone], signers=[*alice.keys, phone]) is Code.APPLIED


def test_update_law_unknown_index_accepts_version_0_only(replica: Replica) -> None:
    bob = User.named("bob")
    assert replica.register(bob, version=1, previous=derive("none")) is Code.VERSION_MISMATCH
    assert replica.register(bob, revocation=True) is Code.VERSION_MISMATCH
    assert replica.register(bob) is Code.APPLIED


def test_update_law_one_accepted_update_between_two_delimiters(replica: Replica, alice: User) -> None:
    assert replica.update(alice) is Code.APPLIED
    assert replica.update(alice) is Code.UPDATE_PENDING
    replica.close_epoch()
    assert replica.update(alice) is Code.APPLIED


def test_update_law_a_refused_update_leaves_room_for_another(replica: Replica, alice: User) -> None:
    assert replica.update(alice, signers=[]) is Code.NOT_AUTHORIZED
    assert replica.update(alice) is Code.APPLIED


def test_update_law_revocation_then_only_an_endorsed_registration(replica: Replica, alice: User) -> None:
    assert replica.update(alice, version=9, revocation=True) is Code.APPLIED
    replica.close_epoch()
    alice.keys = [Key("the next owner of the name")]
    assert replica.update(alice, version=11) is Code.REVOKED
    assert replica.update(alice, version=12, revocation=True) is Code.REVOKED
    assert replica.update(alice) is Code.PROOF_REQUIRED
    assert replica.register(alice) is Code.APPLIED
    assert alice.version == 10


def test_update_law_the_same_entry_again_succeeds_without_writes(replica: Replica) -> None:
    user = User.named("alice")
    made = draft(replica.realm, user, endorsers=replica.endorsers)
    assert replica.submit(made, user) is Code.APPLIED
    assert replica.submit(made) is Code.APPLIED  # still pending
    replica.close_epoch()
    before = replica.state
    outcome = replica.commit(replica.entry(replace(made.command, endorsements=())))
    assert outcome.verdicts == (Code.APPLIED,)
    assert outcome.state == before
    assert {Tables.table_of(key) for key in outcome.writes} == {Tables.STATE, Tables.APPLIED}
    (decided,) = outcome.notices
    assert isinstance(decided, CommandDecided)
    assert decided.epoch == 1


def test_the_decision_names_the_epoch_that_will_contain_the_entry(replica: Replica, alice: User) -> None:
    made = draft(replica.realm, alice)
    payload = replica.entry(made.command)
    outcome = replica.commit(payload)
    grew, decided = outcome.notices
    assert grew == VerifierLogGrew(replica.state.verifier_log_size)
    assert isinstance(decided, CommandDecided)
    assert (decided.code, decided.epoch) == (Code.APPLIED, 2)


# Admission


def with_endorsements(replica: Replica, user: User, **changes: object) -> SubmitUpdate:
    made = draft(replica.realm, user, endorsers=replica.endorsers)
    return replace(made.command, **changes)


@pytest.mark.parametrize("lacking", ["endorsements", "proof_id"])
def test_admission_is_required_of_a_registration(replica: Replica, lacking: str) -> None:
    empty: object = () if lacking == "endorsements" else b""
    assert replica.run(with_endorsements(replica, User.named("bob"), **{lacking: empty})) == (
        Code.PROOF_REQUIRED,
    )


def test_admission_is_not_asked_of_an_update(replica: Replica, alice: User) -> None:
    made = draft(replica.realm, alice)
    assert made.command.endorsements == ()
    assert made.command.proof_id == b""
    assert replica.submit(made) is Code.APPLIED


@pytest.mark.parametrize(("size", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_admission_needs_f_plus_1_replicas(size: int, needed: int) -> None:
    replica = Replica(size)
    for number in range(1, size + 1):
        code = replica.register(User.named(f"bob-{number}"), endorsers=replica.replicas[:number])
        assert code is (Code.APPLIED if number >= needed else Code.PROOF_INVALID)


def test_admission_counts_only_replicas_of_the_policy() -> None:
    replica = Replica(3)
    strangers = [Key("stranger"), *replica.verifiers]
    code = replica.register(User.named("bob"), endorsers=[*strangers, replica.replicas[0]])
    assert code is Code.PROOF_INVALID


@pytest.mark.parametrize("what", ["private_hash", "index", "entry_hash", "proof_id", "not_after_ms", "realm"])
def test_admission_binds_every_part_that_was_verified(replica: Replica, what: str) -> None:
    made = draft(replica.realm, User.named("bob"), endorsers=replica.endorsers)
    entry = made.command.update.entry
    signed: dict[str, object] = {
        "private_hash": made.command.private_hash,
        "index": entry.index,
        "entry_hash": entry.hash,
        "proof_id": made.command.proof_id,
        "not_after_ms": 2**63,
    }
    realm = replica.realm
    if what == "realm":
        realm = replace(realm, hash=derive("another realm"))
    else:
        signed[what] = 2**62 if what == "not_after_ms" else derive("another")
    forged = endorse(realm, replica.replicas[0], **signed)  # type: ignore[arg-type]
    forged = replace(forged, not_after_ms=2**63)
    assert replica.run(replace(made.command, endorsements=(forged,))) == (Code.PROOF_INVALID,)
    assert replica.submit(made) is Code.APPLIED


def test_admission_expires_in_log_time(replica: Replica) -> None:
    on_time = draft(
        replica.realm, User.named("bob"), endorsers=replica.endorsers, not_after_ms=replica.clock_ms
    )
    late = draft(
        replica.realm, User.named("eve"), endorsers=replica.endorsers, not_after_ms=replica.clock_ms - 1
    )
    assert replica.submit(late) is Code.PROOF_EXPIRED
    assert replica.submit(on_time) is Code.APPLIED


def test_admission_expiry_needs_f_plus_1_endorsements_that_still_hold() -> None:
    replica = Replica(3)
    replica.tick_all()
    made = draft(replica.realm, User.named("bob"), endorsers=replica.replicas[:1], not_after_ms=2**63)
    other = draft(replica.realm, User.named("bob"), endorsers=replica.replicas[1:2], not_after_ms=1)
    mixed = replace(made.command, endorsements=(*made.command.endorsements, *other.command.endorsements))
    assert replica.run(mixed) == (Code.PROOF_EXPIRED,)


def test_admission_a_proof_has_one_use(replica: Replica) -> None:
    proof = derive("one mail")
    assert replica.register(User.named("bob"), proof=proof) is Code.APPLIED
    assert replica.register(User.named("eve"), proof=proof) is Code.PROOF_REPLAYED
    assert replica.register(User.named("eve"), proof=derive("another mail")) is Code.APPLIED


def test_admission_a_refused_registration_does_not_use_up_the_proof(replica: Replica) -> None:
    proof = derive("one mail")
    assert replica.register(User.named("bob"), proof=proof, signers=[]) is Code.NOT_AUTHORIZED
    assert replica.register(User.named("bob"), proof=proof) is Code.APPLIED


# Quota


def test_quota_20_accepted_updates_of_an_index_a_day_of_log_time(replica: Replica) -> None:
    alice = User.named("alice")
    replica.register(alice)
    for _ in range(limits.UPDATES_PER_DAY - 1):
        replica.close_epoch()
        assert replica.update(alice, signers=[]) is Code.NOT_AUTHORIZED  # refusals do not count
        assert replica.update(alice) is Code.APPLIED
    replica.close_epoch()
    assert replica.update(alice) is Code.RATE_LIMITED
    assert replica.register(User.named("bob")) is Code.APPLIED
    replica.clock_ms += limits.DAY_MS
    assert replica.update(alice) is Code.APPLIED
    quota = state_pb2.QuotaRow.FromString(replica.store.get(Tables.QUOTAS.key(alice.index)) or b"")
    assert (quota.day, quota.updates) == (replica.clock_ms // limits.DAY_MS, 1)


def test_quota_ignores_one_replica_that_is_a_day_ahead() -> None:
    replica = Replica(3)
    replica.tick_all()
    replica.run(Tick(), by=replica.replicas[2], time_ms=replica.clock_ms + limits.DAY_MS)
    bob = User.named("bob")
    replica.register(bob)
    quota = state_pb2.QuotaRow.FromString(replica.store.get(Tables.QUOTAS.key(bob.index)) or b"")
    assert quota.day == replica.clock_ms // limits.DAY_MS


# Rows


def test_an_accepted_update_waits_in_pending_until_the_delimiter(replica: Replica, alice: User) -> None:
    replica.update(alice)
    assert views.is_pending(replica.store, alice.index)
    assert replica.state.pending_updates == 1
    replica.close_epoch()
    assert not views.is_pending(replica.store, alice.index)
    assert replica.state.pending_updates == 0


def private_row(replica: Replica, user: User, epoch: int) -> bytes | None:
    return replica.store.get(Tables.PROFILES.key(user.index, u64(epoch)))


def test_a_private_part_becomes_a_private_row_of_its_epoch(replica: Replica, alice: User) -> None:
    row = views.private_at(replica.store, alice.index, 1)
    assert row is not None
    assert row.user_id == "alice@example.org"
    replica.update(alice)
    assert private_row(replica, alice, 2) != private_row(replica, alice, 1)


def other_profile(replica: Replica, user: User) -> Draft:
    """A private part that is hashed rightly but is not what the entry commits to."""
    made, other = draft(replica.realm, user), draft(replica.realm, user, label="other")
    return replace(
        made, command=replace(made.command, private_hash=other.command.private_hash), part=other.part
    )


def test_a_private_part_that_does_not_belong_gives_no_row_and_the_same_verdict(
    replica: Replica, alice: User
) -> None:
    for number, spoil in enumerate(
        (
            lambda made: replace(made, part=b""),
            lambda made: replace(made, part=b"junk"),
            lambda made: replace(made, part=draft(replica.realm, alice, label="x").part),
            lambda _: other_profile(replica, alice),
        )
    ):
        assert replica.submit(spoil(draft(replica.realm, alice)), alice) is Code.APPLIED
        assert private_row(replica, alice, number + 2) is None
        replica.close_epoch()
