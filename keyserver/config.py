"""A replica's configuration: TOML in, one frozen value out, every mistake named with what to do about it.

Unknown keys are refused. Secrets are named by path only, and their files must be private (mode 0600).
Paths are relative to the file. Reading a configuration changes nothing and reads no secret.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from keyserver import cluster
from keyserver.cluster import Cluster, ClusterTable, Etcd, EtcdTable
from keyserver.rate_limits import Limits
from keyserver.verifier_list import VerifierCertificate, read_verifier_certificates
from verifier import limits, policy
from verifier.config_file import decode, read_realm, split_address
from verifier.errors import ConfigError as ConfigError  # where callers look for it
from verifier.files import check_private, read_file
from verifier.types import Realm

CONFIG_BYTES = 256 * 1024


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """host:port of each listener; port 0 takes a free one, "" turns the listener off (not those of peers)."""

    public: str = "127.0.0.1:4625"
    verification: str = "127.0.0.1:4626"
    push: str = "127.0.0.1:4628"
    http: str = "127.0.0.1:25519"
    replication: str = "127.0.0.1:9807"  # these two in a cluster only
    peers: str = "127.0.0.1:4629"


class Epochs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Least and most time between epochs, and how long to wait before a delimiter is proposed again."""

    min_interval_ms: int = 1_000
    max_interval_ms: int = 30_000
    retry_interval_ms: int = 2_000


# Two full write buffers of each of the two databases, with room: what opening them may have to write.
BALLAST_BYTES = 64 * 1024 * 1024
# Well above the ballast: what is queued when writing stops must still fit, and so must a compaction.
MIN_FREE_BYTES = 256 * 1024 * 1024


class Storage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Below which free space a replica only reads, and how much it keeps in reserve to start at all."""

    min_free_bytes: int = MIN_FREE_BYTES
    ballast_bytes: int = BALLAST_BYTES


class _Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificate: str
    key: str
    verifier_certificates: str


class _Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    head: str
    vrf: str
    sign_once_register: str


class _ClientCertificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domains: list[str]
    ca: str


class _Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    insecure_skip_registration_proof: bool = False
    client_certificate: list[_ClientCertificate] = []


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    realm: str
    replica: str
    data: str
    keys: _Keys
    tls: _Tls
    replication: str = cluster.LOCAL
    cluster: ClusterTable | None = None
    etcd: EtcdTable | None = None
    listen: Listen = Listen()
    epochs: Epochs = Epochs()
    storage: Storage = Storage()
    registration: _Registration = _Registration()
    limits: Limits = Limits()
    update_timeout_ms: int = 30_000
    stop_grace_ms: int = 10_000
    allow_split_view: bool = False


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of this replica's certificate chain and key, and verifiers.json with those of verifiers."""

    certificate: Path
    key: Path
    verifier_certificates: Path


@dataclass(frozen=True, slots=True)
class ClientCertificateAuthority:
    """Whose certificates prove addresses of which domains; `ca` is a PEM file."""

    domains: tuple[str, ...]
    ca: Path


