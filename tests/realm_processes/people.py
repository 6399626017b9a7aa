"""People of a realm: their signing keys, the certificates they register with, and the client library."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb

from keyserver.installation import certificates
from verifier import encoding
from verifier.client import drafts
from verifier.client.admission import client_certificate_proof
from verifier.client.client import Admission, Client
from verifier.client.drafts import Draft
from verifier.client.pins import MemoryPins
from verifier.client.transport import GrpcTransport
from verifier.crypto.signatures import SigningKey
from verifier.lookup import Present
from verifier.types import Entry, QuorumExpr, Realm

DAY = timedelta(days=1)
KEYS = {"ssh": b"ssh-ed25519 AAAA one\n", "age": b"age1one\n", "x509": bytes(range(256))}
OTHER_KEYS = {"ssh": b"ssh-ed25519 AAAA two\n"}
NUMBERS = itertools.count(1)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def connect(
    realm: Realm, *, quorum: QuorumExpr | None = None, pins: MemoryPins | None = None, timeout_s: float = 60.0
) -> tuple[Client, GrpcTransport]:
    """A client with a connection of its own, to be closed."""
    transport = GrpcTransport(realm.addresses, tls_roots_pem=realm.tls_roots_pem, timeout_s=timeout_s)
    return Client(realm, transport, pins or MemoryPins(), quorum=quorum), transport


@dataclass(frozen=True)
class Authority:
    """Certifies e-mail addresses."""

    certified: certificates.Certified = field(
        default_factory=lambda: certificates.make_authority("people", datetime.now(UTC))
    )

    @property
    def pem(self) -> bytes:
        return self.certified.certificate_pem()

    def certify(self, user_id: str) -> tuple[bytes, bytes]:
        """PEM certificate and private key for an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        issuer = self.certified.certificate
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a person")]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(user_id)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certified.key.public_key()),
                critical=False,
            )
            .sign(self.certified.key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private


@dataclass(frozen=True)
class Person:
    """Somebody with an address nobody else has, and one signing key."""

    realm: Realm = field(repr=False)
    authority: Authority = field(repr=False)
    user_id: str
    key: SigningKey
    pair: tuple[bytes, bytes] = field(repr=False)

    def admission(self, user_id: str = "") -> Admission:
        """Makes registration proofs with this person's certificate, for its own address or another."""

        def prove(entry: Entry) -> bytes:
            chain, key = self.pair
            return client_certificate_proof(
                self.realm,
                user_id or self.user_id,
                entry.hash,
                chain_pem=chain,
                key_pem=key,
                time_ms=now_ms(),
            )

        return prove


def new_person(realm: Realm, authority: Authority) -> Person:
    """The next person."""
    number = next(NUMBERS)
    user_id = f"person-{number}@{realm.domains[0]}"
    key = SigningKey(number.to_bytes(32, "big"))
    return Person(realm, authority, user_id, key, authority.certify(user_id))


def update_request(
    draft: Draft, proof: bytes = b"", quorum: QuorumExpr | None = None
) -> client_pb2.UpdateRequest:
    """The request that sends `draft`, for a test to spoil."""
    request = client_pb2.UpdateRequest(
        update=pb.SignedEntryUpdate.FromString(draft.update.encoded),
        profile=draft.profile,
        profile_nonce=draft.nonce,
        lookup_parameters=client_pb2.LookupRequest(user_id=draft.user_id),
    )
    if quorum is not None:
        request.lookup_parameters.quorum_requirement.CopyFrom(encoding.quorum_message(quorum))
    if proof:
        request.registration_proof.MergeFromString(proof)
    return request


def register(client: Client, person: Person) -> Present:
    """The person's first entry with KEYS, accepted and proven."""
    result = client.register(person.user_id, KEYS, [person.key], admission=person.admission())
    assert isinstance(result, Present)
    return result


def registration(client: Client, person: Person) -> tuple[Draft, bytes]:
    """The person's first entry with KEYS and its proof, not sent."""
    draft = client.draft_registration(person.user_id, KEYS, [person.key])
    return draft, person.admission()(draft.update.entry)


def version_0(client: Client, person: Person, realm: Realm) -> tuple[Draft, bytes]:
    """A first entry with OTHER_KEYS signed for `realm`, whatever is registered; and its proof."""
    draft = drafts.registration(
        realm,
        person.user_id,
        client.lookup(person.user_id).proof.index,
        OTHER_KEYS,
        [person.key],
        policy=drafts.any_of([person.key.public_key]),
        revoked=None,
        randomness=secrets.token_bytes,
    )
    return draft, person.admission()(draft.update.entry)


def all_of(*key_ids: bytes) -> QuorumExpr:
    """The quorum that needs each of the keys."""
    return QuorumExpr(threshold=len(key_ids), candidates=key_ids)
