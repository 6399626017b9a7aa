"""The use cases of a replica: each refusal with its reason, each answer a proof that the client's own rules
accept.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from e2eks.v1 import client_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb

from keyserver.config import Registration
from keyserver.machine import views
from keyserver.run import Parts, Surroundings, now_ms
from keyserver.testing import Disk, Person, SmallRealm, running, seed, small_realm
from verifier import encoding, limits, proof_encoding
from verifier.consistency import verify_consistency
from verifier.crypto import hashing, signatures
from verifier.errors import NotRatified, Reason, Refused
from verifier.lookup import Absent, LookupResult, Present, Revoked, Trust, verify_lookup
from verifier.realm import parse_realm_json
from verifier.types import EpochStep, QuorumExpr, UpdateStep

PATIENCE = 60.0
SMALL = small_realm()
GUARDED = small_realm(verifiers=2)
HERE = "ipv4:127.0.0.1"


def check(small: SmallRealm, user_id: str, proof: bytes, *, epoch: int = 0, pinned: int = 0) -> LookupResult:
    realm = small.realm
    trust = Trust(realm, realm.verification_policy.quorum, realm.genesis_policy, pinned_epoch=pinned)
    return verify_lookup(trust, user_id, proof, now_ms=now_ms(), epoch=epoch)


def present(small: SmallRealm, user_id: str, proof: bytes, **where: int) -> Present:
    result = check(small, user_id, proof, **where)
    assert isinstance(result, Present)
    return result


async def refused(reason: Reason, parts: Parts, request: bytes) -> Refused:
    with trio.fail_after(PATIENCE), pytest.raises(Refused) as caught:
        await parts.service.update(request, HERE)
    assert caught.value.reason is reason, caught.value.what
    return caught.value


def lookup_refused(reason: Reason, parts: Parts, request: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parts.service.lookup(request, HERE)
    assert caught.value.reason is reason, caught.value.what


async def epoch_signed(parts: Parts, epoch: int) -> None:
    with trio.fail_after(PATIENCE):
        while parts.replica.state.signed_epoch < epoch:
            turn = parts.replica.applied.turn()
            if parts.replica.state.signed_epoch < epoch:
                await turn.wait()


async def ratified_by(parts: Parts, small: SmallRealm, verifier: int, epoch: int) -> None:
    """A verifier's part: read the newest steps, ratify the head of `epoch`, push."""
    await epoch_signed(parts, epoch)
    heads = [step.head for step in await all_steps(parts) if isinstance(step, EpochStep)]
    head = next(head for head in heads if head.head.epoch == epoch)
    pushed = small.ratify(verifier, head, now_ms())
    assert await parts.service.push_ratification(pushed, small.realm.verifiers[verifier].key_id) == b""


async def all_steps(parts: Parts) -> list[UpdateStep | EpochStep]:
    size = parts.replica.state.verifier_log_size
    request = verification_pb2.VerifierStreamRequest(start=1, page_size=max(size, 1))
    next_page = parts.service.verifier_stream(request.SerializeToString())
    steps: list[UpdateStep | EpochStep] = []
    while (page := await next_page()) is not None:
        steps += proof_encoding.decode_steps(page)
    return steps


async def admitted(parts: Parts, small: SmallRealm) -> None:
    """The replica's approval of its verifiers is in the log."""
    with trio.fail_after(PATIENCE):
        while len(views.verifiers(parts.replica.store)) < len(small.realm.verifiers):
            turn = parts.replica.applied.turn()
            if len(views.verifiers(parts.replica.store)) < len(small.realm.verifiers):
                await turn.wait()


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


Change = Callable[[client_pb2.UpdateRequest], object]


def put(field: str, value: object) -> Change:
    return lambda request: setattr(request, field, value)


def put_asked(field: str, value: object) -> Change:
    return lambda request: setattr(request.lookup_parameters, field, value)


def put_signature(field: str, value: object) -> Change:
    return lambda request: setattr(request.update.signatures[0], field, value)


def sign_twice(request: client_pb2.UpdateRequest) -> None:
    request.update.signatures.append(request.update.signatures[0])


def ask_strangers(request: client_pb2.UpdateRequest) -> None:
    quorum = pb.QuorumExpr(threshold=1, candidates=[bytes(32)])
    request.lookup_parameters.quorum_requirement.CopyFrom(quorum)


