"""A realm with real keys, all made from one seed."""

import hashlib
from dataclasses import dataclass

from e2eks.v1 import types_pb2 as pb

from verifier import encoding, policy, realm
from verifier.crypto import hashing, signatures
from verifier.types import Realm


def key_seed(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


@dataclass(frozen=True)
class Party:
    """A replica, a verifier or a user: one Ed25519 key."""

    name: str
    secret: bytes

    @property
    def public_key(self) -> bytes:
        return signatures.public_key(self.secret)

    @property
    def key_id(self) -> bytes:
        return hashing.key_id(self.public_key)

    def sign(self, message: bytes) -> pb.Signature:
        return pb.Signature(key_id=self.key_id, signature=signatures.sign(self.secret, message))


def party(seed: int, name: str) -> Party:
    return Party(name, key_seed(seed, name))


def make_realm(
    replicas: list[Party],
    verifiers: list[Party] | None = None,
    *,
    addresses: dict[str, str] | None = None,
    tls_roots_pem: tuple[str, ...] = (),
    name: str = "example.org",
) -> Realm:
    """A realm whose replicas and verifiers are the given parties; `addresses` by verifier name."""
    listed = verifiers or []
    replica_ids, verifier_ids = [r.key_id for r in replicas], [v.key_id for v in listed]
    keys = [p.public_key for p in (*replicas, *listed)]
    genesis = encoding.make_policy([r.public_key for r in replicas], policy.majority(replica_ids))
    quorum = policy.default_quorum(replica_ids, verifier_ids)
    message = pb.RealmConfig(
        realm=name,
        domains=["example.org"],
        addresses=["127.0.0.1:4625"],
        vrf_public_key=party(0, "vrf").public_key,
        verification_policy=encoding.policy_message(encoding.make_policy(keys, quorum)),
        epoch_ttl_ms=180_000,
        suite=1,
        tls_roots_pem=tls_roots_pem,
        genesis_policy=encoding.policy_message(genesis),
        verifiers=[
            pb.VerifierInfo(
                name=v.name,
                public_key=pb.PublicKey(ed25519=v.public_key),
                address=(addresses or {}).get(v.name, ""),
            )
            for v in listed
        ],
    )
    return realm.realm_from(message)
