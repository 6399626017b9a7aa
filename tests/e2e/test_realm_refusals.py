"""What a realm refuses from outside, each with its reason, and nothing of it harms anybody else."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb
from realm_processes.people import (
    KEYS,
    OTHER_KEYS,
    Person,
    connect,
    new_person,
    register,
    registration,
    update_request,
    version_0,
)
from realm_processes.realm import KEYSERVER, VERIFICATION, RealmProcesses

from verifier import encoding, limits
from verifier.client.client import Client
from verifier.client.drafts import Draft
from verifier.errors import Reason, Refused
from verifier.lookup import Absent, Present


def check_still_works(realm: RealmProcesses, client: Client) -> None:
    realm.check_alive()
    assert isinstance(client.lookup("nobody@example.test"), Absent)


def check_refused(realm: RealmProcesses, request: client_pb2.UpdateRequest, reason: Reason) -> None:
    reply = realm.public().call(KEYSERVER + "Update", request.SerializeToString())
    assert (reply.reason, reply.domain) == (reason, "e2eks"), reply


def test_an_unsigned_update_is_refused(realm: RealmProcesses, client: Client, person: Person) -> None:
    request = update_request(*registration(client, person))
    del request.update.signatures[:]
    check_refused(realm, request, Reason.NOT_AUTHORIZED)


def test_a_signature_by_another_key_under_the_right_id_is_refused(
    realm: RealmProcesses, client: Client, person: Person
) -> None:
    assert realm.authority is not None
    other = new_person(realm.realm(), realm.authority)
    request = update_request(*registration(client, person))
    request.update.signatures[0].signature = other.key.sign(bytes(32))
    check_refused(realm, request, Reason.NOT_AUTHORIZED)


UNARY = [KEYSERVER + name for name in ("Lookup", "Update", "Consistency")]
STREAMS = [VERIFICATION + "VerifierStream"]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 64, b"\x0a\x80", b"\x12\x04\xff\xfe\xfd\xfc"])
def test_empty_and_broken_messages_are_malformed_and_crash_nothing(
    realm: RealmProcesses, client: Client, data: bytes
) -> None:
    for path in UNARY:
        reply = realm.public().call(path, data)
        assert (reply.code, reply.reason) == ("INVALID_ARGUMENT", "MALFORMED"), path
    for path in STREAMS:
        _, reply = realm.verification().stream(path, data)
        assert (reply.code, reply.reason) == ("INVALID_ARGUMENT", "MALFORMED"), path
    check_still_works(realm, client)


def without_update(request: client_pb2.UpdateRequest) -> None:
    request.ClearField("update")


def without_entry(request: client_pb2.UpdateRequest) -> None:
    request.update.entry = b""


def without_lookup_parameters(request: client_pb2.UpdateRequest) -> None:
    request.ClearField("lookup_parameters")


def with_an_epoch(request: client_pb2.UpdateRequest) -> None:
    request.lookup_parameters.epoch = 1


def without_a_nonce(request: client_pb2.UpdateRequest) -> None:
    request.profile_nonce = b""


def with_a_short_request_id(request: client_pb2.UpdateRequest) -> None:
    request.request_id = b"short"


def with_another_profile(request: client_pb2.UpdateRequest) -> None:
    request.profile = encoding.encode_profile(OTHER_KEYS)


def with_a_large_profile(request: client_pb2.UpdateRequest) -> None:
    request.profile = encoding.encode_profile({"pgp": bytes(limits.PROFILE_BYTES)})


def with_a_large_entry(request: client_pb2.UpdateRequest) -> None:
    request.update.entry = bytes(limits.ENTRY_BYTES + 1)


def with_a_large_request(request: client_pb2.UpdateRequest) -> None:
    request.profile = bytes(limits.REQUEST_BYTES)


def with_many_signatures(request: client_pb2.UpdateRequest) -> None:
    made = request.update.signatures[0]
    for number in range(limits.UPDATE_SIGNATURES):
        request.update.signatures.add(key_id=number.to_bytes(32, "big"), signature=made.signature)


def with_another_domain(request: client_pb2.UpdateRequest) -> None:
    request.lookup_parameters.user_id = "somebody@elsewhere.test"


def of_another_user(request: client_pb2.UpdateRequest) -> None:
    request.lookup_parameters.user_id = "somebody@example.test"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_update, Reason.MALFORMED),
        (without_entry, Reason.MALFORMED),
        (without_lookup_parameters, Reason.MALFORMED),
        (with_an_epoch, Reason.MALFORMED),
        (without_a_nonce, Reason.MALFORMED),
        (with_a_short_request_id, Reason.MALFORMED),
        (with_another_profile, Reason.COMMITMENT_MISMATCH),
        (with_a_large_profile, Reason.TOO_LARGE),
        (with_a_large_entry, Reason.TOO_LARGE),
        (with_a_large_request, Reason.TOO_LARGE),
        (with_many_signatures, Reason.TOO_LARGE),
        (with_another_domain, Reason.DOMAIN_NOT_SERVED),
        (of_another_user, Reason.WRONG_INDEX),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_an_update_that_does_not_fit_together_is_refused_with_its_reason(
    realm: RealmProcesses,
    client: Client,
    person: Person,
    spoil: Callable[[client_pb2.UpdateRequest], None],
    reason: Reason,
) -> None:
    request = update_request(*registration(client, person))
    spoil(request)
    check_refused(realm, request, reason)
    assert isinstance(client.lookup(person.user_id), Absent)


def test_a_message_beyond_every_limit_is_not_even_received(realm: RealmProcesses, client: Client) -> None:
    reply = realm.public().call(KEYSERVER + "Update", bytes(3 * 1024 * 1024))
    assert reply.code == "RESOURCE_EXHAUSTED"
    check_still_works(realm, client)


def quorum_message(threshold: int, *candidates: bytes, depth: int = 1) -> pb.QuorumExpr:
    message = pb.QuorumExpr(threshold=threshold, candidates=candidates)
    for _ in range(depth - 1):
        message = pb.QuorumExpr(threshold=1, subexpressions=[message])
    return message


def test_a_quorum_that_counts_twice_nests_deeply_or_names_strangers_is_refused(
    realm: RealmProcesses,
) -> None:
    known = realm.key_id_of("v1")
    cases = [
        (quorum_message(2, known, known), Reason.MALFORMED),
        (quorum_message(0, known), Reason.MALFORMED),
        (quorum_message(2, known), Reason.MALFORMED),
        (quorum_message(1, known[:31]), Reason.MALFORMED),
        (quorum_message(1, known, depth=limits.QUORUM_DEPTH + 1), Reason.TOO_LARGE),
        (quorum_message(1, *(n.to_bytes(32, "big") for n in range(65))), Reason.TOO_LARGE),
        (quorum_message(1, bytes(32)), Reason.QUORUM_UNSATISFIABLE),
    ]
    for quorum, reason in cases:
        request = client_pb2.LookupRequest(user_id="nobody@example.test", quorum_requirement=quorum)
        assert realm.lookup(request).reason == reason, quorum


def test_a_deeply_nested_quorum_crashes_nothing(realm: RealmProcesses, client: Client) -> None:
    quorum = quorum_message(1, bytes(32), depth=90)
    request = client_pb2.LookupRequest(user_id="nobody@example.test", quorum_requirement=quorum)
    assert realm.lookup(request).reason == "TOO_LARGE"
    check_still_works(realm, client)


def test_a_registration_without_a_proof_is_refused_where_one_is_asked_for(
    realm: RealmProcesses, client: Client, person: Person
) -> None:
    assert "insecure_skip_registration_proof = true" not in (realm.replica / "keyserver.toml").read_text()
    draft, _ = registration(client, person)
    check_refused(realm, update_request(draft), Reason.PROOF_REQUIRED)


def test_a_proof_is_for_one_entry_of_one_address(
    realm: RealmProcesses, client: Client, person: Person
) -> None:
    assert realm.authority is not None
    other = new_person(realm.realm(), realm.authority)
    draft, proof = registration(client, person)
    for stolen in (registration(client, other)[1], other.admission(person.user_id)(draft.update.entry)):
        check_refused(realm, update_request(draft, stolen), Reason.PROOF_INVALID)
    another = client.draft_registration(person.user_id, OTHER_KEYS, [person.key])
    check_refused(realm, update_request(another, proof), Reason.PROOF_INVALID)
    client.submit(draft, proof)


def test_of_two_updates_at_once_one_is_accepted(realm: RealmProcesses, person: Person) -> None:
    outcomes: list[Present | Refused] = []

    def race(keys: dict[str, bytes], draft: Draft) -> None:
        mine, transport = connect(realm.realm())
        with transport:
            try:
                result = mine.submit(draft).result
                assert isinstance(result, Present)
                assert dict(result.profile.keys) == keys
                outcomes.append(result)
            except Refused as refused:
                outcomes.append(refused)

    client, transport = connect(realm.realm())
    with transport:
        register(client, person)
        two = [(k, client.draft_update(person.user_id, k, [person.key])) for k in (KEYS, OTHER_KEYS)]
    threads = [threading.Thread(target=race, args=pair) for pair in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert refused.reason in (Reason.UPDATE_PENDING, Reason.VERSION_MISMATCH)
    assert len(outcomes) == 2


def test_an_update_signed_for_another_realm_is_refused(
    realm: RealmProcesses, client: Client, person: Person
) -> None:
    elsewhere = replace(client.realm, hash=bytes(32))
    request = update_request(*version_0(client, person, elsewhere))
    check_refused(realm, request, Reason.NOT_AUTHORIZED)