BAD_UPDATES: dict[str, tuple[Reason, Change]] = {
    "no update": (Reason.MALFORMED, lambda request: request.ClearField("update")),
    "an empty update": (Reason.MALFORMED, lambda request: request.update.Clear()),
    "no lookup parameters": (Reason.MALFORMED, lambda request: request.ClearField("lookup_parameters")),
    "an epoch in them": (Reason.MALFORMED, put_asked("epoch", 1)),
    "no user id": (Reason.MALFORMED, put_asked("user_id", "")),
    "an upper-case user id": (Reason.MALFORMED, put_asked("user_id", "Alice@example.org")),
    "a long user id": (Reason.TOO_LARGE, put_asked("user_id", "a" * 300)),
    "another domain": (Reason.DOMAIN_NOT_SERVED, put_asked("user_id", "alice@example.net")),
    "another user": (Reason.WRONG_INDEX, put_asked("user_id", "bob@example.org")),
    "a short request id": (Reason.MALFORMED, put("request_id", b"short")),
    "another profile": (Reason.COMMITMENT_MISMATCH, put("profile", encoding.encode_profile({"ssh": b"2"}))),
    "no profile": (Reason.COMMITMENT_MISMATCH, put("profile", b"")),
    "another nonce": (Reason.COMMITMENT_MISMATCH, put("profile_nonce", bytes(32))),
    "a short nonce": (Reason.MALFORMED, put("profile_nonce", bytes(31))),
    "no nonce": (Reason.MALFORMED, put("profile_nonce", b"")),
    "junk as profile": (Reason.MALFORMED, put("profile", b"\xff\xff")),
    "a huge profile": (Reason.TOO_LARGE, put("profile", bytes(limits.PROFILE_BYTES + 1))),
    "junk as entry": (Reason.MALFORMED, lambda request: setattr(request.update, "entry", b"\xff")),
    "no signature": (Reason.NOT_AUTHORIZED, lambda request: request.update.ClearField("signatures")),
    "a wrong signature under the right id": (Reason.NOT_AUTHORIZED, put_signature("signature", bytes(64))),
    "a signature by a stranger": (Reason.NOT_AUTHORIZED, put_signature("key_id", bytes(32))),
    "a short signature": (Reason.MALFORMED, put_signature("signature", bytes(63))),
    "two signatures by one key": (Reason.MALFORMED, sign_twice),
    "an empty quorum": (
        Reason.MALFORMED,
        lambda request: request.lookup_parameters.quorum_requirement.SetInParent(),
    ),
    "a quorum of strangers": (Reason.QUORUM_UNSATISFIABLE, ask_strangers),
}


@pytest.mark.parametrize("name", BAD_UPDATES)
async def test_a_bad_update_is_refused_at_once_with_its_reason(name: str, tmp_path: Path) -> None:
    reason, change = BAD_UPDATES[name]
    request = Person.named("alice", SMALL).draft({"ssh": b"1"})
    change(request)
    async with running(SMALL, Disk(tmp_path)) as parts:
        before = parts.log.status().committed_index
        await refused(reason, parts, request.SerializeToString())
        assert parts.log.status().committed_index - before <= 4  # the first epoch's own entries, no proposal


