"""The end of a realm's history, told by each replica that is put back when every one was lost and a backup is
all there is (docs/operations/cluster.md). What the notice says and is worth: `verifier.history_break`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from keyserver.config import Config
from keyserver.data_directory import DATABASE
from keyserver.machine import views
from keyserver.machine.state import Machine, load_state
from kv.leveldb import LevelDBStore
from verifier import encoding, history_break
from verifier.crypto import hashing
from verifier.crypto.signatures import SigningKey
from verifier.errors import ConfigError, Malformed
from verifier.files import read_file, read_secret, replace_file
from verifier.history_break import NOTICE_BYTES, Notice
from verifier.types import Realm, Signature


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a restored replica's history ends."""

    epoch: int
    head: bytes
    applied_index: int
    state_digest: str


def require_explicit(config: Config, notice: Path | None) -> None:
    """Raises ConfigError for a member of a cluster, unless the break is asked for in a notice that this
    replica can sign: BEFORE anything is restored, which is done once.
    """
    if config.cluster is not None and notice is None:
        raise ConfigError(
            "one replica of a cluster is not restored: a disk that forgot what it acknowledged must not "
            "speak under the old name. Replace it: keyserver replicas new. If EVERY replica is lost, the "
            "history of the realm ends with the backup: say so with --break-history NOTICE. Nothing was "
            "changed"
        )
    if notice is not None:
        read_secret(config.head_key)
        if notice.exists():
            read_notice(notice, config.realm)


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
        if notice.head.encoded != ended.head:
            raise ConfigError(f"{path} tells of another end: put the same backup back on every host")
    else:
        head = encoding.decode_signed_head(ended.head)
        notice = Notice(head, ended.applied_index, ended.state_digest, now_ms)
    own = Signature(hashing.key_id(key.public_key), key.sign(history_break.message(realm, notice)))
    others = tuple(made for made in notice.signatures if made.key_id != own.key_id)
    signed = replace(notice, signatures=(*others, own))
    replace_file(path, history_break.encode(realm, signed))
    return signed


def read_notice(path: Path, realm: Realm) -> Notice:
    """The notice in a file, about this realm; nobody's signature is checked. Raises ConfigError."""
    try:
        return history_break.decode(realm, read_file(path, NOTICE_BYTES, "notice"))
    except Malformed as error:
        raise ConfigError(f"{path}: {error}") from None
