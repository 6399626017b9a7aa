"""Certificates for links between replicas, in files: members', and those a stranger might try."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from keyserver.installation.certificates import Certified, issue_peer, issue_replica, make_peers_authority
from replication.types import PeerTls

REALM = "example.org"
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class PeersAuthority:
    """An authority in a folder of its own, and the files of whom it certifies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._made = make_peers_authority(REALM, datetime.now(UTC))
        (folder / "ca.pem").write_bytes(self._made.certificate_pem())

    @property
    def path(self) -> Path:
        """Its certificate: what a member believes."""
        return self._folder / "ca.pem"

    def member(self, name: str) -> PeerTls:
        """The files of the member of that name, new with each call."""
        return self._files(name, issue_peer(self._made, name, datetime.now(UTC)))

    def expired(self, name: str) -> PeerTls:
        """The files of a member whose certificate ended."""
        return self._files(f"{name}-expired", issue_peer(self._made, name, LONG_AGO))

    def server_only(self, name: str) -> PeerTls:
        """A certificate that may not be shown by who dials."""
        return self._files(f"{name}-server", issue_replica(self._made, name, [name], datetime.now(UTC)))

    def itself(self) -> PeerTls:
        """The authority's own certificate and key."""
        return self._files("authority", self._made)

    def _files(self, name: str, certified: Certified) -> PeerTls:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(certified.certificate_pem())
        key.write_bytes(certified.key_pem())
        return PeerTls(certificate, key, self.path)


def believing(files: PeerTls, authority: PeersAuthority) -> PeerTls:
    """What `files` show, by somebody who believes `authority`."""
    return replace(files, authority=authority.path)
