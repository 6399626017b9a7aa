"""Having oneself forgotten, through the library and the command."""

from collections.abc import Callable
from pathlib import Path

import pytest
from e2eks.v1 import client_pb2
from samples import ALICE, BOB, EVE
from simulated_realm import ADDRESSES, SimulatedRealm, signing_key
from simulated_realm.command import Shell

from verifier import erasure
from verifier.client.client import Client, now_ms
from verifier.client.outcome import Unreachable
from verifier.client.pins import MemoryPins
from verifier.crypto import signatures
from verifier.errors import Reason, Refused
from verifier.lookup import Erased, Present, Revoked

USER, NOBODY = "alice@example.test", "nobody@example.test"
OWNER = [signing_key(ALICE)]
KEYS = {"ssh": b"ssh-ed25519 AAAA alice"}


@pytest.fixture
def world() -> SimulatedRealm:
    world = SimulatedRealm(clock=now_ms)
    world.put("bob@example.test", {"age": b"age1bob"}, BOB)
    world.close()
    return world


@pytest.fixture
def client(world: SimulatedRealm) -> Client:
    client = Client(world.realm, world, MemoryPins(), clock=world.now_ms)
    client.register(USER, KEYS, OWNER)
    return client


def sent(world: SimulatedRealm) -> client_pb2.EraseRequest:
    (request,) = [raw for method, raw in world.requests if method == "Erase"]
    return client_pb2.EraseRequest.FromString(request)


# The library


def test_the_erased_is_proven_in_every_epoch_and_never_a_key(client: Client) -> None:
    client.update(USER, {"age": b"age1"}, OWNER)
    assert isinstance(client.erase(USER, OWNER), Erased)
    for epoch in (2, 3):
        assert isinstance(client.lookup(USER, epoch), Erased)


def test_the_owner_signs_the_entry_as_it_stands(client: Client, world: SimulatedRealm) -> None:
    found = client.lookup(USER)
    assert isinstance(found, Present)
    client.erase(USER, [*OWNER, signing_key(EVE)])
    request = sent(world)
    assert (request.user_id, request.index, request.entry_hash) == (USER, found.entry.index, found.entry.hash)
    (made,) = request.signatures
    message = erasure.erasure_message(world.realm.hash, found.entry.index, found.entry.hash)
    assert signatures.verify(ALICE.public, message, made.signature)
    assert len(request.request_id) == 16


def test_nobody_else_even_asks(client: Client, world: SimulatedRealm) -> None:
    for user, signers, reason in (
        (USER, [signing_key(EVE)], Reason.NOT_AUTHORIZED),
        (USER, [], Reason.NOT_AUTHORIZED),
        (NOBODY, OWNER, Reason.VERSION_MISMATCH),
    ):
        with pytest.raises(Refused) as refused:
            client.erase(user, signers)
        assert refused.value.reason is reason
    assert "Erase" not in {method for method, _ in world.requests}


def test_a_revoked_entry_is_erased_by_any_of_its_keys_that_still_counts(client: Client) -> None:
    client.revoke(USER, OWNER)
    assert isinstance(client.erase(USER, [signing_key(EVE), *OWNER]), Revoked)
    assert isinstance(client.lookup(USER, 2), Erased)


def test_an_erased_entry_can_be_updated(client: Client) -> None:
    client.erase(USER, OWNER)
    assert isinstance(client.erase(USER, OWNER), Erased)
    assert isinstance(client.update(USER, KEYS, OWNER), Present)


def test_a_server_that_still_shows_the_keys_is_not_believed(
    client: Client, world: SimulatedRealm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "call", _only_claims(world))
    with pytest.raises(Refused) as refused:
        client.erase(USER, OWNER)
    assert refused.value.reason is Reason.NOT_READY


def _only_claims(world: SimulatedRealm) -> Callable[[str, str, bytes], bytes]:
    genuine = SimulatedRealm.call

    def call(address: str, method: str, request: bytes) -> bytes:
        return b"" if method == "Erase" else genuine(world, address, method, request)

    return call


def test_another_address_is_asked_when_one_is_down(client: Client, world: SimulatedRealm) -> None:
    world.down.add(ADDRESSES[0])
    assert isinstance(client.erase(USER, OWNER), Erased)
    world.down.update(ADDRESSES)
    with pytest.raises(Unreachable):
        client.erase(USER, OWNER)


# The command


@pytest.fixture
def shell(world: SimulatedRealm, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(world, empty_home, monkeypatch)
    assert shell("register", USER, "--key", "age=-", stdin=b"age1alice").exit == 0
    return shell


def test_the_command_erases_and_a_lookup_says_so(shell: Shell) -> None:
    run = shell("erase", USER, "--yes", "-o", "json")
    assert run.exit == 0
    assert (run.json["schema"], run.json["status"], run.json["user"]) == ("e2eks.erase/1", "erased", USER)
    found = shell("lookup", USER, "-o", "json")
    assert (found.exit, found.json["status"]) == (9, "erased")
    assert shell("erase", USER).exit == 0
    assert shell("update", USER, "--key", "age=-", stdin=b"age1new").exit == 0
    assert shell("lookup", USER, "--app", "age").stdout == "age1new\n"


def test_an_update_that_was_never_answered_is_forgotten_too(shell: Shell) -> None:
    shell.world.refusals["Update"] = Refused(Reason.NOT_READY, "said the test")
    assert shell("update", USER, "--key", "age=-", stdin=b"age1other").exit == 6
    del shell.world.refusals["Update"]
    assert shell("erase", USER, "--yes").exit == 0
    assert shell("identity", "list", "-o", "json").json["items"][0]["pending"] == 0


def test_the_command_needs_the_identity_and_says_why_it_was_refused(shell: Shell) -> None:
    assert shell("erase", NOBODY, "--yes").exit == 2
    shell.world.refusals["Erase"] = Refused(Reason.VERSION_MISMATCH, "said the test")
    run = shell("erase", USER, "--yes", "-o", "json")
    assert (run.exit, run.json["error"]) == (6, "VERSION_MISMATCH")
    shell.world.down.update(ADDRESSES)
    assert shell("erase", USER, "--yes").exit == 5


def test_help_says_what_stays(shell: Shell) -> None:
    run = shell("erase", "--help")
    assert "e2eks erase me@example.org" in run.stdout
    assert "backups" in run.stdout