@dataclass(frozen=True, slots=True)
class Registration:
    """What a registration must prove."""

    insecure_skip_registration_proof: bool
    client_certificate: tuple[ClientCertificateAuthority, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a replica is started with. Times are milliseconds."""

    path: Path
    data: Path
    realm: Realm
    realm_file: Path
    realm_json: bytes
    replica_name: str
    replication: str
    cluster: Cluster | None  # None: replication "local"
    etcd: Etcd | None
    head_key: Path
    vrf_key: Path
    sign_once_register: Path
    listen: Listen
    tls: Tls
    epochs: Epochs
    storage: Storage
    registration: Registration
    limits: Limits
    update_timeout_ms: int
    stop_grace_ms: int  # how long updates that wait may still get their proof after SIGTERM
    allow_split_view: bool

    def verifier_certificates(self) -> tuple[VerifierCertificate, ...]:
        """The verifiers that may push, from the file that `tls` names. Raises ConfigError."""
        return read_verifier_certificates(self.tls.verifier_certificates)


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in a TOML file, with its realm. Raises ConfigError."""
    place = Path(path).absolute()
    file = decode(place, read_file(place, CONFIG_BYTES, "configuration"), _File)
    folder = place.parent
    realm_file = (folder / file.realm).resolve()
    realm, realm_json = read_realm(realm_file)
    config = Config(
        path=place,
        data=folder / file.data,
        realm=realm,
        realm_file=realm_file,
        realm_json=realm_json,
        replica_name=file.replica,
        replication=file.replication,
        cluster=cluster.cluster_of(file.cluster, folder),
        etcd=cluster.etcd_of(file.etcd, folder, realm.name),
        head_key=folder / file.keys.head,
        vrf_key=folder / file.keys.vrf,
        sign_once_register=folder / file.keys.sign_once_register,
        listen=file.listen,
        tls=Tls(
            certificate=folder / file.tls.certificate,
            key=folder / file.tls.key,
            verifier_certificates=folder / file.tls.verifier_certificates,
        ),
        epochs=file.epochs,
        storage=file.storage,
        registration=Registration(
            insecure_skip_registration_proof=file.registration.insecure_skip_registration_proof,
            client_certificate=tuple(
                ClientCertificateAuthority(domains=tuple(method.domains), ca=folder / method.ca)
                for method in file.registration.client_certificate
            ),
        ),
        limits=file.limits,
        update_timeout_ms=file.update_timeout_ms,
        stop_grace_ms=file.stop_grace_ms,
        allow_split_view=file.allow_split_view,
    )
    _check(config)
    return config


def _check(config: Config) -> None:
    """Everything that can be judged without the files of keys and certificates."""
    epochs = config.epochs
    rules = (
        (
            0 < epochs.min_interval_ms <= limits.DAY_MS,
            "epochs.min_interval_ms is at least 1 and at most a day",
        ),
        (
            epochs.min_interval_ms <= epochs.max_interval_ms,
            "epochs.max_interval_ms is at least min_interval_ms",
        ),
        (
            epochs.max_interval_ms < config.realm.epoch_ttl_ms,
            "epochs.max_interval_ms is less than the realm's epoch_ttl_ms, or clients see stale heads",
        ),
        (epochs.retry_interval_ms > 0, "epochs.retry_interval_ms is at least 1"),
        (config.storage.ballast_bytes >= 0, "storage.ballast_bytes is at least 0, which is none"),
        (
            config.storage.min_free_bytes > config.storage.ballast_bytes,
            "storage.min_free_bytes is more than ballast_bytes, or giving up the ballast would fill the disk",
        ),
        (config.update_timeout_ms > 0, "update_timeout_ms is at least 1"),
        (0 <= config.stop_grace_ms <= limits.DAY_MS, "stop_grace_ms is at least 0 and at most a day"),
        *cluster.rules(
            config.replication,
            config.replica_name,
            len(config.realm.genesis_policy.keys),
            config.cluster,
            config.etcd,
        ),
        (
            config.cluster is None or bool(config.listen.peers and config.listen.replication),
            'listen.peers and listen.replication are addresses in a cluster: "" turns nothing off there',
        ),
    )
    for holds, rule in rules:
        if not holds:
            raise ConfigError(f"{config.path}: {rule}")
    for name in Listen.__struct_fields__:
        address = getattr(config.listen, name)
        if address:
            split_address(address, f"{config.path}: listen.{name}")
    for address, what in cluster.addresses(config.cluster):
        split_address(address, f"{config.path}: cluster.members.{what}")
    for method in config.registration.client_certificate:
        unknown = sorted(set(method.domains) - set(config.realm.domains))
        if unknown or not method.domains:
            what = (
                f"names {', '.join(unknown)}, which the realm does not serve"
                if unknown
                else "names no domain"
            )
            raise ConfigError(f"{config.path}: registration.client_certificate {what}")


def check_split_view(config: Config) -> None:
    """Refuse a realm whose clients could be shown two histories, unless the configuration allows it.

    Raises ConfigError when two sets of signers that share no verifier both satisfy the realm's verification
    policy.
    """
    realm = config.realm
    if config.allow_split_view or not policy.can_split(
        realm.verification_policy.quorum, set(realm.genesis_policy.keys)
    ):
        return
    raise ConfigError(
        "two sets of signers that share no verifier satisfy the realm's verification policy, so two clients "
        f"could be shown different keys and neither would notice. The realm lists {len(realm.verifiers)} "
        "verifiers; the policy must need a majority of at least one. Run `keyserver realm add-verifier`, or, "
        "knowing this, serve with --allow-split-view"
    )


def check_files(config: Config) -> None:
    """That every file the configuration names is there and every secret is private. Raises ConfigError.

    A missing sign-once register is the signer's business: such a replica may still answer lookups.
    """
    for secret in (config.head_key, config.vrf_key, config.tls.key):
        check_private(secret)
    read_file(config.tls.certificate, CONFIG_BYTES, "TLS certificate")
    config.verifier_certificates()
    for method in config.registration.client_certificate:
        read_file(method.ca, CONFIG_BYTES, "certificate authority")
    cluster.check_files(config.replica_name, config.cluster, config.etcd)


def effective(config: Config) -> dict[str, Any]:
    """The configuration as it takes effect, paths absolute, for `serve --check`. Holds no secret."""
    return {
        "schema": "e2eks.config/1",
        "file": str(config.path),
        "realm": config.realm.name,
        "realm_file": str(config.realm_file),
        "replica": config.replica_name,
        "data": str(config.data),
        "replication": config.replication,
        **cluster.effective(config.cluster, config.etcd),
        "keys": {
            "head": str(config.head_key),
            "vrf": str(config.vrf_key),
            "sign_once_register": str(config.sign_once_register),
        },
        "listen": msgspec.structs.asdict(config.listen),
        "tls": {
            "certificate": str(config.tls.certificate),
            "key": str(config.tls.key),
            "verifier_certificates": str(config.tls.verifier_certificates),
        },
        "epochs": msgspec.structs.asdict(config.epochs),
        "storage": msgspec.structs.asdict(config.storage),
        "registration": {
            "insecure_skip_registration_proof": config.registration.insecure_skip_registration_proof,
            "client_certificate": [
                {"domains": list(method.domains), "ca": str(method.ca)}
                for method in config.registration.client_certificate
            ],
        },
        "limits": msgspec.to_builtins(config.limits),
        "update_timeout_ms": config.update_timeout_ms,
        "stop_grace_ms": config.stop_grace_ms,
        "allow_split_view": config.allow_split_view,
    }


def settings_in_file(config: Config) -> frozenset[str]:
    """Dotted names of the settings that the file itself gives; all others have their defaults."""
    tree = tomllib.loads(read_file(config.path, CONFIG_BYTES, "configuration").decode("utf-8"))
    return frozenset(_names(tree))


def _names(tree: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names as `serve --check` prints them; the tables of a list are numbered from 1."""
    for name, value in tree.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _names({f"{name}.{number}": item for number, item in enumerate(value, 1)})
        elif isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in _names(value))
        else:
            yield name
