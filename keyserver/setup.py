"""What an operator sets up once: a realm with its replicas' folders, and the verifiers it lists.

DIR/realm.json                  what clients and verifiers get; nothing in it is secret
DIR/ca/realm-ca.{pem,key}       the authority of the replicas' TLS certificates; keep the key offline
DIR/replicas/NAME/              all that one replica needs besides realm.json: keyserver.toml, head.key,
vrf.key, tls.pem, tls.key, verifiers.json, sign-once.register Nothing that exists is overwritten, except
realm.json and verifiers.json when a verifier is added.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from e2eks.v1 import types_pb2 as pb

from keyserver import certificates
from keyserver.config import Config, Epochs, Listen, Storage, load_config
from keyserver.verifier_list import VerifierCertificate, VerifierInfo, encode_verifier_certificates
from kv.interface import StorageError
from verifier import encoding, limits, policy
from verifier.crypto import hashing, signatures, vrf
from verifier.errors import ConfigError, Malformed
from verifier.files import SECRET_MODE, read_file, replace_file, write_new
from verifier.realm import fingerprint, realm_from, realm_json, realm_message
from verifier.signonce import SignOnceRegister
from verifier.types import AuthorizationPolicy, Realm

TTL_MS = 300_000
REPLICA_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
AUTHORITY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica to set up: its name, and the DNS name or IP address its clients reach it by."""

    name: str
    host: str


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a replica (contract section 5; pushes have a port of their own)."""

    public: int = 4625
    verification: int = 4626
    push: int = 4628
    http: int = 25519


@dataclass(frozen=True, slots=True)
class Plan:
    """What to set up. Empty `domains` = the realm's name; empty `listen_host` = by the replica's host.

    `registration_ca` is a PEM file whose certificates prove addresses of all domains.
    """

    realm: str
    replicas: tuple[Replica, ...] = (Replica("r1", "localhost"),)
    domains: tuple[str, ...] = ()
    listen_host: str = ""
    ports: Ports = field(default_factory=Ports)
    epochs: Epochs = field(default_factory=Epochs)
    epoch_ttl_ms: int = TTL_MS
    registration_ca: Path | None = None
    insecure_skip_registration_proof: bool = False


@dataclass(frozen=True, slots=True)
class SetUp:
    """What `init` made; `configs` has one file for each replica."""

    realm: Realm
    fingerprint: str
    realm_file: Path
    configs: tuple[Path, ...]


def init(folder: Path, plan: Plan, now: datetime) -> SetUp:
    """Set up a realm in a folder that is empty or not there.

    Raises ConfigError, and leaves nothing in it.
    """
    _check_plan(plan)
    _make_folder(folder)
    try:
        return _set_up(folder, plan, now)
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _set_up(folder: Path, plan: Plan, now: datetime) -> SetUp:
    vrf_seed = secrets.token_bytes(limits.KEY_BYTES)
    seeds = [secrets.token_bytes(limits.KEY_BYTES) for _ in plan.replicas]
    authority = certificates.make_authority(plan.realm, now)
    realm = _new_realm(plan, vrf_seed, seeds, authority)

    ca = folder / "ca"
    _mkdir(ca, 0o700)
    write_new(ca / "realm-ca.pem", authority.certificate_pem())
    write_new(ca / "realm-ca.key", authority.key_pem(), SECRET_MODE)
    _mkdir(folder / "replicas", 0o755)
    configs = [
        _set_up_replica(folder / "replicas" / replica.name, plan, replica, seed, vrf_seed, authority, now)
        for replica, seed in zip(plan.replicas, seeds, strict=True)
    ]
    realm_file = folder / "realm.json"
    write_new(realm_file, realm_json(realm))
    for config in configs:
        load_config(config)
    return SetUp(realm, fingerprint(realm), realm_file, tuple(configs))


def _check_plan(plan: Plan) -> None:
    names = [replica.name for replica in plan.replicas]
    if len(names) != 1:
        raise ConfigError("a realm of this version has one replica: it has no engine for a cluster yet")
    for name in names:
        if not REPLICA_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not a replica's name: use a-z, 0-9 and -, at most 32")
    for host in (*(replica.host for replica in plan.replicas), plan.listen_host or "localhost"):
        if not _is_ip(host) and not DNS_NAME.fullmatch(host):
            raise ConfigError(f"{host!r} is neither a DNS name in lower case nor an IP address")


def _make_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder. Nothing was changed; name another")
    _mkdir(folder, 0o755)


def _mkdir(folder: Path, mode: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)  # whatever the umask was
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from None


def _new_realm(
    plan: Plan, vrf_seed: bytes, seeds: Sequence[bytes], authority: certificates.Certified
) -> Realm:
    keys = [signatures.public_key(seed) for seed in seeds]
    genesis = encoding.make_policy(keys, policy.majority([hashing.key_id(key) for key in keys]))
    message = pb.RealmConfig(
        realm=plan.realm,
        domains=plan.domains or (plan.realm,),
        addresses=[_address(replica.host, plan.ports.public) for replica in plan.replicas],
        vrf_public_key=vrf.VrfKey(vrf_seed).public_key,
        verification_policy=encoding.policy_message(genesis),
        epoch_ttl_ms=plan.epoch_ttl_ms,
        suite=limits.SUITE,
        tls_roots_pem=[authority.certificate_pem().decode("ascii")],
        genesis_policy=encoding.policy_message(genesis),
    )
    try:
        return realm_from(message)
    except Malformed as error:
        raise ConfigError(f"no realm can be set up: {error}") from None


def _set_up_replica(
    folder: Path,
    plan: Plan,
    replica: Replica,
    seed: bytes,
    vrf_seed: bytes,
    authority: certificates.Certified,
    now: datetime,
) -> Path:
    """The folder of one replica; returns its configuration file."""
    _mkdir(folder, 0o700)
    loopback = ("localhost", "127.0.0.1", "::1") if _is_loopback(replica.host) else ()
    tls = certificates.issue_replica(authority, replica.name, sorted({replica.host, *loopback}), now)
    write_new(folder / "head.key", seed.hex().encode() + b"\n", SECRET_MODE)
    write_new(folder / "vrf.key", vrf_seed.hex().encode() + b"\n", SECRET_MODE)
    write_new(folder / "tls.pem", tls.certificate_pem())
    write_new(folder / "tls.key", tls.key_pem(), SECRET_MODE)
    write_new(folder / "verifiers.json", encode_verifier_certificates(()))
    if plan.registration_ca is not None:
        ca = read_file(plan.registration_ca, AUTHORITY_BYTES, "certificate authority")
        write_new(folder / "registration-ca.pem", ca)
    try:
        key_id = hashing.key_id(signatures.public_key(seed))
        SignOnceRegister.create(folder / "sign-once.register", key_id=key_id).close()
    except StorageError as error:
        raise ConfigError(str(error)) from None
    config = folder / "keyserver.toml"
    write_new(config, _toml(plan, replica).encode("utf-8"))
    return config


def _toml(plan: Plan, replica: Replica) -> str:
    host = plan.listen_host or ("127.0.0.1" if _is_loopback(replica.host) else "0.0.0.0")  # noqa: S104 - a server
    listen = Listen(
        public=_address(host, plan.ports.public),
        verification=_address(host, plan.ports.verification),
        push=_address(host, plan.ports.push),
        http=_address("127.0.0.1", plan.ports.http),
    )
    return _TEMPLATE.format(
        realm=os.path.join("..", "..", "realm.json"),
        replica=replica.name,
        listen=listen,
        epochs=plan.epochs,
        storage=Storage(),
        registration=_registration_toml(plan),
    )


def _registration_toml(plan: Plan) -> str:
    lines = []
    if plan.insecure_skip_registration_proof:
        lines.append("insecure_skip_registration_proof = true    # anybody may register any free name")
    if plan.registration_ca is not None:
        domains = json.dumps(list(plan.domains or (plan.realm,)))
        lines.append("[[registration.client_certificate]]")
        lines.append(f"domains = {domains}")
        lines.append('ca = "registration-ca.pem"')
    return "\n".join(lines) or _NO_METHOD


_NO_METHOD = """\
# No method yet: nobody can register. To admit the holders of certificates that name their mail addresses:
# [[registration.client_certificate]]
# domains = ["example.org"]
# ca = "registration-ca.pem\""""

