"""Updates and lookups: each answer a proof that the client accepts, each epoch chosen by the client's
quorum.
"""

from pathlib import Path

import pytest
import trio
from asking import (
    GUARDED,
    HERE,
    PATIENCE,
    SMALL,
    admitted,
    check,
    epoch_signed,
    lookup_refused,
    present,
    ratified_by,
    refused,
)

from keyserver.config import Registration
from keyserver.duties import LOOK_AGAIN_MS
from keyserver.rate_limits import Later
from keyserver.run import Parts, Surroundings, now_ms
from keyserver.testing import Disk, Person, running, seed, small_realm
from verifier import encoding, limits, proof_encoding
from verifier.crypto import hashing, signatures
from verifier.errors import NotRatified, Reason
from verifier.lookup import Absent, Revoked
from verifier.types import QuorumExpr

# Updates and lookups


async def test_a_registration_is_answered_with_its_proof_and_can_be_looked_up(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        proof = await parts.service.update(alice.update({"ssh": b"key 1"}), HERE)
        result = present(SMALL, alice.user_id, proof)
        assert dict(result.profile.keys) == {"ssh": b"key 1"}
        assert result.entry == alice.entry
        looked_up = parts.service.lookup(alice.lookup(), HERE)
        assert dict(present(SMALL, alice.user_id, looked_up).profile.keys) == {"ssh": b"key 1"}


async def test_an_absent_name_is_proven_absent(tmp_path: Path) -> None:
    alice, bob = Person.named("alice", SMALL), Person.named("bob", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await epoch_signed(parts, 1)
        assert isinstance(check(SMALL, bob.user_id, parts.service.lookup(bob.lookup(), HERE)), Absent)
        await parts.service.update(alice.update({"ssh": b"k"}), HERE)
        assert isinstance(check(SMALL, bob.user_id, parts.service.lookup(bob.lookup(), HERE)), Absent)


async def test_an_update_replaces_the_profile_and_old_epochs_keep_the_old_one(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        first = present(SMALL, alice.user_id, await parts.service.update(alice.update({"ssh": b"1"}), HERE))
        second = present(SMALL, alice.user_id, await parts.service.update(alice.update({"ssh": b"2"}), HERE))
        then, now = first.head.head.epoch, second.head.head.epoch
        assert then < now
        old = present(SMALL, alice.user_id, parts.service.lookup(alice.lookup(epoch=then), HERE), epoch=then)
        assert dict(old.profile.keys) == {"ssh": b"1"}
        before = parts.service.lookup(alice.lookup(epoch=1), HERE)
        assert isinstance(check(SMALL, alice.user_id, before, epoch=1), Absent)
        newest = present(SMALL, alice.user_id, parts.service.lookup(alice.lookup(min_epoch=now), HERE))
        assert dict(newest.profile.keys) == {"ssh": b"2"}


async def test_a_revoked_name_is_shown_revoked_and_can_be_registered_again(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        proof = await parts.service.update(alice.revocation(), HERE)
        assert isinstance(check(SMALL, alice.user_id, proof), Revoked)
        again = await parts.service.update(alice.update({"ssh": b"2"}), HERE)
        assert dict(present(SMALL, alice.user_id, again).profile.keys) == {"ssh": b"2"}


async def test_the_same_update_sent_again_succeeds_and_writes_nothing(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        request = alice.update({"ssh": b"1"})
        first = present(SMALL, alice.user_id, await parts.service.update(request, HERE))
        applied = parts.replica.position.index
        second = present(SMALL, alice.user_id, await parts.service.update(request, HERE))
        assert second.entry == first.entry
        assert parts.replica.position.index == applied
        # Much later it is shown where it stands now, because a proof of then would be stale.
        await parts.service.update(Person.named("bob", SMALL).update({"ssh": b"b"}), HERE)
        third = present(SMALL, alice.user_id, await parts.service.update(request, HERE))
        assert third.head.head.epoch > first.head.head.epoch


async def test_the_same_registration_sent_twice_at_once_succeeds_twice(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    request = alice.update({"ssh": b"1"})
    proofs: list[bytes] = []
    async with running(SMALL, Disk(tmp_path)) as parts:

        async def send() -> None:
            proofs.append(await parts.service.update(request, HERE))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(send)
    assert [present(SMALL, alice.user_id, proof).entry for proof in proofs] == [alice.entry] * 8


async def test_many_people_register_at_once_and_share_epochs(tmp_path: Path) -> None:
    people = [Person.named(f"user{number}", SMALL) for number in range(40)]
    async with running(SMALL, Disk(tmp_path)) as parts:

        async def register(person: Person) -> None:
            key = person.user_id.encode()
            proof = await parts.service.update(person.update({"ssh": key}), HERE)
            assert dict(present(SMALL, person.user_id, proof).profile.keys) == {"ssh": key}

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for person in people:
                    nursery.start_soon(register, person)
        assert parts.replica.state.epoch < 20


async def test_versions_must_follow(tmp_path: Path) -> None:
    alice, other = Person.named("alice", SMALL), Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        await refused(Reason.VERSION_MISMATCH, parts, other.update({"ssh": b"another version 0"}))
        skipping = alice.draft({"ssh": b"2"}, previous_entry_hash=bytes(32))
        await refused(Reason.VERSION_MISMATCH, parts, skipping.SerializeToString())


async def test_a_replica_in_quarantine_reads_and_takes_nothing(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        parts.signer.quarantine("for the test")
        await refused(Reason.NOT_READY, parts, alice.draft({"ssh": b"2"}).SerializeToString())
        present(SMALL, alice.user_id, parts.service.lookup(alice.lookup(), HERE))


async def test_a_second_update_of_one_epoch_is_pending(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    async with running(SMALL, Disk(tmp_path), update_timeout_ms=2_000) as parts:  # enough to be applied in
        await epoch_signed(parts, 1)
        parts.duties.pursue = _nothing  # type: ignore[method-assign]  # no delimiter: the epoch stays open
        timed_out = await refused(Reason.NOT_RATIFIED_IN_TIME, parts, alice.update({"ssh": b"1"}))
        assert "epoch 2" in timed_out.what
        await refused(Reason.UPDATE_PENDING, parts, alice.draft({"ssh": b"2"}).SerializeToString())


async def _nothing() -> int:
    await trio.lowlevel.checkpoint()
    return LOOK_AGAIN_MS


async def test_a_registration_without_proof_is_refused_where_one_is_required(tmp_path: Path) -> None:
    closed = Registration(insecure_skip_registration_proof=False, client_certificate=())
    async with running(SMALL, Disk(tmp_path), registration=closed) as parts:
        await refused(Reason.PROOF_REQUIRED, parts, Person.named("alice", SMALL).update({"ssh": b"1"}))


async def test_twenty_updates_a_day_and_no_more(tmp_path: Path) -> None:
    alice = Person.named("alice", SMALL)
    past_midnight = now_ms() % limits.DAY_MS
    around = Surroundings(clock=lambda: now_ms() - past_midnight + limits.DAY_MS // 2)  # noon: no day ends
    async with running(SMALL, Disk(tmp_path), around=around) as parts:
        for number in range(limits.UPDATES_PER_DAY):
            await parts.service.update(alice.update({"ssh": b"%d" % number}), HERE)
        await refused(Reason.RATE_LIMITED, parts, alice.draft({"ssh": b"more"}).SerializeToString())


# Which epoch answers


async def test_epochs_beyond_the_newest_do_not_exist(tmp_path: Path) -> None:
    bob = Person.named("bob", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await epoch_signed(parts, 1)
        lookup_refused(Reason.NO_SUCH_EPOCH, parts, bob.lookup(epoch=555555))
        lookup_refused(Reason.NO_SUCH_EPOCH, parts, bob.lookup(min_epoch=2**64 - 1))
        lookup_refused(Reason.MALFORMED, parts, bob.lookup(epoch=1, min_epoch=2))


async def test_before_the_first_epoch_lookups_wait_for_nothing(tmp_path: Path) -> None:
    signer = Disk(tmp_path).signer(SMALL)
    signer.quarantine("nothing is ever signed")
    async with running(SMALL, Disk(tmp_path), signer=signer) as parts:
        lookup_refused(Reason.EPOCH_PENDING, parts, Person.named("bob", SMALL).lookup())


async def test_an_epoch_older_than_the_ttl_answers_no_latest_lookup(tmp_path: Path) -> None:
    hasty = small_realm(ttl_ms=1)
    bob = Person.named("bob", hasty)
    async with running(hasty, Disk(tmp_path)) as parts:
        await epoch_signed(parts, 1)
        with trio.fail_after(PATIENCE):
            while now_ms() - parts.replica.state.issue_time_ms <= 1:
                await trio.lowlevel.checkpoint()
        lookup_refused(Reason.EPOCH_PENDING, parts, bob.lookup())
        parts.service.lookup(bob.lookup(epoch=1), HERE)


async def test_unknown_fields_in_a_quorum_are_refused_and_elsewhere_passed_over(tmp_path: Path) -> None:
    bob = Person.named("bob", SMALL)
    future = b"\xfa\x3e\x03abc"  # field 1007
    async with running(SMALL, Disk(tmp_path)) as parts:
        await epoch_signed(parts, 1)
        parts.service.lookup(bob.lookup() + future, HERE)
        quorum = encoding.encode_quorum(SMALL.realm.verification_policy.quorum) + future
        lookup_refused(Reason.MALFORMED, parts, bob.lookup() + b"\x22" + bytes([len(quorum)]) + quorum)


# Verifiers and quorums


async def test_an_update_waits_for_the_quorum_of_its_client(tmp_path: Path) -> None:
    alice = Person.named("alice", GUARDED)
    answered = trio.Event()
    proofs: list[bytes] = []
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)

        async def register() -> None:
            proofs.append(await parts.service.update(alice.update({"ssh": b"1"}), HERE))
            answered.set()

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(register)
                while not parts.replica.state.pending_updates and parts.replica.state.epoch < 2:
                    await parts.replica.applied.turn().wait()
                await ratified_by(parts, GUARDED, 0, 2)
                assert not answered.is_set()  # one of two verifiers is no majority
                await ratified_by(parts, GUARDED, 1, 2)
                await answered.wait()
    result = present(GUARDED, alice.user_id, proofs[0])
    assert set(result.signers.verifiers) == {verifier.key_id for verifier in GUARDED.realm.verifiers}


async def test_the_client_chooses_its_quorum_and_gets_the_signatures_it_named(tmp_path: Path) -> None:
    bob = Person.named("bob", GUARDED)
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await ratified_by(parts, GUARDED, 1, 1)
        lookup_refused(Reason.EPOCH_PENDING, parts, bob.lookup())  # the realm's wants both verifiers
        for candidates in ([GUARDED.replica], [GUARDED.realm.verifiers[1].key_id]):
            quorum = QuorumExpr(1, tuple(candidates))
            asked = bob.lookup(quorum_requirement=encoding.quorum_message(quorum))
            proof = parts.service.lookup(asked, HERE)
            head = proof_encoding.decode_lookup_proof(proof).head
            assert [s.key_id for r in head.ratifications for s in r.signatures] == candidates
        with pytest.raises(NotRatified):
            check(GUARDED, bob.user_id, proof)
        await ratified_by(parts, GUARDED, 0, 1)
        assert isinstance(check(GUARDED, bob.user_id, parts.service.lookup(bob.lookup(), HERE)), Absent)


async def test_the_newest_epoch_that_satisfies_the_quorum_answers(tmp_path: Path) -> None:
    alice = Person.named("alice", GUARDED)
    replica_alone = encoding.quorum_message(QuorumExpr(1, (GUARDED.replica,)))
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        for verifier in (0, 1):
            await ratified_by(parts, GUARDED, verifier, 1)
        request = alice.draft({"ssh": b"1"})
        request.lookup_parameters.quorum_requirement.CopyFrom(replica_alone)
        await parts.service.update(request.SerializeToString(), HERE)
        assert parts.replica.state.signed_epoch >= 2
        latest = check(GUARDED, alice.user_id, parts.service.lookup(alice.lookup(), HERE))
        assert (type(latest), latest.head.head.epoch) == (Absent, 1)
        lookup_refused(Reason.EPOCH_PENDING, parts, alice.lookup(epoch=2))
        lookup_refused(Reason.EPOCH_PENDING, parts, alice.lookup(min_epoch=2))
        sooner = parts.service.lookup(alice.lookup(quorum_requirement=replica_alone), HERE)
        assert proof_encoding.decode_lookup_proof(sooner).head.head.epoch == parts.replica.state.signed_epoch


async def test_a_quorum_that_is_late_ends_in_a_refusal_that_says_so(tmp_path: Path) -> None:
    alice = Person.named("alice", GUARDED)
    async with running(GUARDED, Disk(tmp_path), update_timeout_ms=200) as parts:
        await admitted(parts, GUARDED)
        request = alice.update({"ssh": b"1"})
        timed_out = await refused(Reason.NOT_RATIFIED_IN_TIME, parts, request)
        assert "again" in timed_out.what
        assert alice.user_id not in timed_out.what


# Where a name lies: remembered


def vrf_computed(parts: Parts) -> int:
    start = 'e2eks_vrf_lookups_total{source="computed"} '
    lines = [line for line in parts.metrics.text().decode().splitlines() if line.startswith(start)]
    return int(float(lines[0].removeprefix(start))) if lines else 0


async def test_registered_names_are_computed_once_and_for_all(tmp_path: Path) -> None:
    alice, disk = Person.named("alice", SMALL), Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        for _ in range(3):
            parts.service.lookup(alice.lookup(), HERE)
        assert vrf_computed(parts) == 1
    async with running(SMALL, disk) as parts:  # a restart later
        parts.service.lookup(alice.lookup(), HERE)
        assert vrf_computed(parts) == 0
        parts.service.lookup(Person.named("nobody", SMALL).lookup(), HERE)
        assert vrf_computed(parts) == 1


async def test_lookups_of_unknown_names_wait_for_their_turn_and_those_of_known_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = (Person.named(name, SMALL) for name in ("alice", "bob"))
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        computed = vrf_computed(parts)
        monkeypatch.setattr("keyserver.rate_limits.PROMPT_PROOFS", 0)
        later = parts.service.lookup_in_turn(bob.lookup(), HERE)
        assert isinstance(later, Later)
        assert later.seconds > 0
        assert isinstance(parts.service.lookup_in_turn(alice.lookup(), HERE), bytes)
        assert vrf_computed(parts) == computed  # who waits has cost nothing yet
        assert isinstance(check(SMALL, bob.user_id, later.answer()), Absent)
        assert isinstance(parts.service.lookup_in_turn(bob.lookup(), HERE), bytes)


async def test_the_quorum_may_name_the_key_of_any_verifier_of_the_realm(tmp_path: Path) -> None:
    stranger = hashing.key_id(signatures.public_key(seed("stranger")))
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await epoch_signed(parts, 1)
        known = GUARDED.realm.verifiers[0].key_id
        assert parts.replica.published.is_satisfiable(QuorumExpr(1, (stranger, known)))
        assert not parts.replica.published.is_satisfiable(QuorumExpr(2, (stranger, known)))
