"""What operators hold in tests: a realm set up in a folder, verifiers with their info files."""

import datetime as dt
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keyserver.cli import commands
from keyserver.installation import certificates, setup
from verifier.crypto import hashing, signatures

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
REALM = "example.org"


def set_up(folder: Path, **changes: object) -> setup.SetUp:
    """A realm of one replica on this machine."""
    return setup.init(folder, setup.Plan(**{"realm": REALM, **changes}), NOW)  # type: ignore[arg-type]


@dataclass(frozen=True)
class VerifierFile:
    """A verifier as its operator hands it over."""

    path: Path
    name: str
    public_key: bytes
    key_id: bytes
    tls_certificate_pem: str


@cache
def certificate_pem(name: str, *, authority: bool = False) -> str:
    """A self-signed certificate, the same for a name within one run."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


# Bytes of a certificate, and what makes it one that no library takes: each fails in another way.
STRANGE = {
    "version": (bytes.fromhex("a003020102"), bytes.fromhex("a003020107")),
    "an extension twice": (bytes.fromhex("551d0e"), bytes.fromhex("551d23")),
    "kind of key": (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106")),
}


def strange_pem(what: str) -> str:
    """A certificate of a strange kind, a key of STRANGE."""
    authority = certificates.make_authority(REALM, NOW)
    der = certificates.issue_replica(authority, "strange", ["localhost"], NOW).certificate.public_bytes(
        Encoding.DER
    )
    old, new = STRANGE[what]
    assert old in der
    return ssl.DER_cert_to_PEM_cert(der.replace(old, new))


def verifier_file(folder: Path, key_of: str, **changes: str) -> VerifierFile:
    """The info file of the verifier whose key is made from `key_of`, which is also its name."""
    public_key = signatures.public_key(sha256(key_of.encode()).digest())
    info = {
        "schema": "e2eks.verifier-info/1",
        "name": key_of,
        "public_key": public_key.hex(),
        "address": f"{key_of}.example.net:4630",
        "tls_certificate_pem": certificate_pem(key_of),
    } | changes
    path = folder / f"{key_of}.json"
    path.write_text(json.dumps(info))
    return VerifierFile(
        path, info["name"], public_key, hashing.key_id(public_key), info["tls_certificate_pem"]
    )


@dataclass
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Keyserver = Callable[..., Ended]


def keyserver_command(capsys: pytest.CaptureFixture[str]) -> Keyserver:
    """The command `keyserver`, run in this process."""

    def run(*arguments: object) -> Ended:
        code = commands.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(code, captured.out, captured.err)

    return run