_TEMPLATE = """\
# A replica of an e2eks realm. Paths are relative to this file.
# `keyserver serve -c FILE --check` shows all settings in effect.
schema = 1
realm = "{realm}"
replica = "{replica}"
data = "data"
replication = "local"

[keys]                                        # mode 0600; never in a backup of the data
head = "head.key"
vrf = "vrf.key"
sign_once_register = "sign-once.register"     # without it this replica must not sign again under its key

[listen]                                      # "" turns a listener off
public = "{listen.public}"
verification = "{listen.verification}"
push = "{listen.push}"
http = "{listen.http}"

[tls]
certificate = "tls.pem"
key = "tls.key"
verifier_certificates = "verifiers.json"

[epochs]
min_interval_ms = {epochs.min_interval_ms}
max_interval_ms = {epochs.max_interval_ms}
retry_interval_ms = {epochs.retry_interval_ms}

[storage]
min_free_bytes = {storage.min_free_bytes}                   # with less free space this replica only reads
ballast_bytes = {storage.ballast_bytes}                     # kept in reserve, to start on a full disk

[registration]
{registration}
"""


def add_verifiers(config: Config, infos: Sequence[VerifierInfo], *, replace: str = "") -> Realm:
    """List verifiers in realm.json and let them push; adding one again changes nothing.

    `replace` names a listed verifier in whose place the one of `infos` is put: its key, certificate and
    address are dropped, and the quorum follows. The realm's policy becomes the default one: majorities of
    replicas and of verifiers. Raises ConfigError, before anything is written, when that policy was changed by
    hand, when a name or key is already somebody else's, or when nobody can be replaced.
    """
    realm = config.realm
    if realm.verification_policy.encoded != _default_policy(realm).encoded:
        raise ConfigError(
            f"the verification policy in {config.realm_file} is not the default one, so no rule extends it. "
            "Edit verifiers, verification_policy and tls_roots_pem in that file by hand"
        )
    known = {row.key_id: row for row in config.verifier_certificates()}
    if replace:
        realm = _replace_verifier(realm, replace, infos, known)
    for info in infos:
        before = known.get(info.certificate.key_id)
        realm = _with_verifier(realm, info, before.tls_certificate_pem if before else "")
        known[info.certificate.key_id] = info.certificate
    # BEFORE realm.json: a listed verifier must be able to push, one that may push early does no harm.
    replace_file(config.tls.verifier_certificates, encode_verifier_certificates(tuple(known.values())))
    replace_file(config.realm_file, realm_json(realm))
    return realm


