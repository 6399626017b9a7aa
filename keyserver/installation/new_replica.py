"""The folder of a replica that joins a cluster: a name and a key that never were, beside a present member's
settings.
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from keyserver.cluster import MemberTable
from keyserver.config import CONFIG_BYTES, Config, load_config
from keyserver.installation.certificates import Certified, load_authority
from keyserver.installation.member_tables import with_table
from keyserver.installation.plan import REPLICA_NAME, Ports, Replica, address
from keyserver.installation.replica_folder import Contents, fill
from keyserver.installation.setup import PEERS_CA, REALM_CA
from verifier import limits
from verifier.config_file import split_address
from verifier.errors import ConfigError
from verifier.files import check_private, read_file, read_secret, write_new

AUTHORITY_BYTES = 64 * 1024
# Elsewhere they would be the present member's, on this host.
IN_THE_FOLDER = {"data": "data", "sign_once_register": "sign-once.register"}


def new_replica(config: Config, replica: Replica, authorities: Path, now: datetime) -> Path:
    """Make the folder beside that of `config`, whose settings it takes over; its configuration file.

    `authorities` is the folder `ca` that `keyserver init` made. Ports: those of the configuration unless the
    replica has its own. Raises ConfigError; then nothing is left.
    """
    if config.cluster is None:
        raise ConfigError(
            f'{config.path} has no [cluster]: replication "{config.replication}" has one replica'
        )
    if not REPLICA_NAME.fullmatch(replica.name):
        raise ConfigError(f"{replica.name!r} is not a replica's name: use a-z, 0-9 and - inside, at most 32")
    folder = config.path.parent.parent / replica.name
    if replica.name in config.cluster.members or folder.exists():
        raise ConfigError(f"there is a replica {replica.name}, or was: a new one has a name that never was")
    ports = replica.ports or _ports(config)
    contents = Contents(
        replica=replica,
        seed=secrets.token_bytes(limits.KEY_BYTES),
        vrf_seed=read_secret(config.vrf_key),
        realm_ca=_authority(authorities, REALM_CA),
        peers_ca=_authority(authorities, PEERS_CA),
        toml=_toml(config, replica, ports),
        verifiers=read_file(config.tls.verifier_certificates, limits.REALM_JSON_BYTES, "verifiers file"),
    )
    try:
        made = fill(folder, contents, now)
        _copy_beside(config, folder)
        if not _is_its_own(load_config(made), replica.name):
            raise ConfigError(
                f"{config.path} is written in another way: write that of {replica.name} by hand"
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return made


def _toml(config: Config, replica: Replica, ports: Ports) -> str:
    """The present member's file under another name, listening elsewhere."""
    text = read_file(config.path, CONFIG_BYTES, "configuration").decode("utf-8")
    for port in fields(Ports):
        old = getattr(config.listen, port.name)
        if old:
            host, _ = split_address(old, port.name)
            new = address(host, getattr(ports, port.name))
            text = re.sub(rf'(?m)^{port.name} = "{re.escape(old)}"', f'{port.name} = "{new}"', text, count=1)
    for name, value in {"replica": replica.name, **IN_THE_FOLDER}.items():
        text = re.sub(rf'(?m)^{name} = "[^"]*"', f'{name} = "{value}"', text, count=1)
    member = MemberTable(address(replica.host, ports.peers), address(replica.host, ports.replication))
    return with_table(text, replica.name, member)


def _ports(config: Config) -> Ports:
    defaults = Ports()
    return Ports(*(_port(getattr(config.listen, p.name), getattr(defaults, p.name)) for p in fields(Ports)))


def _port(listen: str, default: int) -> int:
    return split_address(listen, "listen")[1] if listen else default


def _authority(folder: Path, name: str) -> Certified:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    check_private(key)
    try:
        return load_authority(
            read_file(certificate, AUTHORITY_BYTES, "authority"),
            read_file(key, AUTHORITY_BYTES, "authority's key"),
        )
    except (ValueError, TypeError):
        raise ConfigError(f"{certificate} and {key} are not an authority and its key") from None


def _copy_beside(config: Config, folder: Path) -> None:
    """The realm file and authorities of registrations, if they lie in the present member's folder."""
    if config.realm_file.parent == config.path.parent:
        write_new(folder / config.realm_file.name, config.realm_json)
    for method in config.registration.client_certificate:
        if method.ca.parent == config.path.parent:
            write_new(folder / method.ca.name, read_file(method.ca, CONFIG_BYTES, "certificate authority"))


def _is_its_own(made: Config, name: str) -> bool:
    """Has it the name, and nothing outside its folder that only one replica may use?"""
    only_one = (made.data, made.sign_once_register, made.head_key, made.tls.key)
    folder = made.path.parent
    return made.replica_name == name and all(path.is_relative_to(folder) for path in only_one)
