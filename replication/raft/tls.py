"""Who is at the other end of a link between replicas: TLS 1.3, certificates of one authority on both sides.

A certificate of that authority speaks for the one DNS name that its subject alternative name holds: the
name of a member, never that of a host. Nothing else identifies anybody.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from replication.types import PeerTls, TlsFilesRefused

# Negotiated in the handshake: a certificate of the peers' authority opens other ports too, and a connection
# meant for one of those must not be taken for a link. A new wire format gets a new number beside the old.
PROTOCOL = "e2eks-raft/1"


class Stranger(Exception):
    """The other end is no member. Its text is a stable reason and names nobody."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """What this replica shows and believes, as the end that accepts and as the end that dials."""

    accepting: ssl.SSLContext
    dialing: ssl.SSLContext


def read_contexts(files: PeerTls) -> Contexts:
    """Read the PEM files now. Raises TlsFilesRefused when they cannot be read or do not fit together."""
    try:
        return Contexts(
            _context(files, ssl.PROTOCOL_TLS_SERVER),
            _context(files, ssl.PROTOCOL_TLS_CLIENT),
        )
    except (
        OSError,
        ssl.SSLError,
    ) as error:  # unreadable; no PEM, another key
        named = f"{files.certificate}, {files.key} and {files.authority}"
        raise TlsFilesRefused(f"the TLS files {named} do not make an identity: {error}") from None


def _context(files: PeerTls, protocol: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are those of members: member_at_the_other_end checks them
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=str(files.authority))
    context.load_cert_chain(str(files.certificate), str(files.key), password=_no_password)
    context.set_alpn_protocols([PROTOCOL])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would outlive the certificate that began it
    return context


def _no_password() -> str:
    """Answer OpenSSL in place of the terminal, which it would ask."""
    return ""


def member_at_the_other_end(
    certificate: Mapping[str, Any] | None, protocol: str | None, members: Collection[str]
) -> str:
    """Return the member that a verified certificate (SSLSocket.getpeercert) speaks for. Raises Stranger."""
    if protocol != PROTOCOL:
        raise Stranger("another protocol")
    names: tuple[tuple[str, str], ...] = certificate.get("subjectAltName", ()) if certificate else ()
    if len(names) != 1 or names[0][0] != "DNS":
        raise Stranger("a certificate of no member")
    name = names[0][1]
    if name not in members:
        raise Stranger("a certificate of no member")
    return name
