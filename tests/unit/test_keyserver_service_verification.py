"""What verifiers push and read, and what proves one history: consistency, policy heads, the realm file."""

from pathlib import Path

import pytest
import trio
from asking import GUARDED, HERE, PATIENCE, SMALL, admitted, all_steps, epoch_signed, ratified_by
from e2eks.v1 import client_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb

from keyserver.run import now_ms
from keyserver.testing import Disk, Person, running, seed
from verifier import limits, proof_encoding
from verifier.consistency import verify_consistency
from verifier.errors import Reason, Refused
from verifier.lookup import Trust
from verifier.realm import parse_realm_json
from verifier.types import EpochStep, UpdateStep

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
        answer = await parts.service.push_ratification(good, key_ids[0])
        assert verification_pb2.PushRatificationResponse.FromString(answer).newest.SerializeToString() == good


async def test_a_ratification_pushed_again_succeeds_and_is_proposed_once(tmp_path: Path) -> None:
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await ratified_by(parts, GUARDED, 0, 1)
        applied = parts.replica.position.index
        await ratified_by(parts, GUARDED, 0, 1)
        assert parts.replica.position.index == applied


# The verifier log


async def test_a_verifier_fills_no_log_with_other_heads(tmp_path: Path) -> None:
    """The first one is evidence; more of them are none, however many it signs."""
    key_id = GUARDED.realm.verifiers[0].key_id
    async with running(GUARDED, Disk(tmp_path)) as parts:
        await admitted(parts, GUARDED)
        await epoch_signed(parts, 1)
        head = next(step.head.head for step in await all_steps(parts) if isinstance(step, EpochStep))
        fields = pb.EpochHead.FromString(head.encoded)
        ends = []
        for number in range(3):
            fields.root_hash = seed(f"another root {number}")
            pushed = GUARDED.ratify(0, fields.SerializeToString(deterministic=True), now_ms())
            with trio.fail_after(PATIENCE), pytest.raises(Refused, match="HEAD_MISMATCH") as refused:
                await parts.service.push_ratification(pushed, key_id)
            assert refused.value.reason is Reason.MALFORMED
            ends.append(parts.log.status().committed_index)
        assert ends[0] == ends[1] == ends[2]
        genuine = GUARDED.ratify(0, head.encoded, now_ms())
        with trio.fail_after(PATIENCE):
            assert await parts.service.push_ratification(genuine, key_id)  # it may come to its senses


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
