"""The examples in the client's documentation do what they say."""

import doctest
from pathlib import Path

from simulated_realm import SimulatedRealm

import verifier.client.client
from verifier.client.client import Client
from verifier.client.pins import MemoryPins
from verifier.crypto.signatures import SigningKey
from verifier.lookup import Absent, Erased, Present, Revoked

ROOM = Path(verifier.client.client.__file__).parent


def names() -> dict[str, object]:
    world = SimulatedRealm()
    world.put("alice@example.test", {"ssh": b"ssh-ed25519 AAAA alice"})
    world.close()
    client = Client(world.realm, world, MemoryPins(), clock=world.now_ms)
    known = (Absent, Client, Erased, MemoryPins, Present, Revoked, SigningKey)
    return {kind.__name__: kind for kind in known} | {
        "realm": world.realm,
        "transport": world,
        "clock": world.now_ms,
        "client": client,
    }


def test_the_docstrings_of_the_client() -> None:
    result = doctest.testmod(verifier.client.client, extraglobs=names())
    assert result.attempted >= 3
    assert result.failed == 0


def test_the_readme_of_the_room() -> None:
    result = doctest.testfile(str(ROOM / "README.md"), module_relative=False, globs=names())
    assert result.attempted >= 8
    assert result.failed == 0
