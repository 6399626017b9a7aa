"""The verifiers' side of a realm from outside: what may be pushed, what is streamed, who comes back.

The test plays the verifier v4, which the realm lists and nobody runs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from e2eks.v1 import client_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb
from realm_processes.calls import Door, Reply
from realm_processes.people import KEYS, Person, all_of, connect, now_ms, register
from realm_processes.realm import RATIFIED_HEADS, VERIFICATION, RealmProcesses

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import REPLICA
from verifier import encoding, epoch
from verifier.client.client import Client
from verifier.errors import Refused
from verifier.lookup import Absent
from verifier.proof_encoding import decode_lookup_proof
from verifier.types import Ratification, Signature, SignedHead

NOBODY = "nobody@example.test"


def push(realm: RealmProcesses, data: bytes) -> Reply:
    return realm.push("v4").call(VERIFICATION + "PushRatification", data)


def ratified(realm: RealmProcesses, head: bytes, *, by: str = "v4", time_ms: int = 0) -> Ratification:
    """A valid ratification of the bytes of a head."""
    at = time_ms or now_ms()
    signature = realm.key_of(by).sign(epoch.verifier_message(head, at))
    return Ratification(at, (Signature(realm.key_id_of(by), signature),))


def newest(client: Client) -> SignedHead:
    return client.lookup(NOBODY).head


# Pushing


def with_epoch(head: bytes, number: int) -> bytes:
    message = pb.EpochHead.FromString(head)
    message.epoch = number
    return encoding.canonical(message)


def of_a_huge_epoch(realm: RealmProcesses, head: bytes) -> bytes:
    forged = with_epoch(head, 2**63)
    return encoding.encode_signed_head(forged, [ratified(realm, forged)])


def of_the_last_epoch_there_can_be(realm: RealmProcesses, head: bytes) -> bytes:
    forged = with_epoch(head, 2**64 - 1)
    return encoding.encode_signed_head(forged, [ratified(realm, forged)])


def of_another_head(realm: RealmProcesses, head: bytes) -> bytes:
    message = pb.EpochHead.FromString(head)
    message.root_hash = b"x" * 32
    forged = encoding.canonical(message)
    return encoding.encode_signed_head(forged, [ratified(realm, forged)])


def of_another_realm(realm: RealmProcesses, head: bytes) -> bytes:
    message = pb.EpochHead.FromString(head)
    message.realm_hash = b"x" * 32
    forged = encoding.canonical(message)
    return encoding.encode_signed_head(forged, [ratified(realm, forged)])


def with_a_signature_that_is_none(realm: RealmProcesses, head: bytes) -> bytes:
    made = Ratification(now_ms(), (Signature(realm.key_id_of("v4"), bytes(64)),))
    return encoding.encode_signed_head(head, [made])


def with_a_signature_at_another_time(realm: RealmProcesses, head: bytes) -> bytes:
    made = ratified(realm, head)
    return encoding.encode_signed_head(head, [Ratification(made.timestamp_ms + 1, made.signatures)])


def signed_as_a_replica_does(realm: RealmProcesses, head: bytes) -> bytes:
    at = encoding.decode_head(head).issue_time_ms
    signature = realm.key_of("v4").sign(epoch.replica_message(head, at))
    made = Ratification(at, (Signature(realm.key_id_of("v4"), signature),))
    return encoding.encode_signed_head(head, [made])


def in_the_name_of_another(realm: RealmProcesses, head: bytes) -> bytes:
    return encoding.encode_signed_head(head, [ratified(realm, head, by="v1")])


def in_the_name_of_the_replica(realm: RealmProcesses, head: bytes) -> bytes:
    return encoding.encode_signed_head(head, [ratified(realm, head, by=REPLICA)])


def with_two_ratifications(realm: RealmProcesses, head: bytes) -> bytes:
    two = [ratified(realm, head), ratified(realm, head, by="v1")]
    return encoding.encode_signed_head(head, two)


def with_two_signatures(realm: RealmProcesses, head: bytes) -> bytes:
    at = now_ms()
    one, other = (ratified(realm, head, by=name, time_ms=at).signatures[0] for name in ("v4", "v1"))
    return encoding.encode_signed_head(head, [Ratification(at, (one, other))])


def without_any(realm: RealmProcesses, head: bytes) -> bytes:
    return encoding.encode_signed_head(head, [])


PUSHES: dict[Callable[[RealmProcesses, bytes], bytes], str] = {
    of_a_huge_epoch: "NO_SUCH_EPOCH",
    of_the_last_epoch_there_can_be: "NO_SUCH_EPOCH",
    of_another_head: "MALFORMED",
    of_another_realm: "MALFORMED",
    with_a_signature_that_is_none: "NOT_AUTHORIZED",
    with_a_signature_at_another_time: "NOT_AUTHORIZED",
    signed_as_a_replica_does: "NOT_AUTHORIZED",
    in_the_name_of_another: "NOT_AUTHORIZED",
    in_the_name_of_the_replica: "NOT_AUTHORIZED",
    with_two_ratifications: "NOT_AUTHORIZED",
    with_two_signatures: "NOT_AUTHORIZED",
    without_any: "NOT_AUTHORIZED",
}


@pytest.mark.parametrize(("make", "reason"), PUSHES.items(), ids=[make.__name__ for make in PUSHES])
def test_a_push_that_proves_nothing_is_refused_and_stored_nowhere(
    realm: RealmProcesses, client: Client, make: Callable[[RealmProcesses, bytes], bytes], reason: str
) -> None:
    before = newest(client)
    reply = push(realm, make(realm, before.head.encoded))
    assert (reply.reason, reply.domain) == (reason, "e2eks"), reply
    check_unharmed(realm, client, before.head.epoch)


def check_unharmed(realm: RealmProcesses, client: Client, number: int) -> None:
    """Latest lookups go on, and the epoch carries no signature by v4."""
    realm.check_alive()
    assert newest(client).head.epoch >= number
    quorum = all_of(realm.key_id_of(REPLICA), realm.key_id_of("v4"))
    request = client_pb2.LookupRequest(user_id=NOBODY, epoch=number)
    request.quorum_requirement.CopyFrom(encoding.quorum_message(quorum))
    assert realm.lookup(request).code != "OK"


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x0a\x02\x08\x01", bytes(100_000)])
def test_a_push_of_garbage_is_refused(realm: RealmProcesses, client: Client, data: bytes) -> None:
    reply = push(realm, data)
    assert reply.code == "INVALID_ARGUMENT", reply
    assert reply.reason in ("MALFORMED", "TOO_LARGE")
    check_unharmed(realm, client, newest(client).head.epoch)


def test_a_push_needs_the_certificate_of_a_listed_verifier(realm: RealmProcesses, client: Client) -> None:
    head = newest(client).head.encoded
    data = encoding.encode_signed_head(head, [ratified(realm, head)])
    door = realm.push("v4")
    assert realm.authority is not None
    strangers = realm.authority.certify("stranger@example.test")
    for pair in (None, strangers):
        reply = Door(door.address, door.roots, pair).call(VERIFICATION + "PushRatification", data)
        assert reply.code in ("UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED"), reply
    other = realm.push("v1").call(VERIFICATION + "PushRatification", data)
    assert other.reason == "NOT_AUTHORIZED"
    assert realm.public().call(VERIFICATION + "PushRatification", data).code == "UNIMPLEMENTED"
    check_unharmed(realm, client, newest(client).head.epoch)


def test_the_first_ratification_stands_and_its_quorum_finds_its_epoch(
    realm: RealmProcesses, client: Client
) -> None:
    """Any number of newer epochs without that verifier hide an older one with it from nobody."""
    head = newest(client).head
    first = ratified(realm, head.encoded)
    for made in (first, first, ratified(realm, head.encoded, time_ms=first.timestamp_ms + 1)):
        assert push(realm, encoding.encode_signed_head(head.encoded, [made])).code == "OK"
    wait_until(lambda: newest(client).head.epoch > head.epoch + 1, "epochs that v4 does not ratify")
    quorum = all_of(realm.key_id_of(REPLICA), realm.key_id_of("v4"))
    demanding, transport = connect(realm.realm(), quorum=quorum)
    with transport:
        found = demanding.lookup(NOBODY)
    assert isinstance(found, Absent)
    assert found.head.head.encoded == head.encoded
    assert first in found.head.ratifications


def test_a_quorum_nobody_has_met_ends_with_a_reason(realm: RealmProcesses, client: Client) -> None:
    quorum = all_of(realm.key_id_of(REPLICA), realm.key_id_of("v4"))
    number = newest(client).head.epoch
    demanding, transport = connect(realm.realm(), quorum=quorum)
    with transport, pytest.raises(Refused) as refused:
        demanding.lookup(NOBODY, epoch=number)
    assert refused.value.reason == "EPOCH_PENDING"


# Reading


def stream(realm: RealmProcesses, start: int, size: int) -> tuple[list[pb.SignedEpochHead], list[Any]]:
    request = verification_pb2.VerifierStreamRequest(start=start, page_size=size)
    messages, reply = realm.verification().stream(
        VERIFICATION + "VerifierStream", request.SerializeToString()
    )
    assert reply.code == "OK", reply
    steps = [s for m in messages for s in verification_pb2.VerifierSteps.FromString(m).steps]
    return [s.epoch for s in steps if s.HasField("epoch")], steps


def test_the_verifier_log_is_gapless_and_names_nobody(
    realm: RealmProcesses, client: Client, person: Person
) -> None:
    number = register(client, person).head.head.epoch
    epochs, steps = stream(realm, 1, 2**63)
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    heads = [encoding.decode_signed_head(step.SerializeToString()).head for step in epochs]
    assert [head.epoch for head in heads] == list(range(1, len(heads) + 1))
    assert len(heads) >= number
    everything = b"".join(step.SerializeToString() for step in steps)
    assert person.user_id.encode() not in everything
    assert KEYS["ssh"] not in everything


def test_the_verifier_log_is_read_from_anywhere_in_pages_and_beyond_its_end_waits_for_nobody(
    realm: RealmProcesses,
) -> None:
    _, steps = stream(realm, 1, 5)
    assert [step.index for step in steps] == [1, 2, 3, 4, 5]
    assert stream(realm, 4, 1)[1] == [steps[3]]
    assert stream(realm, 2**63, 1)[1] == []


def test_a_follower_gets_every_new_head(realm: RealmProcesses) -> None:
    request = verification_pb2.VerifierStreamRequest(start=1, page_size=0)
    seen: list[int] = []
    with realm.verification().channel() as channel:
        rpc: Any = channel.unary_stream(VERIFICATION + "VerifierStream")
        call = rpc(request.SerializeToString(), timeout=60.0)
        until = realm.epochs() + 2
        for message in call:
            steps = verification_pb2.VerifierSteps.FromString(message).steps
            seen += [pb.EpochHead.FromString(s.epoch.head).epoch for s in steps if s.HasField("epoch")]
            if seen and seen[-1] >= until:
                break
        call.cancel()
    assert seen == list(range(1, seen[-1] + 1))


def test_verifiers_serve_what_they_ratified(realm: RealmProcesses, client: Client) -> None:
    head = newest(client).head
    request = verification_pb2.RatifiedHeadRequest(epoch=head.epoch).SerializeToString()

    def ask(name: str) -> Reply:
        return realm.ratified_heads(name).call(RATIFIED_HEADS + "Get", request)

    for name in ("v1", "v2", "v3"):
        wait_until(partial(lambda asked: ask(asked).code == "OK", name), f"{name} to ratify the epoch")
        served = encoding.decode_signed_head(ask(name).data)
        assert served.head.encoded == head.encoded
        assert realm.signers_of(served) == {REPLICA, name}


# Coming back


def test_verifiers_outlive_a_replica_and_a_replica_its_verifiers(realm: RealmProcesses) -> None:
    everybody = {REPLICA, "v1", "v2", "v3"}
    realm.kill(REPLICA)
    realm.start_replica()
    check_ratified_by(realm, everybody, after=realm.epochs())
    realm.kill("v1")
    missed = realm.epochs() + 1
    wait_until(lambda: realm.epochs() > missed, "epochs without v1")
    realm.start_verifier("v1")
    check_ratified_by(realm, everybody, after=realm.epochs())


def check_ratified_by(realm: RealmProcesses, names: set[str], after: int) -> None:
    """Wait for an epoch after `after` with everybody's signature."""
    quorum = encoding.quorum_message(all_of(*map(realm.key_id_of, sorted(names))))
    request = client_pb2.LookupRequest(user_id=NOBODY, quorum_requirement=quorum, min_epoch=after + 1)
    wait_until(lambda: realm.lookup(request).code == "OK", f"an epoch signed by {sorted(names)}")
    assert realm.signers_of(decode_lookup_proof(realm.lookup(request).data).head) == names


# Health


def test_health_and_metrics_tell_an_operator_how_it_is(realm: RealmProcesses, client: Client) -> None:
    newest(client)
    assert realm.http("/livez") is not None
    assert realm.http("/readyz") is not None
    assert b"e2eks_" in (realm.http("/metrics") or b"")
    status = realm.status()
    assert status["ready"] is True
    assert status["signed_epoch"] >= 1
    reply = realm.public().call("/grpc.health.v1.Health/Check", b"")
    assert reply.data == b"\x08\x01"  # SERVING
