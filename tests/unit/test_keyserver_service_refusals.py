"""What a replica's service refuses, each with its reason; any bytes end in an answer or a refusal."""

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from asking import (
    HERE,
    SMALL,
    lookup_refused,
    refused,
)
from e2eks.v1 import client_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb

from keyserver.testing import Disk, Person, running
from verifier import encoding, limits
from verifier.errors import Reason, Refused

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

    async with running(SMALL, Disk(tmp_path)) as parts:
        await parts.service.update(alice.update({"ssh": b"1"}), HERE)
        parts.service._update_timeout = 0.05
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


async def test_an_update_waits_until_the_replica_has_come_to_the_epoch_its_sender_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyserver.service.LAG_S", 0.01)
    async with running(SMALL, Disk(tmp_path)) as parts:
        alice = Person.named("alice", SMALL)
        first = alice.draft({"ssh": b"1"})
        first.lookup_parameters.min_epoch = parts.replica.state.signed_epoch
        assert await parts.service.update(first.SerializeToString(), HERE)
        behind = alice.draft({"ssh": b"2"})
        behind.lookup_parameters.min_epoch = 1_000
        with pytest.raises(Refused) as caught:
            await parts.service.update(behind.SerializeToString(), HERE)
        assert caught.value.reason is Reason.NOT_READY