def _replace_verifier(
    realm: Realm, name: str, infos: Sequence[VerifierInfo], known: dict[bytes, VerifierCertificate]
) -> Realm:
    """Put the new verifier in the old one's place and forget the old certificate, also in `known`."""
    old = next((v for v in realm.verifiers if v.name == name), None)
    if old is None:
        listed = ", ".join(v.name for v in realm.verifiers) or "none"
        raise ConfigError(f"the realm lists no verifier {name}, so none can be replaced. Listed: {listed}")
    if len(infos) != 1:
        raise ConfigError("one verifier is replaced by one: give one INFO-FILE")
    new = infos[0].certificate
    if new.key_id == old.key_id:
        raise ConfigError(f"{name} has this key already: nothing is replaced. Is it the new verifier info?")
    if any(v.key_id == new.key_id for v in realm.verifiers):
        raise ConfigError(f"the key of the new {name} is another listed verifier's")
    message = realm_message(realm)
    place = [v.public_key.ed25519 for v in message.verifiers].index(old.public_key)
    message.verifiers[place].public_key.ed25519 = new.public_key
    message.verifiers[place].name = new.name
    dropped = known.pop(old.key_id, None)
    roots = [pem for pem in message.tls_roots_pem if dropped is None or pem != dropped.tls_certificate_pem]
    del message.tls_roots_pem[:]
    message.tls_roots_pem.extend(roots)
    return _with_default_policy(message, new.name)


def _default_policy(realm: Realm) -> AuthorizationPolicy:
    replicas, verifiers = list(realm.genesis_policy.keys), [v.key_id for v in realm.verifiers]
    keys = [*realm.genesis_policy.keys.values(), *(v.public_key for v in realm.verifiers)]
    return encoding.make_policy(keys, policy.default_quorum(replicas, verifiers))


def _with_verifier(realm: Realm, info: VerifierInfo, old_certificate_pem: str) -> Realm:
    """The realm with one more verifier, or with that verifier's new name, address and certificate."""
    message = realm_message(realm)
    new = info.certificate
    row = pb.VerifierInfo(
        name=new.name, public_key=pb.PublicKey(ed25519=new.public_key), address=info.address
    )
    listed = [v.public_key.ed25519 for v in message.verifiers]
    if new.public_key in listed:
        message.verifiers[listed.index(new.public_key)].CopyFrom(row)
    else:
        message.verifiers.append(row)
    roots = [
        pem for pem in message.tls_roots_pem if pem not in (old_certificate_pem, new.tls_certificate_pem)
    ]
    del message.tls_roots_pem[:]
    message.tls_roots_pem.extend([*roots, new.tls_certificate_pem])
    return _with_default_policy(message, new.name)


def _with_default_policy(message: pb.RealmConfig, name: str) -> Realm:
    try:
        message.verification_policy.CopyFrom(encoding.policy_message(_default_policy(realm_from(message))))
        return realm_from(message)
    except Malformed as error:
        raise ConfigError(f"the verifier {name} cannot be listed: {error}") from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host == "localhost"
