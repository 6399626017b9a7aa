"""What a replica has on its disk, opened together and checked against each other before anything is served.

The sign-once register lies outside: it is the witness against a database or a log that lost its newest
rows. Opening locks both directories; a second process is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keyserver.machine import commands
from keyserver.machine.state import load_position
from keyserver.machine.tables import Tables
from keyserver.signer import Signer
from kv.interface import Reader, StorageError, Store
from kv.keys import from_u64
from kv.leveldb import LevelDBStore
from replication.interface import ReplicatedLog
from replication.local import open_local_log
from verifier import limits

DATABASE = "db"
LOG = "log"
SIGNATURES_SEARCHED = 10_000  # rows of the newest epochs: with 64 replicas more than 150 of them


class LostTail(StorageError):
    """Rows that were on this disk, and that others may have seen signed, are gone."""


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The database and the log of one replica, open and locked."""

    store: Store
    log: ReplicatedLog


@contextmanager
def open_data(folder: Path) -> Iterator[DataDirectory]:
    """Open or create both; the log is closed by its own stop(). Raises StorageError, StorageInUse."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = LevelDBStore(folder / DATABASE)
    try:
        log = open_local_log(folder / LOG, commands.public_part)
        yield DataDirectory(store, log)
    finally:
        store.close()


def check_register(reader: Reader, log: ReplicatedLog, signer: Signer) -> None:
    """Compare the register with what it must not be ahead of, nor behind.

    Raises LostTail if the database or the log ends before something this replica signed. Puts the signer into
    quarantine if the database has signatures of this replica that the register does not know.
    """
    newest = signer.newest_signed()
    signed = newest_own_signature(reader, signer.key_id)
    if newest is None or signed > newest.epoch:
        if signed:
            signer.quarantine(
                f"the database has this replica's signature on epoch {signed}, which the sign-once register "
                "does not know: the register is missing or old. Give this replica a new key"
            )
        return
    applied, committed = load_position(reader).index, log.status().committed_index
    for what, index in (("database", applied), ("log", committed)):
        if index < newest.log_index:
            raise LostTail(
                f"the {what} ends at log index {index}, but this replica signed epoch {newest.epoch} at log "
                f"index {newest.log_index}: its newest rows are lost, or an old copy took their place. It "
                "must not go on under this key. Restore the newest copy, or set it up anew with another key"
            )


def newest_own_signature(reader: Reader, key_id: bytes) -> int:
    """The newest epoch with a stored signature by this replica; 0 if there is none among the newest rows."""
    start, stop = Tables.REPLICA_SIGNATURES.span()
    for key, _ in reader.scan(start, stop, reverse=True, limit=SIGNATURES_SEARCHED):
        epoch = Tables.REPLICA_SIGNATURES.suffix(key)[: -limits.HASH_BYTES]
        if key.endswith(key_id):
            return from_u64(epoch)
    return 0
