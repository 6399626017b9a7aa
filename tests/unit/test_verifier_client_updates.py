"""Changes of one's own entry through the client: what is sent, what is believed, what can be sent again."""

from collections.abc import Callable

import pytest
from e2eks.v1 import client_pb2
from samples import ALICE, BOB, EVE, nonce_of
from simulated_realm import ADDRESSES, SimulatedRealm, signing_key

from verifier import encoding, policy
from verifier.client import drafts
from verifier.client.client import Client
from verifier.client.historian import BadAnswer
from verifier.client.outcome import Exit, Unreachable, exit_of_error
from verifier.client.pins import MemoryPins
from verifier.errors import Malformed, Reason, Refused
from verifier.lookup import Present, Revoked
from verifier.types import Entry, QuorumExpr

USER, OTHER = "alice@example.test", "bob@example.test"
OWNER = [signing_key(ALICE)]
KEYS = {"ssh": b"ssh-ed25519 AAAA alice"}


@pytest.fixture
def world() -> SimulatedRealm:
    world = SimulatedRealm()
    world.put(OTHER, {"age": b"age1"}, BOB)
    world.close()
    return world


@pytest.fixture
def client(world: SimulatedRealm) -> Client:
    return Client(world.realm, world, MemoryPins(), clock=world.now_ms)


def test_a_registration_is_version_0_with_the_policy_of_its_signers(client: Client) -> None:
    result = client.register(USER, KEYS, OWNER)
    assert isinstance(result, Present)
    assert (result.entry.version, result.entry.previous_entry_hash) == (0, b"")
    assert result.entry.update_policy == drafts.any_of([ALICE.public])
    assert dict(result.profile.keys) == KEYS


def test_an_update_is_the_next_version_and_leaves_the_policy(client: Client) -> None:
    first = client.register(USER, KEYS, OWNER)
    second = client.update(USER, {"age": b"age1"}, OWNER)
    assert isinstance(first, Present)
    assert isinstance(second, Present)
    assert (second.entry.version, second.entry.previous_entry_hash) == (1, first.entry.hash)
    assert second.entry.update_policy == first.entry.update_policy
    assert second.proof.profile_nonce != first.proof.profile_nonce


def test_a_new_policy_needs_the_old_keys_and_the_new(client: Client) -> None:
    client.register(USER, KEYS, OWNER)
    law = drafts.any_of([BOB.public])
    with pytest.raises(Refused) as refused:
        client.update(USER, KEYS, OWNER, policy=law)
    assert refused.value.reason is Reason.NOT_AUTHORIZED
    client.update(USER, KEYS, [*OWNER, signing_key(BOB)], policy=law)
    with pytest.raises(Refused):
        client.update(USER, KEYS, OWNER)
    assert isinstance(client.update(USER, KEYS, [signing_key(BOB)]), Present)


def test_keys_that_no_policy_names_do_not_sign(client: Client) -> None:
    client.register(USER, KEYS, OWNER)
    draft = client.draft_update(USER, {"age": b"age1"}, [*OWNER, signing_key(EVE)])
    assert [signature.key_id for signature in draft.update.signatures] == [ALICE.id]


def test_a_threshold_of_devices_signs_together(client: Client) -> None:
    ids = (ALICE.id, BOB.id, EVE.id)
    law = encoding.make_policy([ALICE.public, BOB.public, EVE.public], QuorumExpr(2, ids))
    assert policy.satisfied(law.quorum, ids[:2])
    with pytest.raises(Refused):
        client.register(USER, KEYS, OWNER, policy=law)
    assert isinstance(client.register(USER, KEYS, [*OWNER, signing_key(EVE)], policy=law), Present)


def test_nothing_is_sent_for_a_name_that_is_taken_free_or_somebody_elses(
    client: Client, world: SimulatedRealm
) -> None:
    attempts: list[tuple[Reason, Callable[[], object]]] = [
        (Reason.VERSION_MISMATCH, lambda: client.register(OTHER, KEYS, OWNER)),
        (Reason.VERSION_MISMATCH, lambda: client.update(USER, KEYS, OWNER)),
        (Reason.VERSION_MISMATCH, lambda: client.revoke(USER, OWNER)),
        (Reason.NOT_AUTHORIZED, lambda: client.update(OTHER, KEYS, OWNER)),
        (Reason.NOT_AUTHORIZED, lambda: client.revoke(OTHER, OWNER)),
    ]
    for reason, attempt in attempts:
        with pytest.raises(Refused) as refused:
            attempt()
        assert refused.value.reason is reason
        assert exit_of_error(refused.value) is Exit.REFUSED
    assert all(method != "Update" for _, method in world.calls)


@pytest.mark.parametrize("keys", [{"Ssh": b"k"}, {"": b"k"}, {"a" * 33: b"k"}, {"ssh": b"k" * 70_000}])
def test_keys_beyond_the_limits_are_refused_here(client: Client, keys: dict[str, bytes]) -> None:
    with pytest.raises(Malformed):
        client.register(USER, keys, OWNER)


