"""What can be checked and backed up: the directory of a stopped replica, or the stream of a running one.

A stopped replica's directories are opened, and locked, as they are: nothing is repaired, created or written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from keyserver.config import Config
from keyserver.copies.backup import other_rows
from keyserver.copies.check import LOG, STORAGE, Faults, Subject
from keyserver.copies.check_register import REGISTER, Recorded
from keyserver.data_directory import DATABASE, VERSION, UnknownVersion, read_version
from keyserver.engines import engine_of
from keyserver.machine import commands
from keyserver.machine.codes import Halt
from keyserver.machine.state import Machine, load_position
from keyserver.machine.tables import Tables
from kv.interface import Reader, StorageError, StorageInUse, Store
from kv.leveldb import LevelDBStore
from kv.memory import MemoryStore
from replication.stored import EntryDamaged, stored_entries
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError
from verifier.files import read_secret
from verifier.signonce import read_rows

# The replayed rows of so few log entries are some megabytes, even where each carries hundreds of updates.
ENTRIES_IN_MEMORY = 32


def machine_of(config: Config) -> Machine:
    """The machine that the configured replica runs."""
    return Machine(config.realm, config.epochs.min_interval_ms)


@contextmanager
def scratch_store(entries: int) -> Iterator[Store]:
    """An empty store for the rows of so many log entries, which is thrown away."""
    if entries <= ENTRIES_IN_MEMORY:
        yield MemoryStore()
        return
    with tempfile.TemporaryDirectory(prefix="e2eks-check-") as folder:
        store = LevelDBStore(Path(folder) / "rows")
        try:
            yield store
        finally:
            store.close()


@contextmanager
def stopped_replica(config: Config) -> Iterator[Subject]:
    """The database and the log of a stopped replica.

    What cannot be opened is a fault of the subject, which then has no rows. Raises ConfigError where there is
    nothing, StorageInUse while a process has it open.
    """
    require_data(config)
    found = Faults()
    _check_version(config, found)
    with ExitStack() as stack:
        rows = _open(stack, config.data / DATABASE, STORAGE, found)
        log = _open(stack, config.data / engine_of(config).folder, LOG, found)
        if rows is None or log is None:
            yield Subject(None, (), (), (), found)
        else:
            yield subject_of(rows, log, found)


def subject_of(rows: Reader, log: Reader, found: Faults) -> Subject:
    """A database and the rows of a log, to be checked."""
    applied = _applied(rows, found)
    if applied is None:
        return Subject(None, (), (), (), found)
    proofs = rows.scan(*Tables.VRF_CACHE.span())
    return Subject(applied, proofs, linked_entries(log, found), other_rows(rows), found)


def require_data(config: Config) -> None:
    """Raises ConfigError unless the configured replica has a database."""
    if not (config.data / DATABASE).is_dir():
        raise ConfigError(
            f"there is no database in {config.data}: the replica has not run with this configuration"
        )


def _check_version(config: Config, found: Faults) -> None:
    try:
        if not read_version(config.data):
            found.add(STORAGE, VERSION, f"the file {config.data / VERSION} is missing")
    except UnknownVersion as error:
        found.add(STORAGE, VERSION, str(error))


def recorded_by(config: Config, found: Faults, *, online: bool = False) -> Recorded | None:
    """The configured replica's sign-once register; None and a fault where it cannot be read.

    Raises ConfigError for a head key that cannot be read.
    """
    public_key = signatures.public_key(read_secret(config.head_key))
    try:
        floor, rows = read_rows(config.sign_once_register, key_id=hashing.key_id(public_key))
    except StorageError as error:
        found.add(REGISTER, "", str(error))
        return None
    return Recorded(public_key, floor, rows, online)


def linked_entries(log: Reader, found: Faults) -> Iterator[tuple[int, bytes]]:
    """(index, payload) of a log's rows as long as they continue the chain; where they do not, a fault."""
    try:
        yield from stored_entries(log, commands.public_part)
    except EntryDamaged as error:
        found.add(LOG, str(error.index), error.reason)


def _open(stack: ExitStack, folder: Path, part: str, found: Faults) -> LevelDBStore | None:
    try:
        store = LevelDBStore(folder, create=False)
    except StorageInUse:
        raise
    except StorageError as error:
        found.add(part, "", str(error))
        return None
    stack.callback(store.close)
    return store


def _applied(rows: Reader, found: Faults) -> int | None:
    """Where the database stands; None and a fault if it does not say."""
    try:
        return load_position(rows).index
    except (Halt, StorageError) as error:
        found.add(Tables.APPLIED.name, Tables.APPLIED.key().hex(), str(error))
        return None
