"""The folder of one replica: keys of its own, the realm's VRF key, certificates, and a configuration.

keyserver.toml  head.key  vrf.key  tls.pem  tls.key  verifiers.json  sign-once.register, and in a cluster
tls/peer.pem  tls/peer.key  tls/peers-ca.pem. Every replica of a realm has the same VRF key: it is copied
here by file, private like the others, and leaves in no other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from keyserver.installation import certificates
from keyserver.installation.certificates import Certified
from keyserver.installation.config_file import PEER_CERTIFICATE, PEER_KEY, PEERS_AUTHORITY
from keyserver.installation.plan import Replica, is_loopback
from keyserver.verifier_list import encode_verifier_certificates
from kv.interface import StorageError
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError
from verifier.files import SECRET_MODE, write_new
from verifier.signonce import SignOnceRegister


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder is made of. `seed` of the head key and `vrf_seed`: 32 bytes each. No `peers_ca`: no
    cluster. `verifiers` is a whole verifiers.json.
    """

    replica: Replica
    seed: bytes
    vrf_seed: bytes
    realm_ca: Certified
    peers_ca: Certified | None
    toml: str
    verifiers: bytes = encode_verifier_certificates(())


def fill(folder: Path, contents: Contents, now: datetime) -> Path:
    """Make the folder; returns its configuration file. Raises ConfigError; nothing is overwritten."""
    make_folder(folder, 0o700)
    replica = contents.replica
    loopback = ("localhost", "127.0.0.1", "::1") if is_loopback(replica.host) else ()
    hosts = sorted({replica.host, *loopback})
    tls = certificates.issue_replica(contents.realm_ca, replica.name, hosts, now)
    write_new(folder / "head.key", contents.seed.hex().encode() + b"\n", SECRET_MODE)
    write_new(folder / "vrf.key", contents.vrf_seed.hex().encode() + b"\n", SECRET_MODE)
    write_new(folder / "tls.pem", tls.certificate_pem())
    write_new(folder / "tls.key", tls.key_pem(), SECRET_MODE)
    write_new(folder / "verifiers.json", contents.verifiers)
    if contents.peers_ca is not None:
        _fill_links(folder, contents.peers_ca, replica.name, now)
    try:
        key_id = hashing.key_id(signatures.public_key(contents.seed))
        SignOnceRegister.create(folder / "sign-once.register", key_id=key_id).close()
    except StorageError as error:
        raise ConfigError(str(error)) from None
    config = folder / "keyserver.toml"
    write_new(config, contents.toml.encode("utf-8"))
    return config


def _fill_links(folder: Path, authority: Certified, name: str, now: datetime) -> None:
    peer = certificates.issue_peer(authority, name, now)
    make_folder(folder / "tls", 0o700)
    write_new(folder / PEER_CERTIFICATE, peer.certificate_pem())
    write_new(folder / PEER_KEY, peer.key_pem(), SECRET_MODE)
    write_new(folder / PEERS_AUTHORITY, authority.certificate_pem())


def make_folder(folder: Path, mode: int) -> None:
    """The folder with its mode, made if it is not there. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)  # whatever the umask was
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from None
