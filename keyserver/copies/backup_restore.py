"""A backup made into a file, verified, and put back into an empty data directory.

A restored replica must not sign: what it signed after the backup was made is not in it, and its sign-once
register never is. So a restored data directory is marked, and a replica with the mark starts in quarantine
until it gets a new key.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from keyserver.cluster import RAFT
from keyserver.config import Config
from keyserver.copies.backup import BackupDamaged, Copy, Manifest, Part
from keyserver.copies.check import Progress, Report, check
from keyserver.copies.moment import scratch_store
from keyserver.data_directory import DATABASE, write_version
from keyserver.engines import Engine, engine_of
from keyserver.machine import commands
from keyserver.machine.state import Machine
from kv.keys import u64
from kv.leveldb import LevelDBStore
from replication.stored import restored_rows
from verifier.errors import ConfigError
from verifier.files import SECRET_MODE, sync_folder, write_new
from verifier.types import Realm

RESTORED = "restored.json"  # in the data directory: its rows came from a backup, and must not be signed on
RESTORED_SCHEMA = "e2eks.restored/1"
DRAFT_SUFFIX = ".restoring"
BATCH_BYTES = 4 * 1024 * 1024
MANIFEST = "manifest"


# Making


def write_backup(target: Path, pieces: Iterable[bytes]) -> tuple[Manifest, str]:
    """Write a stream to a new file, private and synced, and read it back; its manifest and SHA-256.

    No file is left behind unless it is whole. Raises ConfigError, BackupDamaged, StorageError.
    """
    draft = target.with_name(target.name + ".new")
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists already and is not overwritten")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, SECRET_MODE)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), SECRET_MODE)
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        found = verify_seal(draft)
        draft.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return found


# Reading


@contextmanager
def opened(path: Path) -> Iterator[Copy]:
    """The backup in a file. Raises ConfigError, BackupDamaged."""
    try:
        file: BinaryIO = path.open("rb")
    except OSError as error:
        raise ConfigError(f"the backup {path} cannot be read: {error.strerror}") from None
    with file:
        yield Copy(file.read)


def verify_seal(path: Path) -> tuple[Manifest, str]:
    """Manifest and SHA-256 of a whole backup. Raises ConfigError, BackupDamaged."""
    with opened(path) as copy:
        for _ in copy.records():
            pass
        return copy.manifest, copy.seal["sha256"]


def verify_backup(path: Path, realm: Realm | None, progress: Progress) -> tuple[Manifest, Report]:
    """Everything about a backup: its seal, then its contents by replay.

    `realm`, if given, is the one it must be of. Raises ConfigError, BackupDamaged.
    """
    verify_seal(path)
    with opened(path) as copy:
        manifest = copy.manifest
        own = manifest.parse_realm()
        require_realm(manifest, realm or own)
        machine = Machine(own, manifest.min_epoch_interval_ms)
        with scratch_store(manifest.applied_index) as scratch:
            report = check(machine, copy.subject(), scratch, progress=progress)
    said = manifest.state_digest, manifest.epoch
    if said != (report.digest.hex(), report.epoch):
        report.faults.add(MANIFEST, "", "state digest or epoch are others than the log, replayed, gives")
    return manifest, report


def require_realm(manifest: Manifest, realm: Realm) -> None:
    """Raises ConfigError for a backup of another realm."""
    if manifest.realm_hash != realm.hash.hex():
        raise ConfigError(
            f"the backup is of realm {manifest.realm} with hash {manifest.realm_hash}, not of {realm.name} "
            f"with hash {realm.hash.hex()}. Use the realm file that belongs to it"
        )


# Restoring


def restore(path: Path, config: Config, now_ms: int) -> Manifest:
    """Put a backup into the configured data directory, which must be missing or empty; nothing or all of it.

    Raises ConfigError, BackupDamaged, StorageError.
    """
    manifest, _ = verify_seal(path)
    require_realm(manifest, config.realm)
    data = config.data
    require_empty(data)
    draft = data.with_name(data.name + DRAFT_SUFFIX)
    shutil.rmtree(draft, ignore_errors=True)  # of a restore that was cut off
    try:
        draft.mkdir(mode=0o700, parents=True)
        write_new(draft / RESTORED, _mark(manifest, now_ms), SECRET_MODE)  # FIRST: no rows without the mark
        with opened(path) as copy:
            _fill(draft, copy, engine_of(config))
        write_version(draft)
        sync_folder(draft)
        draft.rename(data)
        sync_folder(data.parent)
    except OSError as error:
        raise ConfigError(f"{data} cannot be written: {error.strerror}") from None
    return manifest


def require_empty(data: Path) -> None:
    """Raises ConfigError unless there is nothing where a backup is to be restored."""
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise ConfigError(
            f"{data} is not empty. A backup is restored into an empty data directory only: move the old one "
            "away, and keep it until the restored replica has its new key"
        )


def _mark(manifest: Manifest, now_ms: int) -> bytes:
    mark = {
        "schema": RESTORED_SCHEMA,
        "applied_index": manifest.applied_index,
        "epoch": manifest.epoch,
        "state_digest": manifest.state_digest,
        "restored_ms": now_ms,
    }
    return (json.dumps(mark, indent=2) + "\n").encode()


def _fill(folder: Path, copy: Copy, engine: Engine) -> None:
    database, log = LevelDBStore(folder / DATABASE), LevelDBStore(folder / engine.folder)
    try:
        rows, entries = _Batches(database), _Batches(log)

        def payloads() -> Iterator[bytes]:
            """Those of the log; the rows on the way go to the database."""
            expected = 1
            for part, (key, value) in copy.records():
                if part is not Part.LOG:
                    rows.put(key, value)
                    continue
                if key != u64(expected):
                    raise BackupDamaged(f"the backup lacks log entry {expected}")
                yield value
                expected += 1

        in_raft = engine.name == RAFT
        for row in restored_rows(payloads(), commands.public_part, raft_member=in_raft):
            entries.put(*row)
        rows.write()
        entries.write()
    finally:
        database.close()
        log.close()


class _Batches:
    """Rows written some megabytes at a time."""

    def __init__(self, store: LevelDBStore) -> None:
        self._store = store
        self._rows: dict[bytes, bytes | None] = {}
        self._bytes = 0

    def put(self, key: bytes, value: bytes) -> None:
        self._rows[key] = value
        self._bytes += len(value)
        if self._bytes >= BATCH_BYTES:
            self.write()

    def write(self) -> None:
        self._store.write(self._rows)
        self._rows, self._bytes = {}, 0
