"""The realm's own certificate authorities and the TLS certificates of its replicas (RFC 5280, ECDSA P-256).

Two authorities: the realm's, which clients believe, for what a replica shows the world by its host; and the
peers', which replicas alone believe, for what they show each other by their name.

P-256 because the TLS library inside gRPC accepts no Ed25519 certificates. These keys protect connections
only; what a realm says is proven by its signatures, whoever carries it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
REPLICA_DAYS = 825  # the longest that common TLS clients accept
BACKDATED = timedelta(hours=1)  # for clocks that are behind
COMMON_NAME_CHARACTERS = 64  # RFC 5280, ub-common-name
_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        """The secret key, unencrypted PKCS #8: for a private file only."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_authority(realm: str, now: datetime) -> Certified:
    """A new self-signed authority for what clients see; it may issue end certificates only."""
    return _authority(f"e2eks realm {realm}", now)


def make_peers_authority(realm: str, now: datetime) -> Certified:
    """A new self-signed authority for links between replicas; it may issue end certificates only."""
    return _authority(f"e2eks peers of {realm}", now)


def _authority(title: str, now: datetime) -> Certified:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(title)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
    )
    return Certified(builder.sign(key, hashes.SHA256()), key)


def issue_replica(authority: Certified, name: str, hosts: Sequence[str], now: datetime) -> Certified:
    """A replica's certificate for `hosts`: DNS names and IP addresses, in the subject alternative name."""
    return _issue(authority, name, [_general_name(host) for host in hosts], (_SERVER,), now)


def issue_peer(authority: Certified, name: str, now: datetime) -> Certified:
    """What a replica shows other replicas, at both ends of a link: its name, wherever it runs."""
    return _issue(authority, name, [x509.DNSName(name)], (_SERVER, _CLIENT), now)


def load_authority(certificate_pem: bytes, key_pem: bytes) -> Certified:
    """An authority from its files. Raises ValueError if they are not one."""
    key = load_pem_private_key(key_pem, None)
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise ValueError("the certificate is for another key")
    return Certified(certificate, key)


def _issue(
    authority: Certified,
    name: str,
    names: Sequence[x509.GeneralName],
    purposes: Sequence[x509.ObjectIdentifier],
    now: datetime,
) -> Certified:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    above = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(name), issuer.subject, key.public_key(), now, REPLICA_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False)
    )
    return Certified(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:COMMON_NAME_CHARACTERS])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
