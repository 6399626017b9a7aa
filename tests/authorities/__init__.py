"""Certificates for mail addresses, and registration proofs made with them. All times are relative to NOW."""

import datetime as dt
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from e2eks.v1 import client_pb2 as pb
from samples import REALM

from keyserver.admission.client_certificate import proof_message

DOMAIN = REALM.domains[0]
ALICE = f"alice@{DOMAIN}"
ENTRY = b"e" * 32
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY = dt.timedelta(days=1)

Key = Any


@cache
def key(kind: str, name: str = "alice") -> Key:
    """One key for a kind and name within one run: RSA keys are dear."""
    del name
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True)
class Leaf:
    """A certificate to be issued; each test changes what it is about."""

    kind: str = "p256"
    issuer: str = "ca"
    addresses: tuple[str, ...] = (ALICE,)
    usage: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    start: dt.timedelta = -DAY
    end: dt.timedelta = DAY
    unknown_critical: bool = False
    dns: str = ""

    def issue(self) -> x509.Certificate:
        names: list[x509.GeneralName] = [x509.RFC822Name(address) for address in self.addresses]
        names += [x509.DNSName(self.dns)] if self.dns else []
        builder = base(common_name("Alice"), self.issuer, key(self.kind).public_key(), self.start, self.end)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if self.usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.usage), critical=False)
        if self.unknown_critical:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, b"\x05\x00"), critical=True)
        return builder.sign(key("p256", self.issuer), hashes.SHA256())


def base(
    subject: x509.Name, issuer: str, public: Key, start: dt.timedelta = -DAY, end: dt.timedelta = DAY
) -> x509.CertificateBuilder:
    above = key("p256", issuer).public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(common_name(issuer))
        .public_key(public)
        .serial_number(77)
        .not_valid_before(NOW + start)
        .not_valid_after(NOW + end)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
    )


@cache
def authority(name: str, issuer: str = "", *, is_ca: bool = True) -> x509.Certificate:
    public = key("p256", name).public_key()
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        base(common_name(name), issuer or name, public)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key("p256", issuer or name), hashes.SHA256())
    )


def sign(kind: str, message: bytes) -> bytes:
    match kind:
        case "ed25519":
            return bytes(key(kind).sign(message))
        case "p256" | "p384":
            return bytes(key(kind).sign(message, ec.ECDSA(hashes.SHA256())))
        case _:
            return bytes(key(kind).sign(message, padding.PKCS1v15(), hashes.SHA256()))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def prove(
    leaf: Leaf = Leaf(),
    *,
    time_ms: int = NOW_MS,
    user_id: str = ALICE,
    entry_hash: bytes = ENTRY,
    realm: str = REALM.name,
    chain: tuple[bytes, ...] | None = None,
) -> pb.RegistrationProof:
    signature = sign(leaf.kind, proof_message(realm, user_id, entry_hash, time_ms))
    shown = (der(leaf.issue()),) if chain is None else chain
    made = pb.ClientCertificateProof(chain=shown, time_ms=time_ms, signature=signature)
    return pb.RegistrationProof(client_certificate=made)
