"""What a replica has on its disk, opened together and checked against each other before anything is served.

FOLDER/VERSION says in which form the rest is written, and that there is a rest: a database that is missing
beside it is never made anew.

The sign-once register lies outside: it is the witness against a database or a log that lost its newest
rows. Opening locks both directories; a second process is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keyserver.engines import LOCAL_ENGINE, Engine, require_engine
from keyserver.machine.rows import head_row
from keyserver.machine.state import load_position
from keyserver.machine.tables import Tables
from keyserver.signer import REKEY, Signer
from kv.free_space import Ballast
from kv.interface import Reader, StorageError, Store
from kv.keys import from_u64
from kv.leveldb import LevelDBStore
from replication.interface import ReplicatedLog
from verifier import limits
from verifier.crypto import hashing
from verifier.errors import ConfigError
from verifier.files import replace_file

DATABASE = "db"
LOG = LOCAL_ENGINE.folder
VERSION = "VERSION"
FORMAT = b"e2eks keyserver data 1\n"
FORMAT_BYTES = 256  # of any version's, to be shown
SIGNATURES_SEARCHED = 10_000  # rows of the newest epochs: with 64 replicas more than 150 of them


class LostTail(StorageError):
    """Rows that were on this disk, and that others may have seen signed, are gone."""


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The database and the log of one replica, open and locked."""

    store: Store
    log: ReplicatedLog


class UnknownVersion(StorageError):
    """The data folder is of another version, or does not say of which."""


@contextmanager
def open_data(
    folder: Path, ballast: Ballast | None = None, engine: Engine = LOCAL_ENGINE
) -> Iterator[DataDirectory]:
    """Open both, or create them in a new folder; the log is closed by its own stop(). The ballast is given up
    when the disk is full.

    Raises UnknownVersion, StorageError, StorageInUse, and ConfigError for data of another engine.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the data folder {folder} cannot be made: {error.strerror}") from error
    data = (ballast or Ballast(folder, 0)).unless_full(lambda: _open(folder, engine))
    try:
        yield data
    finally:
        data.store.close()


def _open(folder: Path, engine: Engine) -> DataDirectory:
    is_new = not read_version(folder)
    require_engine(folder, engine)
    store = LevelDBStore(folder / DATABASE, create=is_new)
    try:
        log = engine.open(folder / engine.folder, is_new)
        if is_new:
            if load_position(store).index or log.status().stored_index:
                raise UnknownVersion(
                    f"{folder} holds a database and a log but no file {VERSION}, which says in which form "
                    f"they are. If it was lost, put it back: {FORMAT.decode().strip()!r} is what this "
                    "version writes there. Nothing was changed"
                )
            write_version(folder)
    except BaseException:
        store.close()
        raise
    return DataDirectory(store, log)


def read_version(folder: Path) -> bool:
    """Whether the folder is marked as one of this version; not marked, it is new. Raises UnknownVersion."""
    path = folder / VERSION
    if not os.path.lexists(path):
        return False
    try:
        with path.open("rb") as file:
            found = file.read(FORMAT_BYTES)
    except OSError as error:
        raise UnknownVersion(f"{path} cannot be read: {error.strerror}") from error
    if found != FORMAT:
        raise UnknownVersion(
            f"{path} says {found.decode('ascii', 'backslashreplace').strip()!r}; this version of keyserver "
            f"reads {FORMAT.decode().strip()!r} only. Run the version that wrote the folder, or restore a "
            "backup that this version made. Nothing was changed"
        )
    return True


def write_version(folder: Path) -> None:
    """Mark a folder whose database and log are there as one of this version, synced. Raises StorageError."""
    try:
        replace_file(folder / VERSION, FORMAT)
    except ConfigError as error:
        raise StorageError(str(error)) from error


def check_register(reader: Reader, log: ReplicatedLog, signer: Signer) -> None:
    """Compare the register with what it must not be ahead of, nor behind.

    Raises LostTail if the database or the log ends before something this replica signed. Puts the signer into
    quarantine if the database has signatures of this replica that the register does not know, or another head
    than the register.
    """
    newest = signer.newest_signed()
    signed = newest_own_signature(reader, signer.key_id)
    if newest is None or signed > newest.epoch:
        if signed:
            signer.quarantine(
                f"the database has this replica's signature on epoch {signed}, which the sign-once register "
                f"does not know: the register is missing or old. {REKEY}"
            )
        return
    # Stored, not committed: what is committed, a member of a cluster learns only from its leader.
    applied, stored = load_position(reader).index, log.status().stored_index
    for what, index in (("database", applied), ("log", stored)):
        if index < newest.log_index:
            raise LostTail(
                f"the {what} ends at log index {index}, but this replica signed epoch {newest.epoch} at log "
                f"index {newest.log_index}: its newest rows are lost, or an old copy took their place. It "
                "must not go on under this key. Put the newest copy back, or give it a new key: "
                "keyserver keys rekey -c FILE"
            )
    head = head_row(reader, newest.epoch)
    if head is None or hashing.head_hash(head.head) != newest.head_hash:
        signer.quarantine(
            f"the sign-once register holds another head of epoch {newest.epoch} than the database: they tell "
            f"of different pasts, so another process under this key made one of them. {REKEY}"
        )


def newest_own_signature(reader: Reader, key_id: bytes) -> int:
    """The newest epoch with a stored signature by this replica; 0 if there is none among the newest rows."""
    start, stop = Tables.REPLICA_SIGNATURES.span()
    for key, _ in reader.scan(start, stop, reverse=True, limit=SIGNATURES_SEARCHED):
        epoch = Tables.REPLICA_SIGNATURES.suffix(key)[: -limits.HASH_BYTES]
        if key.endswith(key_id):
            return from_u64(epoch)
    return 0
