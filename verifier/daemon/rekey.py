"""A new key for a verifier whose register, database or key are in doubt: the end of every quarantine.

The old key, its register and its TLS pair are set aside, never to be used again; the database stays, for what
was replayed is true whoever signs. The new register begins at a floor: no epoch that the old key can have
ratified is ratified anew.

Every state in between is refused at a start (a register names its key, a database its owner), and running
this again finishes it.
"""

from __future__ import annotations

import json
import secrets
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kv.interface import Store
from kv.leveldb import LevelDBStore
from verifier.config_file import split_address
from verifier.crypto import hashing, signatures
from verifier.daemon.config import Config
from verifier.daemon.database import OWNER
from verifier.daemon.evidence import Kind
from verifier.daemon.failures import Quarantined
from verifier.daemon.setup import info_text, make_certificate
from verifier.daemon.state import load_state, newest_ratified
from verifier.errors import ConfigError
from verifier.files import SECRET_MODE, read_file, read_secret, set_aside, write_new
from verifier.signonce import RegisterCorrupt, RegisterMissing, SignOnceRegister

INFO = "verifier-info.json"
INFO_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """`retired` are the files set aside; `info_file` is for the realm's operator."""

    old_key_id: bytes | None
    public_key: bytes
    floor: int
    retired: tuple[Path, ...]
    info_file: Path
    info: str


def rekey(config: Config, now: datetime, *, address: str = "", floor: int = 0) -> Rekeyed:
    """Give the configured verifier, which must not run, a new key.

    `address` is where others reach it, as before if empty; `floor` raises the newest epoch that the old key
    may have ratified. Raises ConfigError, Quarantined for a database of another realm, StorageError,
    StorageInUse.
    """
    info_file = config.path.parent / INFO
    address = address or _known_address(config, info_file)
    host, _ = split_address(address, "--address")
    old_key_id = _key_id(config)
    store = LevelDBStore(config.data)  # locks it: a running verifier is not rekeyed
    with closing(store):
        _check_realm(store, config)
        signed = _newest_signed(config, old_key_id)
        floor = max(floor, signed, newest_ratified(store), load_state(store, config.realm).chain.epoch)
        retired = _set_aside(config, info_file, now)
        seed = secrets.token_bytes(signatures.SEED_BYTES)
        public_key = signatures.public_key(seed)
        key_id = hashing.key_id(public_key)
        certificate, tls_key = make_certificate(config.name, host, now)
        info = info_text(config.name, public_key, address, certificate)
        SignOnceRegister.create(config.sign_once_register, key_id=key_id, floor=floor).close()
        write_new(config.key, seed.hex().encode() + b"\n", SECRET_MODE)
        write_new(config.tls_key, tls_key, SECRET_MODE)
        write_new(config.tls_certificate, certificate)
        write_new(info_file, info.encode())
        if store.get(OWNER) is not None:  # LAST: until then the database refuses the new key
            store.write({OWNER: config.realm.hash + key_id})
    return Rekeyed(old_key_id, public_key, floor, retired, info_file, info)


def _known_address(config: Config, info_file: Path) -> str:
    """The address of the former verifier info, or the one the realm lists under this name."""
    if info_file.exists():
        try:
            info = json.loads(read_file(info_file, INFO_BYTES, "verifier info file"))
            if isinstance(info, dict) and info.get("address"):
                return str(info["address"])
        except ValueError:
            pass
    listed = [v.address for v in config.realm.verifiers if v.name == config.name and v.address]
    if not listed:
        raise ConfigError(
            f"{info_file} names no address and the realm lists no verifier {config.name}: say with --address "
            "where others reach this verifier"
        )
    return listed[0]


def _key_id(config: Config) -> bytes | None:
    """Of the old key; None when it is gone."""
    if not config.key.exists():
        return None
    return hashing.key_id(signatures.public_key(read_secret(config.key, "key")))


def _check_realm(store: Store, config: Config) -> None:
    owner = store.get(OWNER)
    if owner is not None and not owner.startswith(config.realm.hash):
        raise Quarantined(f"{config.data} was made for another realm than {config.realm_file} describes")


def _newest_signed(config: Config, key_id: bytes | None) -> int:
    """The newest epoch that the old register knows of; 0 if it is lost. Raises StorageInUse, StorageError."""
    if key_id is None:
        return 0
    try:
        with closing(SignOnceRegister.open(config.sign_once_register, key_id=key_id)) as register:
            row = register.newest()
            return max(register.floor, row.epoch if row else 0)
    except (RegisterMissing, RegisterCorrupt):
        return 0


def _set_aside(config: Config, info_file: Path, now: datetime) -> tuple[Path, ...]:
    """Rename what belongs to the old key; the register FIRST, so that a start in between is refused."""
    evidence = sorted(config.evidence.glob(f"{Kind.OWN_KEY}-*.json"))  # it is about the old key
    files = (
        config.sign_once_register,
        config.key,
        config.tls_key,
        config.tls_certificate,
        info_file,
        *evidence,
    )
    return set_aside(files, now)
