"""A client of a simulated realm in which alice and bob have keys, and answers altered on the way."""

from collections.abc import Callable

from e2eks.v1 import client_pb2
from samples import BOB, REALM

from simulated_realm import ANSWER_DELAY_MS, SimulatedRealm
from verifier import encoding
from verifier.client.client import Client
from verifier.client.pins import MemoryPins
from verifier.types import Realm

USER, OTHER, NOBODY = "alice@example.test", "bob@example.test", "nobody@example.test"
KEYS = {"ssh": b"ssh-ed25519 AAAA alice"}
LIMIT_MS = REALM.epoch_ttl_ms - ANSWER_DELAY_MS


def three_epochs_of_alice() -> SimulatedRealm:
    """Three epochs in which alice has keys and nobody else is there."""
    world = SimulatedRealm()
    world.put(USER, KEYS)
    for _ in range(3):
        world.close()
    return world


def three_epochs(realm: Realm = REALM) -> SimulatedRealm:
    """Three epochs: alice with keys since the first, bob since the second."""
    world = SimulatedRealm(realm)
    world.put(USER, KEYS)
    world.close()
    world.put(OTHER, {"age": b"age1"}, BOB)
    world.close()
    world.close()
    return world


def client_of(world: SimulatedRealm, pins: MemoryPins | None = None, **options: object) -> Client:
    return Client(world.realm, world, pins or MemoryPins(), clock=world.now_ms, **options)  # type: ignore[arg-type]


def altered(change: Callable[[client_pb2.LookupProof], None]) -> Callable[[bytes], bytes]:
    def rewrite(raw: bytes) -> bytes:
        proof = client_pb2.LookupProof.FromString(raw)
        change(proof)
        return encoding.canonical(proof)

    return rewrite
