"""Sample values of the protocol with real keys made from names: every run and every machine has the same."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from verifier import encoding, policy
from verifier import epoch as epoch_law
from verifier import realm as realms
from verifier.crypto import commitment, hashing, signatures, vrf
from verifier.types import (
    AuthorizationPolicy,
    Entry,
    QuorumExpr,
    Ratification,
    Realm,
    Signature,
    SignedHead,
    SignedUpdate,
    Verifier,
)
from verifier.update import update_message

START_MS = 1_700_000_000_000
TTL_MS = 300_000


@dataclass(frozen=True)
class Key:
    seed: bytes
    public: bytes
    id: bytes

    def sign(self, message: bytes) -> Signature:
        return Signature(key_id=self.id, signature=signatures.sign(self.seed, message))


def key(name: str) -> Key:
    seed = sha256(name.encode()).digest()
    public = signatures.public_key(seed)
    return Key(seed=seed, public=public, id=hashing.key_id(public))


def any_of(*keys: Key) -> AuthorizationPolicy:
    return encoding.make_policy(
        [k.public for k in keys], QuorumExpr(threshold=1, candidates=tuple(k.id for k in keys))
    )


def majority_of(*keys: Key) -> AuthorizationPolicy:
    return encoding.make_policy([k.public for k in keys], policy.majority([k.id for k in keys]))


REPLICAS = tuple(key(f"replica-{n}") for n in range(3))
VERIFIERS = tuple(key(f"verifier-{n}") for n in range(3))
VRF_KEY = vrf.VrfKey(sha256(b"vrf").digest())
ALICE, BOB, EVE = key("alice"), key("bob"), key("eve")


def make_realm(
    replicas: tuple[Key, ...] = REPLICAS,
    verifiers: tuple[Key, ...] = VERIFIERS,
    name: str = "example.test",
) -> Realm:
    genesis = majority_of(*replicas)
    quorum = policy.default_quorum([k.id for k in replicas], [k.id for k in verifiers])
    verification = encoding.make_policy([k.public for k in (*replicas, *verifiers)], quorum)
    return Realm(
        name=name,
        domains=("example.test",),
        addresses=("127.0.0.1:4625",),
        vrf_public_key=VRF_KEY.public_key,
        verification_policy=verification,
        epoch_ttl_ms=TTL_MS,
        suite=1,
        tls_roots_pem=(),
        genesis_policy=genesis,
        verifiers=tuple(
            Verifier(name=f"v{n}", public_key=k.public, key_id=k.id, address="")
            for n, k in enumerate(verifiers)
        ),
        hash=realms.realm_hash(name, 1, VRF_KEY.public_key, genesis),
    )


REALM = make_realm()


def index_of(user_id: str, realm: Realm = REALM) -> tuple[bytes, bytes]:
    """Index and index proof of a user id."""
    proof = vrf.prove(VRF_KEY, realms.user_id_alpha(realm.name, user_id))
    return vrf.index(vrf.proof_to_hash(proof)), proof


def nonce_of(user_id: str, version: int) -> bytes:
    return sha256(f"nonce {user_id} {version}".encode()).digest()


def make_entry(
    user_id: str,
    version: int = 0,
    *,
    owner: Key = ALICE,
    profile: bytes = b"",
    previous: Entry | None = None,
    **changes: object,
) -> Entry:
    index, _ = index_of(user_id)
    fields: dict[str, object] = {
        "index": index,
        "version": version,
        "update_policy": any_of(owner),
        "profile_commitment": commitment.commit(nonce_of(user_id, version), index, version, profile),
        "previous_entry_hash": previous.hash if previous else b"",
    }
    return encoding.decode_entry(encoding.encode_entry(**{**fields, **changes}))  # type: ignore[arg-type]


def make_revocation(user_id: str, version: int, **changes: object) -> Entry:
    fields: dict[str, object] = {"update_policy": None, "profile_commitment": b"", "revocation": True}
    return make_entry(user_id, version, **{**fields, **changes})  # type: ignore[arg-type]


def sign_entry(entry: Entry, *keys: Key, realm: Realm = REALM) -> SignedUpdate:
    message = update_message(realm.hash, entry.encoded)
    return encoding.decode_update(encoding.encode_update(entry.encoded, [k.sign(message) for k in keys]))


def sign_head(
    head: bytes,
    replicas: tuple[Key, ...] = REPLICAS,
    verifiers: tuple[Key, ...] = VERIFIERS,
    *,
    verifier_time_ms: int | None = None,
) -> SignedHead:
    """The head with signatures of the given keys; verifiers sign one second after the issue time."""
    issued = encoding.decode_head(head).issue_time_ms
    seen = issued + 1000 if verifier_time_ms is None else verifier_time_ms
    ratifications = []
    if replicas:
        message = epoch_law.replica_message(head, issued)
        ratifications.append(Ratification(issued, tuple(k.sign(message) for k in replicas)))
    message = epoch_law.verifier_message(head, seen)
    ratifications += [Ratification(seen, (k.sign(message),)) for k in verifiers]
    return encoding.decode_signed_head(encoding.encode_signed_head(head, ratifications))
