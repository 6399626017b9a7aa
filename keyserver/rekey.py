"""A new key for a replica in quarantine: the end of every doubt about what the old one has signed.

The old key and its register are set aside, never to be used again. The new register begins at a floor: the
newest epoch that is known anywhere, here or to the verifiers. What cannot be done here is said: the realm
itself must take the new key in, and a realm of one replica cannot.

Every state in between is quarantine or a refusal to start, and running this again finishes it. The mark of a
restored backup goes last.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trio

from keyserver import quarantine
from keyserver.config import Config
from keyserver.copies.backup_restore import RESTORED
from keyserver.copies.moment import machine_of
from keyserver.data_directory import DATABASE, DataDirectory, LostTail, check_register, open_data
from keyserver.engines import engine_of
from keyserver.machine.state import ReplicaState, genesis_state, load_state
from keyserver.own_key import Ask, Unanswered, ask_over_tls
from keyserver.signer import Signer
from verifier import encoding, limits
from verifier import epoch as epoch_law
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError, Malformed
from verifier.files import SECRET_MODE, read_secret, set_aside, sync_folder, write_new
from verifier.signonce import RegisterCorrupt, RegisterMissing, SignOnceRegister
from verifier.types import Verifier

ASKED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """`why` the old key was given up. `seen`: the newest epoch each verifier showed, None if it did not
    answer.
    """

    why: str
    old_key_id: bytes | None
    public_key: bytes
    floor: int
    state: ReplicaState
    seen: dict[str, int | None]
    retired: tuple[Path, ...]

    @property
    def key_id(self) -> bytes:
        """Of the new key."""
        return hashing.key_id(self.public_key)


def rekey(
    config: Config, now: datetime, *, healthy: bool = False, floor: int = 0, ask: Ask | None = None
) -> Rekeyed:
    """Give the configured replica, which must not run, a new key.

    Refused unless something speaks against the old one, or `healthy`. `floor` raises the newest epoch that
    the old key may have signed. Raises ConfigError, StorageInUse, StorageError, Halt.
    """
    if floor < 0:
        raise ConfigError("the floor is an epoch, so it is at least 0")
    with _locked(config) as data, _old_key(config) as signer:
        why = _doubt(config, data, signer)
        if not why and not healthy:
            raise ConfigError(
                "nothing speaks against this replica's key: its register fits its data. A new key cannot "
                "sign before the realm has taken it in. If the key was copied, say --retire-healthy-key"
            )
        state = load_state(data.store, machine_of(config)) if data else genesis_state(machine_of(config))
        seen = _newest_seen(config, state, ask or ask_over_tls(config.realm))
        signed = signer.newest_signed() if signer else None
        floor = max(
            floor,
            state.epoch,
            signer.floor if signer else 0,
            signed.epoch if signed else 0,
            *(epoch or 0 for epoch in seen.values()),
        )
        # The register FIRST, so that a start in between is quarantine.
        retired = set_aside((config.sign_once_register, config.head_key), now)
        seed = secrets.token_bytes(limits.KEY_BYTES)
        public_key = signatures.public_key(seed)
        key_id = hashing.key_id(public_key)
        SignOnceRegister.create(config.sign_once_register, key_id=key_id, floor=floor).close()
        write_new(config.head_key, seed.hex().encode() + b"\n", SECRET_MODE)
        _unmark(config)
    old = signer.key_id if signer else None
    return Rekeyed(why or "asked for", old, public_key, floor, state, seen, retired)


@contextmanager
def _locked(config: Config) -> Iterator[DataDirectory | None]:
    """The data, locked, so that the replica cannot run meanwhile; None where there is none any more."""
    if not (config.data / DATABASE).is_dir():
        yield None
        return
    with open_data(config.data, engine=engine_of(config)) as data:
        try:
            yield data
        finally:
            trio.run(data.log.stop)


@contextmanager
def _old_key(config: Config) -> Iterator[Signer | None]:
    """The signer of the old key, with its register if that can be read; None if the key is gone."""
    if not config.head_key.exists():
        yield None
        return
    seed, vrf_seed = read_secret(config.head_key), read_secret(config.vrf_key)
    key_id = hashing.key_id(signatures.public_key(seed))
    register: SignOnceRegister | None = None
    why = ""
    try:
        register = SignOnceRegister.open(config.sign_once_register, key_id=key_id)
    except (RegisterMissing, RegisterCorrupt) as error:
        why = str(error)
    with closing(Signer(config.realm, seed, vrf_seed, register, why)) as signer:
        yield signer


def _doubt(config: Config, data: DataDirectory | None, signer: Signer | None) -> str:
    """What speaks against the old key, or ""."""
    if signer is None:
        return f"the key {config.head_key} is missing"
    if data is None:
        began = signer.newest_signed() is not None or signer.floor
        lost = f"there is no database in {config.data}, but this replica has signed" if began else ""
        return signer.quarantined or lost
    try:
        if (config.data / RESTORED).exists():
            signer.quarantine("the data was restored from a backup")
        else:
            check_register(data.store, data.log, signer)
    except LostTail as error:
        return str(error)
    for path in quarantine.kept_evidence(config, signer.key_id):
        signer.quarantine(f"there is evidence that this key was used elsewhere: {path}")
    return signer.quarantined


def _newest_seen(config: Config, state: ReplicaState, ask: Ask) -> dict[str, int | None]:
    """The newest epoch that each verifier shows with the signature of one of the replicas."""
    keys = {**config.realm.genesis_policy.keys, **state.policy.keys}
    listed = [verifier for verifier in config.realm.verifiers if verifier.address]

    def newest(verifier: Verifier) -> int | None:
        try:
            shown = encoding.decode_signed_head(ask(verifier))
        except (Unanswered, Malformed):
            return None
        if (
            shown.head.realm_hash != config.realm.hash
            or not epoch_law.signers(shown, keys, {}, keys).replicas
        ):
            return None
        return shown.head.epoch

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return dict(zip((v.name for v in listed), pool.map(newest, listed), strict=True))


def _unmark(config: Config) -> None:
    """Remove the mark of a restored backup."""
    try:
        (config.data / RESTORED).unlink(missing_ok=True)
        if config.data.is_dir():
            sync_folder(config.data)
    except OSError as error:
        raise ConfigError(f"{config.data / RESTORED} cannot be removed: {error.strerror}") from None
