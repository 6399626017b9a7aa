"""What an operator sets up once: a realm with its replicas' folders, and the verifiers it lists.

DIR/realm.json                  what clients and verifiers get; nothing in it is secret
DIR/ca/realm-ca.{pem,key}       the authority of the replicas' TLS certificates; keep the key offline
DIR/ca/peers-ca.{pem,key}       in a cluster: that of links between replicas; keep the key offline too
DIR/replicas/NAME/              what one replica needs besides realm.json (installation.replica_folder)

Folders of replicas are made on one machine and carried to theirs, at the same place beside realm.json.
Nothing that exists is overwritten, except realm.json and verifiers.json when a verifier is added.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from e2eks.v1 import types_pb2 as pb

from keyserver.config import Config, load_config
from keyserver.installation import certificates, config_file
from keyserver.installation.plan import Plan as Plan  # what tells `init` what to do
from keyserver.installation.plan import Ports as Ports
from keyserver.installation.plan import Replica as Replica
from keyserver.installation.plan import address, check_plan
from keyserver.installation.replica_folder import Contents, fill, make_folder
from keyserver.verifier_list import VerifierCertificate, VerifierInfo, encode_verifier_certificates
from verifier import encoding, limits, policy
from verifier.crypto import hashing, signatures, vrf
from verifier.errors import ConfigError, Malformed
from verifier.files import SECRET_MODE, read_file, replace_file, write_new
from verifier.realm import fingerprint, realm_from, realm_json, realm_message
from verifier.types import AuthorizationPolicy, Realm

AUTHORITY_BYTES = 64 * 1024
REALM_CA, PEERS_CA = "realm-ca", "peers-ca"


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
    check_plan(plan)
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
    realm_ca = certificates.make_authority(plan.realm, now)
    peers_ca = certificates.make_peers_authority(plan.realm, now) if len(seeds) > 1 else None
    realm = _new_realm(plan, vrf_seed, seeds, realm_ca)

    make_folder(folder / "ca", 0o700)
    for name, authority in ((REALM_CA, realm_ca), (PEERS_CA, peers_ca)):
        if authority is not None:
            write_new(folder / "ca" / f"{name}.pem", authority.certificate_pem())
            write_new(folder / "ca" / f"{name}.key", authority.key_pem(), SECRET_MODE)
    make_folder(folder / "replicas", 0o755)
    contents = [
        Contents(replica, seed, vrf_seed, realm_ca, peers_ca, config_file.toml(plan, replica))
        for replica, seed in zip(plan.replicas, seeds, strict=True)
    ]
    places = [folder / "replicas" / replica.name for replica in plan.replicas]
    configs = [fill(place, content, now) for place, content in zip(places, contents, strict=True)]
    if plan.registration_ca is not None:
        ca = read_file(plan.registration_ca, AUTHORITY_BYTES, "certificate authority")
        for place in places:
            write_new(place / "registration-ca.pem", ca)
    realm_file = folder / "realm.json"
    write_new(realm_file, realm_json(realm))
    for config in configs:
        load_config(config)
    return SetUp(realm, fingerprint(realm), realm_file, tuple(configs))


def _make_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder. Nothing was changed; name another")
    make_folder(folder, 0o755)


def _new_realm(
    plan: Plan, vrf_seed: bytes, seeds: Sequence[bytes], authority: certificates.Certified
) -> Realm:
    keys = [signatures.public_key(seed) for seed in seeds]
    genesis = encoding.make_policy(keys, policy.majority([hashing.key_id(key) for key in keys]))
    message = pb.RealmConfig(
        realm=plan.realm,
        domains=plan.domains or (plan.realm,),
        addresses=[address(replica.host, plan.ports_of(replica).public) for replica in plan.replicas],
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


def add_verifiers(
    config: Config, infos: Sequence[VerifierInfo], *, replace: str = "", others: Sequence[Config] = ()
) -> Realm:
    """List verifiers in realm.json and let them push; adding one again changes nothing.

    `replace` names a listed verifier in whose place the one of `infos` is put: its key, certificate and
    address are dropped, and the quorum follows. `others` are configurations of further replicas of the realm:
    their files are changed too. The realm's policy becomes the default one: majorities of replicas and of
    verifiers. Raises ConfigError, before anything is written, when that policy was changed by hand, when a
    name or key is already somebody else's, or when nobody can be replaced.
    """
    changes = [_listing(one, infos, replace) for one in (config, *others)]
    for one, (realm, known) in zip((config, *others), changes, strict=True):
        # BEFORE realm.json: a listed verifier must be able to push, one that may push early does no harm.
        replace_file(one.tls.verifier_certificates, encode_verifier_certificates(known))
        replace_file(one.realm_file, realm_json(realm))
    return changes[0][0]


def _listing(
    config: Config, infos: Sequence[VerifierInfo], replace: str
) -> tuple[Realm, tuple[VerifierCertificate, ...]]:
    """Realm and certificates of one configuration with the verifiers in them."""
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
    return realm, tuple(known.values())


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
