"""A scripted replica as a stopped replica leaves it: its folder with configuration, data and register."""

from dataclasses import replace
from pathlib import Path

import msgspec
from operators import set_up
from workload.cast import derive
from workload.replica import MIN_INTERVAL_MS
from workload.script import build

from kept.replica import Kept, kept_by
from keyserver.config import Config, load_config
from keyserver.data_directory import DATABASE, LOG, write_version
from kv.leveldb import LevelDBStore
from verifier.crypto import hashing
from verifier.files import write_new
from verifier.realm import realm_json
from verifier.signonce import SignOnceRegister


def left_behind(folder: Path, seed: int, entries: int) -> tuple[Kept, Config]:
    """A replica of a realm of three that has applied so many entries, and its configuration."""
    replica = build(seed, entries)
    kept = kept_by(replica)
    config = configure(folder, kept)
    secret = derive("key", "script 3", "replica", 0)
    write_new(folder / "own.key", secret.hex().encode() + b"\n", 0o600)
    register = SignOnceRegister.create(
        config.sign_once_register, key_id=hashing.key_id(kept.recorded.public_key)
    )
    for epoch, row in kept.recorded.rows.items():
        register.sign_once(epoch, row.head_hash, lambda row=row: row)  # type: ignore[misc]
    register.close()
    fill(config, kept)
    return kept, config


def configure(folder: Path, kept: Kept) -> Config:
    """A configuration for this realm, in a folder that has no data yet."""
    made = load_config(set_up(folder / "realm").configs[0])
    realm = kept.machine.realm
    return replace(
        made,
        realm=realm,
        realm_json=realm_json(realm),
        data=folder / "data",
        head_key=folder / "own.key",
        sign_once_register=folder / "own.register",
        epochs=msgspec.structs.replace(made.epochs, min_interval_ms=MIN_INTERVAL_MS),
    )


def fill(config: Config, kept: Kept) -> None:
    """Write database and log."""
    for folder, rows in ((DATABASE, kept.rows), (LOG, kept.log)):
        store = LevelDBStore(config.data / folder)
        store.write(rows)
        store.close()
    write_version(config.data)
