"""This replica's TLS files: read and checked together, read again when told, and how long they are good for.

New files take effect with the next connection; those that stand keep what they began with. Files that do
not fit together change nothing: what was read before stays in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from keyserver.config import Config
from keyserver.peer_certificates import LinkFiles, read_peer_files
from keyserver.undecodable import UNDECODABLE
from keyserver.verifier_list import VerifierCertificate
from verifier.errors import ConfigError
from verifier.files import check_private, read_file

PEM_BYTES = 256 * 1024
DAY_MS = 24 * 3_600_000
WARN_DAYS = 30  # time to renew while people are at work
OWN = "replica"  # the holder under which the replica's own certificate is shown
LINKS = "links to peers"  # and the first of those on links between replicas to end


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """This replica's PEM certificate chain and key, and when the chain ends (Unix milliseconds)."""

    certificate: bytes
    key: bytes
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything a listener shows and believes."""

    own: TlsFiles
    pushers: tuple[VerifierCertificate, ...]
    links: LinkFiles | None = None  # None: no cluster

    def not_after_ms(self) -> dict[str, int]:
        """When each certificate ends, by holder: the replica, and each verifier that may push."""
        ends = {
            verifier.name: chain_end_ms(verifier.tls_certificate_pem.encode()) for verifier in self.pushers
        }
        links = {LINKS: self.links.not_after_ms} if self.links else {}
        return {OWN: self.own.not_after_ms, **links, **ends}


def read_credentials(config: Config) -> Credentials:
    """What the configuration's files hold now. Raises ConfigError, which says what does not fit."""
    check_private(config.tls.key)
    certificate = read_file(config.tls.certificate, PEM_BYTES, "TLS certificate")
    key = read_file(config.tls.key, PEM_BYTES, "TLS key")
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        certified = chain[0].public_key()
    except UNDECODABLE:
        raise ConfigError(
            f"the TLS certificate {config.tls.certificate} is not PEM, or of a kind that is not known. Put "
            "the replica's chain there"
        ) from None
    try:
        public = load_pem_private_key(key, None).public_key()
    except UNDECODABLE:
        raise ConfigError(
            f"the TLS key {config.tls.key} is not an unencrypted PEM key. Put the certificate's key there"
        ) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certified.public_bytes(*form) != public.public_bytes(*form):
        raise ConfigError(
            f"the TLS certificate {config.tls.certificate} is for another key than {config.tls.key}. "
            "Replace both together"
        )
    links = read_peer_files(config.cluster.tls, config.replica_name) if config.cluster else None
    return Credentials(TlsFiles(certificate, key, _end_ms(chain)), config.verifier_certificates(), links)


def chain_end_ms(pem: bytes) -> int:
    """When the first certificate of a PEM chain to end does (Unix milliseconds). Raises ValueError."""
    return _end_ms(x509.load_pem_x509_certificates(pem))


def _end_ms(chain: Iterable[x509.Certificate]) -> int:
    return min(round(one.not_valid_after_utc.timestamp() * 1000) for one in chain)


def expiring(ends_ms: dict[str, int], now_ms: int) -> list[str]:
    """One sentence for each certificate that ends within WARN_DAYS, or has ended."""
    said = []
    for holder, end_ms in sorted(ends_ms.items()):
        days = (end_ms - now_ms) // DAY_MS
        if days >= WARN_DAYS:
            continue
        when = f"ends in {days} days" if end_ms > now_ms else f"ended {-days} days ago"
        said.append(f"the TLS certificate of {holder} {when}. Renew it, then send SIGHUP")
    return said
