"""Registration proofs that a client makes, and the files it refuses to make them from."""

from pathlib import Path
from typing import Any

import pytest
from authorities import ALICE, ENTRY, NOW_MS, Leaf, key
from cryptography.hazmat.primitives.asymmetric import dsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from e2eks.v1 import client_pb2
from samples import REALM
from simulated_realm import SimulatedRealm
from simulated_realm.command import Shell

from verifier.client.admission import client_certificate_message, client_certificate_proof
from verifier.client.client import now_ms
from verifier.crypto import hashing
from verifier.errors import ConfigError


def pem(private: Any, encryption: Any = None) -> bytes:
    saved: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return saved


CHAIN = Leaf().issue().public_bytes(Encoding.PEM)
KEY = pem(key("p256"))


def test_a_proof_is_bound_to_realm_user_entry_and_time() -> None:
    assert client_certificate_message(REALM, ALICE, ENTRY, NOW_MS) == hashing.tagged(
        "e2eks/1/admission/client-certificate",
        REALM.name.encode(),
        ALICE.encode(),
        ENTRY,
        NOW_MS.to_bytes(8, "big"),
    )


@pytest.mark.parametrize(
    ("chain", "private"),
    [
        (b"", KEY),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", KEY),
        (CHAIN, b""),
        (CHAIN, CHAIN),
        (CHAIN, pem(key("p256", "somebody else"))),
        (CHAIN, pem(key("p256"), BestAvailableEncryption(b"passphrase"))),
        (CHAIN, pem(dsa.generate_private_key(1024))),
    ],
)
def test_files_that_cannot_prove_anything_are_refused_here(chain: bytes, private: bytes) -> None:
    with pytest.raises(ConfigError):
        client_certificate_proof(REALM, ALICE, ENTRY, chain_pem=chain, key_pem=private, time_ms=NOW_MS)


def test_a_registration_sends_the_proof_with_the_entry_it_is_for(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = SimulatedRealm(clock=now_ms)
    world.close()
    shell = Shell(world, empty_home, monkeypatch)
    files = ("--cert", shell.file("me.pem", CHAIN), "--cert-key", shell.file("me.key", KEY))
    assert shell("register", ALICE, "--key", "age=-", "--proof", "client-certificate", *files).exit == 0
    request = client_pb2.UpdateRequest.FromString(dict(world.requests)["Update"])
    proof = request.registration_proof.client_certificate
    assert len(proof.chain) == 1
    assert abs(proof.time_ms - now_ms()) < 3_600_000
    assert shell("register", "bob@example.test", "--key", "age=-", "--cert", "x").exit == 2
