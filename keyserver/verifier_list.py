"""The verifiers a replica knows beyond realm.json: who may push, by the exact certificate a connection shows.

A verifier's operator hands over a verifier info file; `keyserver realm add-verifier` copies it into
realm.json and into verifiers.json, which stands beside the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keyserver.undecodable import UNDECODABLE
from verifier import limits
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError
from verifier.files import read_file

INFO_SCHEMA = "e2eks.verifier-info/1"
INFO_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class VerifierCertificate:
    """A verifier that may push: its key, and the one certificate its connections show."""

    name: str
    public_key: bytes
    key_id: bytes
    tls_certificate_pem: str


@dataclass(frozen=True, slots=True)
class VerifierInfo:
    """What a verifier's operator hands over.

    `address` is host:port of its RatifiedHeads service, or empty.
    """

    certificate: VerifierCertificate
    address: str


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    public_key: str
    tls_certificate_pem: str


class _Info(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    name: str
    public_key: str
    address: str
    tls_certificate_pem: str


def read_verifier_certificates(path: Path) -> tuple[VerifierCertificate, ...]:
    """The verifiers in a verifiers.json: a list of name, public_key (hex), tls_certificate_pem.

    Raises ConfigError, also where two verifiers share a key or a certificate.
    """
    data = read_file(path, limits.REALM_JSON_BYTES, "verifiers file")
    try:
        rows = msgspec.json.decode(data, type=list[_Row])
        found = tuple(_certificate(row.name, row.public_key, row.tls_certificate_pem) for row in rows)
    except (msgspec.MsgspecError, *UNDECODABLE) as error:
        raise ConfigError(
            f"{path} is not a list of verifiers: {error}. `keyserver realm add-verifier` writes it"
        ) from None
    certificates = {certificate_der(row.tls_certificate_pem) for row in found}
    if len({row.key_id for row in found}) != len(found) or len(certificates) != len(found):
        raise ConfigError(f"{path} lists a key or a certificate twice")
    return found


def encode_verifier_certificates(verifiers: Sequence[VerifierCertificate]) -> bytes:
    """The bytes of a verifiers.json."""
    rows = [_Row(v.name, v.public_key.hex(), v.tls_certificate_pem) for v in verifiers]
    return msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n"


def read_verifier_info(path: Path) -> VerifierInfo:
    """A verifier info file (JSON, schema "e2eks.verifier-info/1"). Raises ConfigError."""
    data = read_file(path, INFO_BYTES, "verifier info file")
    try:
        info = msgspec.json.decode(data, type=_Info)
        certificate = _certificate(info.name, info.public_key, info.tls_certificate_pem)
    except (msgspec.MsgspecError, *UNDECODABLE) as error:
        raise ConfigError(
            f"{path} is not a verifier info file: {error}. Give the one that `verifier init` made"
        ) from None
    if info.schema != INFO_SCHEMA:
        raise ConfigError(f"{path}: this version reads schema {INFO_SCHEMA} only, not {info.schema!r}")
    return VerifierInfo(certificate, info.address)


def certificate_der(pem: str) -> bytes:
    """The exact bytes of the certificate in `pem`, to compare with what a connection shows.

    Raises ValueError.
    """
    return x509.load_pem_x509_certificate(pem.encode("ascii")).public_bytes(Encoding.DER)


def _certificate(name: str, public_key_hex: str, pem: str) -> VerifierCertificate:
    """Checked, with the certificate in one form of PEM. Raises what is UNDECODABLE."""
    public_key = bytes.fromhex(public_key_hex)
    if not signatures.is_valid_public_key(public_key):
        raise ValueError(f"the public key of {name} is not an Ed25519 key")
    found = x509.load_pem_x509_certificates(pem.encode("ascii"))
    if len(found) != 1:
        raise ValueError(f"{name} has {len(found)} TLS certificates, not one")
    # It becomes a TLS root of the realm: as an authority it could vouch for any host.
    if _is_authority(found[0]):
        raise ValueError(f"the TLS certificate of {name} is a certificate authority's")
    text = found[0].public_bytes(Encoding.PEM).decode("ascii")
    return VerifierCertificate(name, public_key, hashing.key_id(public_key), text)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.version is x509.Version.v1