def test_a_revoked_name_can_be_registered_anew(client: Client) -> None:
    client.register(USER, KEYS, OWNER)
    revoked = client.revoke(USER, OWNER)
    assert isinstance(revoked, Revoked)
    with pytest.raises(Refused) as refused:
        client.update(USER, KEYS, OWNER)
    assert refused.value.reason is Reason.REVOKED
    again = client.register(USER, KEYS, [signing_key(EVE)])
    assert isinstance(again, Present)
    assert again.entry.version == revoked.entry.version + 1
    assert again.entry.previous_entry_hash == revoked.entry.hash


def test_a_revocation_signed_in_advance_outlives_updates(client: Client) -> None:
    first = client.register(USER, KEYS, OWNER)
    assert isinstance(first, Present)
    ahead = drafts.revocation(client.realm, first.entry, OWNER, ahead=drafts.REVOCATION_AHEAD)
    for n in range(3):
        client.update(USER, {"ssh": b"%d" % n}, OWNER)
    answer = client.submit(drafts.revocation_draft(USER, ahead, bytes))
    assert isinstance(answer.result, Revoked)
    assert isinstance(client.register(USER, KEYS, OWNER), Present)


def test_a_registration_carries_its_proof_made_for_the_entry(client: Client, world: SimulatedRealm) -> None:
    proven: list[Entry] = []

    def admission(entry: Entry) -> bytes:
        proven.append(entry)
        return client_pb2.RegistrationProof(oidc_token="token").SerializeToString()

    client.register(USER, KEYS, OWNER, admission=admission)
    request = client_pb2.UpdateRequest.FromString(dict(world.requests)["Update"])
    assert request.registration_proof.oidc_token == "token"
    assert request.update.entry == proven[0].encoded
    assert (request.lookup_parameters.user_id, request.lookup_parameters.epoch) == (USER, 0)
    assert request.lookup_parameters.HasField("quorum_requirement")
    assert len(request.request_id) == 16


# What is believed


def test_an_answer_without_exactly_the_entry_sent_is_refused(client: Client, world: SimulatedRealm) -> None:
    client.register(USER, KEYS, OWNER)
    world.tampering["Update"] = lambda _: world.lookup(USER, 2)
    with pytest.raises(BadAnswer) as refused:
        client.update(USER, {"age": b"age1"}, OWNER)
    assert (refused.value.check, refused.value.method) == ("entry", "Update")


def test_an_absent_answer_to_a_registration_is_refused(client: Client, world: SimulatedRealm) -> None:
    world.tampering["Update"] = lambda _: world.lookup(USER, 1)
    with pytest.raises(BadAnswer) as refused:
        client.register(USER, KEYS, OWNER)
    assert refused.value.check == "entry"


def test_an_answer_without_the_profile_sent_is_refused(client: Client, world: SimulatedRealm) -> None:
    def erased(raw: bytes) -> bytes:
        proof = client_pb2.LookupProof.FromString(raw)
        proof.ClearField("profile")
        proof.ClearField("profile_nonce")
        return encoding.canonical(proof)

    world.tampering["Update"] = erased
    with pytest.raises(BadAnswer) as refused:
        client.register(USER, KEYS, OWNER)
    assert refused.value.check == "commitment"
    assert nonce_of(USER, 0) not in world.nonces.values()


# What can be sent again


def test_a_lost_answer_is_made_good_by_the_same_draft(client: Client, world: SimulatedRealm) -> None:
    draft = client.draft_registration(USER, KEYS, OWNER)
    lose = {"answers": True}

    def lost(raw: bytes) -> bytes:
        if lose["answers"]:
            raise Unreachable("lost by the test")
        return raw

    world.tampering["Update"] = lost
    with pytest.raises(Unreachable) as refused:
        client.submit(draft)
    assert exit_of_error(refused.value) is Exit.UNREACHABLE
    assert [address for address, method in world.calls if method == "Update"] == list(ADDRESSES)
    lose["answers"] = False
    epoch = world.epoch
    answer = client.submit(draft)
    assert isinstance(answer.result, Present)
    assert answer.result.entry.encoded == draft.update.entry.encoded
    assert world.epoch == epoch


@pytest.mark.parametrize(
    ("reason", "tries", "exit_code"),
    [
        (Reason.NOT_READY, 3, Exit.REFUSED),
        (Reason.UPDATE_PENDING, 1, Exit.REFUSED),
        (Reason.PROOF_REQUIRED, 1, Exit.REFUSED),
        (Reason.NOT_RATIFIED_IN_TIME, 1, Exit.NOT_RATIFIED),
    ],
)
def test_only_a_server_that_is_not_ready_sends_an_update_elsewhere(
    client: Client, world: SimulatedRealm, reason: Reason, tries: int, exit_code: Exit
) -> None:
    world.refusals["Update"] = Refused(reason, "said the test")
    with pytest.raises(Refused) as refused:
        client.register(USER, KEYS, OWNER)
    assert exit_of_error(refused.value) is exit_code
    assert len([method for _, method in world.calls if method == "Update"]) == tries
