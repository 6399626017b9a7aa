"""A replica that forgets: what it asks of an erasure, and what it shows afterwards."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
from asking import HERE, PATIENCE, SMALL, check, present
from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb
from erasing import KEY, OTHER_KEY, erase, known_of, paid, private_bytes

from keyserver import log_dump, requests
from keyserver.machine import commands
from keyserver.machine.rows import vrf_cache_key
from keyserver.rate_limits import Limits, Rate, RateLimits
from keyserver.run import Parts
from keyserver.testing import Disk, Person, running
from verifier.errors import Reason, Refused
from verifier.lookup import Erased, Present, Revoked


@pytest.fixture
def alice() -> Person:
    return Person.named("alice", SMALL)


async def refused(reason: Reason, parts: Parts, request: bytes) -> None:
    before = parts.replica.position.index
    with trio.fail_after(PATIENCE), pytest.raises(Refused) as caught:
        await parts.service.erase(request, HERE)
    assert caught.value.reason is reason, caught.value.what
    entries = parts.log.read(before + 1, before + 1000, 2**30)
    assert not any("Erase" in str(commands.decode_log_entry(entry.payload).envelope) for entry in entries)


async def test_the_erased_is_proven_and_on_no_row(tmp_path: Path, alice: Person) -> None:
    disk, bob = Disk(tmp_path), Person.named("bob", SMALL)
    async with running(SMALL, disk) as parts:
        await parts.service.update(bob.update({"ssh": b"bob's"}), HERE)
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.update(alice.update({"ssh": OTHER_KEY}), HERE)
        assert await parts.service.erase(erase(alice), HERE) == b""
        epochs = parts.replica.state.signed_epoch
        assert isinstance(check(SMALL, alice.user_id, parts.service.lookup(alice.lookup(), HERE)), Erased)
        then = parts.service.lookup(alice.lookup(epoch=epochs - 1), HERE)
        assert isinstance(check(SMALL, alice.user_id, then, epoch=epochs - 1), Erased)
        await paid(parts)
        last = parts.log.status().committed_index
        parts.log.verify_chain(1, last + 1)  # type: ignore[attr-defined]
        assert isinstance(present(SMALL, bob.user_id, parts.service.lookup(bob.lookup(), HERE)), Present)
    assert known_of(disk, alice) == []
    assert bob.user_id.encode() in private_bytes(disk)


async def test_the_same_erasure_again_succeeds_and_proposes_nothing(tmp_path: Path, alice: Person) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        for _ in range(3):
            assert await parts.service.erase(erase(alice), HERE) == b""
        entries = parts.log.read(1, 2**32, 2**30)
        given = [one for e in entries for one in commands.decode_log_entry(e.payload).envelope.commands]
        assert sum(isinstance(one, commands.Erase) for one in given) == 1


async def test_what_is_published_later_is_shown(tmp_path: Path, alice: Person) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.erase(erase(alice), HERE)
        proof = await parts.service.update(alice.update({"ssh": OTHER_KEY}), HERE)
        assert dict(present(SMALL, alice.user_id, proof).profile.keys) == {"ssh": OTHER_KEY}


async def test_a_revoked_entry_is_erased_by_the_keys_it_had(tmp_path: Path, alice: Person) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.update(alice.revocation(), HERE)
        await parts.service.erase(erase(alice), HERE)
        assert isinstance(check(SMALL, alice.user_id, parts.service.lookup(alice.lookup(), HERE)), Revoked)
        await paid(parts)
    assert known_of(disk, alice) == []


async def test_each_refusal_has_its_reason_and_reaches_no_log(tmp_path: Path, alice: Person) -> None:
    mallory = Person.named("mallory", SMALL)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.update(mallory.update({"ssh": b"mallory's"}), HERE)
        theirs = client_pb2.EraseRequest.FromString(erase(mallory)).signatures
        stale = erase(alice)
        for reason, request in (
            (Reason.NOT_AUTHORIZED, erase(alice, signatures=[])),
            (Reason.NOT_AUTHORIZED, erase(alice, signatures=theirs)),
            (Reason.VERSION_MISMATCH, erase(alice, entry_hash=bytes(32))),
            (Reason.WRONG_INDEX, erase(alice, index=mallory.index)),
            (Reason.WRONG_INDEX, erase(alice, user_id=mallory.user_id)),
            (Reason.DOMAIN_NOT_SERVED, erase(alice, user_id="alice@elsewhere.example")),
            (Reason.MALFORMED, erase(alice, user_id="")),
            (Reason.MALFORMED, erase(alice, index=b"short")),
            (Reason.MALFORMED, erase(alice, entry_hash=b"")),
            (Reason.MALFORMED, erase(alice, request_id=b"short")),
            (Reason.MALFORMED, erase(mallory, signatures=[*theirs, *theirs])),
            (Reason.MALFORMED, erase(alice, signatures=[pb.Signature(key_id=b"k", signature=b"s")])),
            (Reason.MALFORMED, b"\xff"),
        ):
            await refused(reason, parts, request)
        nobody = Person.named("nobody", SMALL)
        nobody.entry = alice.entry
        await refused(Reason.VERSION_MISMATCH, parts, erase(nobody))
        await parts.service.update(alice.update({"ssh": OTHER_KEY}), HERE)
        await refused(Reason.VERSION_MISMATCH, parts, stale)
        assert dict(present(SMALL, alice.user_id, parts.service.lookup(alice.lookup(), HERE)).profile.keys)


def test_any_bytes_are_a_request_or_one_refusal(
    alice: Person, rng: Random, count: Callable[[int], int]
) -> None:
    alice.update({"ssh": KEY})
    good = erase(alice)
    outcomes = Counter[str]()
    for _ in range(count(3000)):
        spoiled = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(spoiled))
            spoiled[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        try:
            asked = requests.decode_erase(bytes(spoiled), SMALL.realm)
        except Refused as refusal:
            outcomes[refusal.reason] += 1
        else:
            assert (len(asked.index), len(asked.entry_hash)) == (32, 32)
            outcomes["read"] += 1
    assert outcomes["read"] > 0
    assert set(outcomes) <= {"read", Reason.MALFORMED, Reason.DOMAIN_NOT_SERVED, Reason.TOO_LARGE}


async def test_an_erasure_in_the_log_is_shown_to_operators_without_the_name(
    tmp_path: Path, alice: Person
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        await parts.service.erase(erase(alice), HERE)
        entries = parts.log.read(1, 2**32, 2**30)
        assert alice.entry is not None
        shown = [log_dump.describe(entry.index, entry.payload) for entry in entries]
        (told,) = [one for record in shown for one in record["commands"] if one["command"] == "Erase"]
        assert (told["index"], told["entry_hash"]) == (alice.index.hex(), alice.entry.hash.hex())
        assert alice.user_id not in str(shown)


async def test_signatures_that_do_not_count_never_reach_the_log(tmp_path: Path, alice: Person) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        own = client_pb2.EraseRequest.FromString(erase(alice)).signatures
        junk = pb.Signature(key_id=b"j" * 32, signature=b"junk" * 16)
        await parts.service.erase(erase(alice, signatures=[junk, *own]), HERE)
        assert not any(b"junkjunk" in entry.payload for entry in parts.log.read(1, 2**32, 2**30))


async def test_erasures_are_limited_like_updates(tmp_path: Path, alice: Person) -> None:
    few = Limits(peer_name_updates=Rate(0.001, 1))
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        parts.service._rates = RateLimits(few)
        await refused(Reason.NOT_AUTHORIZED, parts, erase(alice, signatures=[]))
        await refused(Reason.RATE_LIMITED, parts, erase(alice))


async def test_a_replica_that_may_not_sign_erases_nothing(tmp_path: Path, alice: Person) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        parts.signer.quarantine("said the test")
        await refused(Reason.NOT_READY, parts, erase(alice))


async def test_looking_for_the_erased_keeps_no_row_of_the_name(tmp_path: Path, alice: Person) -> None:
    row = vrf_cache_key(alice.user_id)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        bob = Person.named("bob", SMALL)
        await parts.service.update(bob.update({"ssh": b"bob's"}), HERE)
        assert parts.replica.store.get(row) is not None
        await parts.service.erase(erase(alice), HERE)
        assert parts.replica.store.get(row) is None
        for _ in range(3):
            parts.service.lookup(alice.lookup(), HERE)
        await parts.service.update(bob.update({"ssh": b"bob's second"}), HERE)
        assert parts.replica.store.get(row) is None


async def test_a_row_owed_in_the_batch_that_erases_is_not_written(tmp_path: Path, alice: Person) -> None:
    disk = Disk(tmp_path)
    async with running(SMALL, disk) as parts:
        await parts.service.update(alice.update({"ssh": KEY}), HERE)
        with_rows = parts.replica.vrf.take_rows
        owed = {vrf_cache_key(alice.user_id): b"place"}
        parts.replica.vrf.take_rows = lambda: {**with_rows(), **owed}  # type: ignore[method-assign]
        await parts.service.erase(erase(alice), HERE)
        parts.replica.vrf.take_rows = with_rows  # type: ignore[method-assign]
        assert parts.replica.store.get(vrf_cache_key(alice.user_id)) is None
