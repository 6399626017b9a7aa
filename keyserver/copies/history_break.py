"""The notice that a realm's history ends: what is published when every replica was lost and a backup is all
there is (docs/operations/cluster.md).

It names the newest head that the backup knows. Each replica that is put back signs it, with the key it had;
who trusts the realm's replicas can so tell an accident that was admitted from a fork that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from keyserver.config import Config
from keyserver.data_directory import DATABASE
from keyserver.machine import views
from keyserver.machine.state import Machine, load_state
from kv.keys import u64
from kv.leveldb import LevelDBStore
from verifier import encoding
from verifier.crypto import hashing, signatures
from verifier.crypto.signatures import SigningKey
from verifier.errors import ConfigError, Malformed
from verifier.files import read_file, read_secret, replace_file
from verifier.types import Realm

SCHEMA = "e2eks.history-break/1"
NOTICE_BYTES = 256 * 1024


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key_id: bytes
    signature: bytes


class Notice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. `head`: the newest head of the backup, a SignedEpochHead; `state_digest` where it ends."""

    schema: str
    realm: str
    realm_hash: str
    epoch: int
    head: bytes
    applied_index: int
    state_digest: str
    made_ms: int
    signatures: tuple[_Signed, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a restored replica's history ends."""

    epoch: int
    head: bytes
    applied_index: int
    state_digest: str


def require_explicit(config: Config, notice: Path | None) -> None:
    """Raises ConfigError for a member of a cluster, unless the break is asked for."""
    if config.cluster is not None and notice is None:
        raise ConfigError(
            "one replica of a cluster is not restored: a disk that forgot what it acknowledged must not "
            "speak under the old name. Replace it: keyserver replicas new. If EVERY replica is lost, the "
            "history of the realm ends with the backup: say so with --break-history NOTICE. Nothing was "
            "changed"
        )


def history_end(config: Config, applied_index: int, state_digest: str) -> Ended:
    """Where the configured replica's restored rows end. Raises StorageError, Halt, ConfigError."""
    store = LevelDBStore(config.data / DATABASE, create=False)
    try:
        state = load_state(store, Machine(config.realm, config.epochs.min_interval_ms))
        if not state.signed_epoch:
            raise ConfigError("the backup has no signed epoch: no history ends, set up a new realm")
        head = views.signed_head(store, state.signed_epoch)
    finally:
        store.close()
    return Ended(state.signed_epoch, head, applied_index, state_digest)


def sign_notice(path: Path, config: Config, ended: Ended, now_ms: int) -> Notice:
    """Make the notice, or add this replica's signature to it; what is then in the file.

    Raises ConfigError, also for a notice of another end.
    """
    realm, key = config.realm, SigningKey(read_secret(config.head_key))
    if path.exists():
        notice = read_notice(path, realm)
        if (notice.epoch, notice.head) != (ended.epoch, ended.head):
            raise ConfigError(f"{path} tells of another end: put the same backup back on every host")
    else:
        where = (ended.epoch, ended.head, ended.applied_index, ended.state_digest)
        notice = Notice(SCHEMA, realm.name, realm.hash.hex(), *where, now_ms)
    own = _Signed(hashing.key_id(key.public_key), key.sign(_message(realm, notice)))
    others = tuple(made for made in notice.signatures if made.key_id != own.key_id)
    signed = msgspec.structs.replace(notice, signatures=(*others, own))
    replace_file(path, msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n")
    return signed


def read_notice(path: Path, realm: Realm) -> Notice:
    """The notice in a file, about this realm. Raises ConfigError; `signed_by` says who stands for it."""
    try:
        notice = msgspec.json.decode(read_file(path, NOTICE_BYTES, "notice"), type=Notice)
        head = encoding.decode_signed_head(notice.head).head
    except (msgspec.MsgspecError, Malformed) as error:
        raise ConfigError(f"{path} is no notice of schema {SCHEMA}: {error}") from None
    fits = (SCHEMA, realm.hash.hex(), realm.hash, head.epoch)
    if (notice.schema, notice.realm_hash, head.realm_hash, notice.epoch) != fits:
        raise ConfigError(f"{path} does not tell of this realm, or does not fit together")
    return notice


def signed_by(notice: Notice, realm: Realm, keys: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """Key ids of `keys` (id -> public key) whose signature on the notice is valid."""
    message = _message(realm, notice)
    return frozenset(
        made.key_id
        for made in notice.signatures
        if made.key_id in keys and signatures.verify(keys[made.key_id], message, made.signature)
    )


def _message(realm: Realm, notice: Notice) -> bytes:
    head = encoding.decode_signed_head(notice.head).head
    return hashing.tagged(
        "e2eks/1/history-break", realm.hash, u64(notice.epoch), head.hash, u64(notice.made_ms)
    )
