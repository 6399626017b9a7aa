"""What `verifier init` makes: key, TLS certificate, sign-once register, configuration, and the info to hand
over.

DIR/verifier.toml realm.json verifier.key tls.pem tls.key sign-once.register verifier-info.json; nothing
that exists is overwritten. The register names the key; it is made here and never again, so that a lost one
is noticed.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kv.interface import StorageError
from verifier.config_file import read_realm, split_address
from verifier.crypto import hashing, signatures
from verifier.daemon.config import PUSH_PORT, VERIFICATION_PORT
from verifier.errors import ConfigError
from verifier.files import SECRET_MODE, write_new
from verifier.realm import realm_json
from verifier.signonce import SignOnceRegister
from verifier.types import Realm

INFO_SCHEMA = "e2eks.verifier-info/1"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}", re.ASCII)
CERTIFICATE_DAYS = 3650  # the certificate stands in the realm file itself; a new one means a new realm file
BACKDATED = timedelta(hours=1)  # for clocks that are behind


@dataclass(frozen=True, slots=True)
class Plan:
    """`address` is where peers and clients reach RatifiedHeads; empty keyserver addresses follow from the
    realm's."""

    name: str
    address: str
    listen: str = ""
    verification: tuple[str, ...] = ()
    push: tuple[str, ...] = ()


def init(folder: Path, realm_file: Path, plan: Plan, now: datetime) -> str:
    """Set up a verifier in a folder that is empty or not there; its verifier info (JSON). Raises
    ConfigError.
    """
    realm = read_realm(realm_file)[0]
    if not NAME.fullmatch(plan.name):
        raise ConfigError(f"{plan.name!r} is not a verifier's name: use a-z, 0-9, - and ., at most 63")
    host, port = split_address(plan.address, "--address")
    listen = plan.listen or f"{host if _is_ip(host) and ':' not in host else '[::]'}:{port}"
    split_address(listen, "--listen")
    verification = plan.verification or _at_port(realm, VERIFICATION_PORT)
    push = plan.push or _at_port(realm, PUSH_PORT)
    for address in (*verification, *push):
        split_address(address, "keyserver address")

    _make_folder(folder)
    seed = secrets.token_bytes(signatures.SEED_BYTES)
    public_key = signatures.public_key(seed)
    certificate, key = make_certificate(plan.name, host, now)
    text = info_text(plan.name, public_key, plan.address, certificate)
    write_new(folder / "verifier.key", seed.hex().encode() + b"\n", SECRET_MODE)
    write_new(folder / "tls.key", key, SECRET_MODE)
    write_new(folder / "tls.pem", certificate)
    write_new(folder / "realm.json", realm_json(realm))
    try:
        SignOnceRegister.create(folder / "sign-once.register", key_id=hashing.key_id(public_key)).close()
    except StorageError as error:
        raise ConfigError(str(error)) from None
    write_new(folder / "verifier-info.json", text.encode())
    write_new(folder / "verifier.toml", _toml(plan.name, listen, verification, push).encode())
    return text


def info_text(name: str, public_key: bytes, address: str, certificate: bytes) -> str:
    """The verifier info (JSON) that a realm's operator adds; `certificate` is PEM."""
    info = {
        "schema": INFO_SCHEMA,
        "name": name,
        "public_key": public_key.hex(),
        "address": address,
        "tls_certificate_pem": certificate.decode("ascii"),
    }
    return json.dumps(info, indent=2, sort_keys=True) + "\n"


def _at_port(realm: Realm, port: int) -> tuple[str, ...]:
    if not realm.addresses:
        raise ConfigError("the realm file names no address; give --verification-address and --push-address")
    return tuple(dict.fromkeys(f"{address.rpartition(':')[0]}:{port}" for address in realm.addresses))


def _make_folder(folder: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = f"{folder} exists and is not an empty folder. Nothing was changed; name another"
            raise ConfigError(what)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from None


def _toml(name: str, listen: str, verification: tuple[str, ...], push: tuple[str, ...]) -> str:
    """The configuration file. JSON strings and lists are TOML strings and lists."""
    return f"""schema = 1
name = {json.dumps(name)}
realm = "realm.json"                        # replace it by the realm's newest; the realm itself cannot change
key = "verifier.key"
sign_once_register = "sign-once.register"   # NEVER copy, restore or back it up: lost means a new key
data = "data"
evidence = "evidence"
status = "status.json"
listen = {json.dumps(listen)}               # RatifiedHeads, for other verifiers and clients

[keyserver]
verification = {json.dumps(list(verification))}
push = {json.dumps(list(push))}

[tls]
certificate = "tls.pem"
key = "tls.key"
"""


def make_certificate(name: str, host: str, now: datetime) -> tuple[bytes, bytes]:
    """A self-signed P-256 certificate for `host` and its key, both PEM; for TLS servers and clients.

    P-256 because the TLS library inside gRPC accepts no Ed25519 certificates.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"e2eks verifier {name}"[:64])])
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    usage |= dict.fromkeys(("encipher_only", "decipher_only", "key_cert_sign"), False)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    reached: x509.GeneralName
    reached = x509.IPAddress(ipaddress.ip_address(host)) if _is_ip(host) else x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([reached]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), pem


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