async def test_a_request_that_is_too_large_is_refused_unparsed(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await refused(Reason.TOO_LARGE, parts, bytes(limits.REQUEST_BYTES + 1))
        lookup_refused(Reason.TOO_LARGE, parts, bytes(limits.REQUEST_BYTES + 1))


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
    async with running(SMALL, Disk(tmp_path), update_timeout_ms=300) as parts:
        await epoch_signed(parts, 1)
        parts.duties.pursue = _nothing  # type: ignore[method-assign]  # no delimiter: the epoch stays open
        timed_out = await refused(Reason.NOT_RATIFIED_IN_TIME, parts, alice.update({"ssh": b"1"}))
        assert "epoch 2" in timed_out.what
        await refused(Reason.UPDATE_PENDING, parts, alice.draft({"ssh": b"2"}).SerializeToString())


async def _nothing() -> None:
    await trio.lowlevel.checkpoint()


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


# Pushing


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unlisted", Reason.NOT_AUTHORIZED),
        ("another key", Reason.NOT_AUTHORIZED),
        ("bad signature", Reason.NOT_AUTHORIZED),
        ("two signatures", Reason.NOT_AUTHORIZED),
        ("none", Reason.NOT_AUTHORIZED),
        ("future epoch", Reason.NO_SUCH_EPOCH),
        ("epoch 2^63", Reason.NO_SUCH_EPOCH),
        ("another head", Reason.MALFORMED),
        ("junk", Reason.MALFORMED),
        ("empty", Reason.MALFORMED),
        ("too large", Reason.TOO_LARGE),
    ],
)
async def test_a_bad_push_is_refused_and_changes_nothing(name: str, reason: Reason, tmp_path: Path) -> None:
    key_ids = [verifier.key_id for verifier in GUARDED.realm.verifiers]
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await epoch_signed(parts, 1)
        steps = await all_steps(parts)
        head = next(step.head.head for step in steps if isinstance(step, EpochStep))
        good = GUARDED.ratify(0, head.encoded, now_ms())
        message = pb.SignedEpochHead.FromString(good)
        twice = pb.SignedEpochHead(head=message.head, ratifications=[message.ratifications[0]] * 2)
        bad = pb.SignedEpochHead.FromString(good)
        bad.ratifications[0].signatures[0].signature = bytes(64)

        def other(**changes: object) -> bytes:
            fields = pb.EpochHead.FromString(head.encoded)
            for field, value in changes.items():
                setattr(fields, field, value)
            return GUARDED.ratify(0, fields.SerializeToString(deterministic=True), now_ms())

        pushes: dict[str, tuple[bytes, bytes | None]] = {
            "unlisted": (good, None),
            "another key": (good, key_ids[1]),
            "bad signature": (bad.SerializeToString(), key_ids[0]),
            "two signatures": (twice.SerializeToString(), key_ids[0]),
            "none": (pb.SignedEpochHead(head=message.head).SerializeToString(), key_ids[0]),
            "future epoch": (other(epoch=2), key_ids[0]),
            "epoch 2^63": (other(epoch=2**63), key_ids[0]),
            "another head": (other(root_hash=seed("another root")), key_ids[0]),
            "junk": (b"\xff\xfe", key_ids[0]),
            "empty": (b"", key_ids[0]),
            "too large": (bytes(limits.SIGNED_HEAD_BYTES + 1), key_ids[0]),
        }
        with pytest.raises(Refused) as caught:
            await parts.service.push_ratification(*pushes[name])
        assert caught.value.reason is reason, caught.value.what
        assert parts.replica.published.signers(1).signers == {GUARDED.replica}
        assert await parts.service.push_ratification(good, key_ids[0]) == b""


async def test_a_ratification_pushed_again_succeeds_and_is_proposed_once(tmp_path: Path) -> None:
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await ratified_by(parts, GUARDED, 0, 1)
        applied = parts.replica.position.index
        await ratified_by(parts, GUARDED, 0, 1)
        assert parts.replica.position.index == applied


# The verifier log


async def test_the_verifier_log_is_gapless_and_follows_live(tmp_path: Path) -> None:
    alice, bob = Person.named("alice", SMALL), Person.named("bob", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        request = verification_pb2.VerifierStreamRequest(start=1).SerializeToString()
        next_page = parts.service.verifier_stream(request)
        seen = list(proof_encoding.decode_steps(await next_page() or b""))
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(parts.service.update, bob.update({"ssh": b"2"}), HERE)
                while not (isinstance(seen[-1], EpochStep) and seen[-1].head.head.epoch >= 3):
                    seen += proof_encoding.decode_steps(await next_page() or b"")
        assert [step.index for step in seen] == list(range(1, len(seen) + 1))
        kinds = "".join("u" if isinstance(step, UpdateStep) else "e" for step in seen)
        assert kinds == "eueue"
        assert seen == (await all_steps(parts))[: len(seen)]


@pytest.mark.parametrize(
    ("start", "size", "expected"), [(1, 2, [1, 2]), (2, 1, [2]), (3, 9, [3]), (4, 2, []), (9, 1, [])]
)
async def test_a_page_is_as_long_as_asked_and_ends_with_the_log(
    start: int, size: int, expected: list[int], tmp_path: Path
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), HERE)
        assert parts.replica.state.verifier_log_size == 3
        request = verification_pb2.VerifierStreamRequest(start=start, page_size=size)
        next_page = parts.service.verifier_stream(request.SerializeToString())
        found: list[int] = []
        while (page := await next_page()) is not None:
            found += [step.index for step in proof_encoding.decode_steps(page)]
        assert found == expected


