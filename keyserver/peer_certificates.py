"""What replicas show each other on their links: read, checked, and whom a certificate stands for.

A certificate of the peers' authority stands for the one DNS name in it, which is a member's. Where that
member runs, its certificate does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from keyserver.undecodable import UNDECODABLE
from replication.types import PeerTls
from verifier.errors import ConfigError
from verifier.files import check_private, read_file

PEM_BYTES = 64 * 1024
CERTIFICATES_REMEMBERED = 64  # every call shows one; those of members, before and after a renewal
_KEY_FORM = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class LinkFiles:
    """PEM contents of three files, and when the first of their certificates ends (Unix milliseconds)."""

    certificate: bytes
    key: bytes
    authority: bytes
    not_after_ms: int


def read_tls_files(tls: PeerTls) -> LinkFiles:
    """The files, which must fit together. Raises ConfigError."""
    check_private(tls.key)
    certificate = read_file(tls.certificate, PEM_BYTES, "TLS certificate")
    key = read_file(tls.key, PEM_BYTES, "TLS key")
    authority = read_file(tls.authority, PEM_BYTES, "certificate authority")
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        roots = x509.load_pem_x509_certificates(authority)
        certified = chain[0].public_key()
        public = load_pem_private_key(key, None).public_key()
    except UNDECODABLE:
        raise ConfigError(
            f"{tls.certificate}, {tls.key}, {tls.authority}: not a PEM certificate, its unencrypted key "
            "and an authority. Put the files there that belong to this replica"
        ) from None
    if certified.public_bytes(*_KEY_FORM) != public.public_bytes(*_KEY_FORM):
        raise ConfigError(f"{tls.certificate} is for another key than {tls.key}. Replace both together")
    ends = [round(one.not_valid_after_utc.timestamp() * 1000) for one in (*chain, *roots)]
    return LinkFiles(certificate, key, authority, min(ends))


def read_peer_files(tls: PeerTls, own: str) -> LinkFiles:
    """The files of a member's links: its certificate names it and comes from the authority beside it.

    Raises ConfigError.
    """
    files = read_tls_files(tls)
    name = name_in(files.certificate)
    if name != own:
        found = f"names {name}" if name else "names no one member"
        raise ConfigError(
            f"{tls.certificate} {found}, but this replica is {own}. Put its own certificate there"
        )
    leaf = x509.load_pem_x509_certificate(files.certificate)
    roots = x509.load_pem_x509_certificates(files.authority)
    if not any(_issued(leaf, root) for root in roots):  # two while one authority follows another
        raise ConfigError(
            f"{tls.certificate} was not issued by {tls.authority}: no other replica would believe it. All "
            "replicas of a realm need certificates of one authority"
        )
    return files


def _issued(leaf: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(root)
    except (InvalidSignature, *UNDECODABLE):
        return False
    return True


@lru_cache(CERTIFICATES_REMEMBERED)
def name_in(pem: bytes) -> str:
    """The member that the first certificate stands for, or "" if it names none or several."""
    try:
        leaf = x509.load_pem_x509_certificate(pem)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNDECODABLE:
        return ""
    found = names.get_values_for_type(x509.DNSName)
    return found[0] if len(found) == len(list(names)) == 1 else ""