async def test_steps_are_numbered_from_one(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        with pytest.raises(Refused) as caught:
            parts.service.verifier_stream(b"")
        assert caught.value.reason is Reason.MALFORMED


# The rest


async def test_consistency_leads_from_any_head_to_a_later_one(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        for number in range(4):
            await parts.service.update(Person.named(f"u{number}", SMALL).update({"ssh": b"1"}), HERE)
        newest = parts.replica.state.signed_epoch
        realm = SMALL.realm
        trust = Trust(realm, realm.verification_policy.quorum, realm.genesis_policy)
        for old in range(1, newest + 1):
            for new in (*range(old, newest + 1), 0):
                request = client_pb2.ConsistencyRequest(old_epoch=old, new_epoch=new)
                proof = parts.service.consistency(request.SerializeToString())
                value = proof_encoding.decode_consistency_proof(proof)
                head = verify_consistency(trust, value.old_head, value)
                assert head.head.epoch == (new or newest)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (0, 1, Reason.MALFORMED),
        (2, 1, Reason.MALFORMED),
        (1, 99, Reason.NO_SUCH_EPOCH),
        (99, 0, Reason.NO_SUCH_EPOCH),
    ],
)
async def test_a_consistency_request_out_of_order_is_refused(
    old: int, new: int, reason: Reason, tmp_path: Path
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await epoch_signed(parts, 1)
        request = client_pb2.ConsistencyRequest(old_epoch=old, new_epoch=new)
        with pytest.raises(Refused) as caught:
            parts.service.consistency(request.SerializeToString())
        assert caught.value.reason is reason


async def test_the_realm_is_given_as_published(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        answer = client_pb2.GetRealmResponse.FromString(parts.service.get_realm(b""))
        assert parse_realm_json(answer.realm_json) == SMALL.realm


async def test_no_head_has_changed_the_policy_yet(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await epoch_signed(parts, 1)
        assert await parts.service.policy_heads(b"")() is None


async def test_any_bytes_give_an_answer_or_a_refusal(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    alice = Person.named("alice", SMALL)
    outcomes: Counter[str] = Counter()

    def ask(call: Callable[[], object]) -> None:
        try:
            call()
            outcomes["answered"] += 1
        except Refused as refusal:
            outcomes[refusal.reason] += 1

    async with running(SMALL, Disk(tmp_path), update_timeout_ms=50) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        update = alice.draft({"ssh": b"2"}).SerializeToString()
        service = parts.service
        stream = verification_pb2.VerifierStreamRequest(start=1, page_size=2).SerializeToString()
        consistency = client_pb2.ConsistencyRequest(old_epoch=1, new_epoch=2).SerializeToString()
        for _ in range(count(300)):
            for good in (update, alice.lookup(), alice.lookup(epoch=1), stream, consistency, b""):
                request = mutated(good, rng)
                ask(partial(service.lookup, request, HERE))
                ask(partial(service.consistency, request))
                ask(partial(service.get_realm, request))
                ask(partial(service.policy_heads, request))
                ask(partial(service.verifier_stream, request))
                with pytest.raises(Refused):
                    await service.push_ratification(request, parts.signer.key_id)
            try:
                await service.update(mutated(update, rng), HERE)
                outcomes["updated"] += 1
            except Refused as refusal:
                outcomes[refusal.reason] += 1
    assert outcomes["answered"] > 500
    assert outcomes[Reason.MALFORMED] > 500
    assert outcomes["updated"] > 10


def mutated(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(0, 3)):
        if data and rng.random() < 0.7:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif data and rng.random() < 0.5:
            del data[rng.randrange(len(data)) :]
        else:
            data += rng.randbytes(rng.randint(1, 8))
    return bytes(data)


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


async def test_the_quorum_may_name_the_key_of_any_verifier_of_the_realm(tmp_path: Path) -> None:
    stranger = hashing.key_id(signatures.public_key(seed("stranger")))
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await epoch_signed(parts, 1)
        known = GUARDED.realm.verifiers[0].key_id
        assert parts.replica.published.is_satisfiable(QuorumExpr(1, (stranger, known)))
        assert not parts.replica.published.is_satisfiable(QuorumExpr(2, (stranger, known)))
