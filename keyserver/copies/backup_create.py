"""A backup of the configured replica, running or stopped, as `keyserver backup create` makes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from keyserver.config import Config
from keyserver.copies.backup import CHUNK_BYTES, BackupDamaged, Manifest, Origin, copy_stream
from keyserver.copies.backup_restore import write_backup
from keyserver.copies.moment import machine_of, require_data
from keyserver.data_directory import open_data
from keyserver.engines import engine_of
from keyserver.operator_socket import running_replica


def create_backup(config: Config, target: Path) -> tuple[Manifest, str]:
    """Write the replica as it stands into the new file `target`; its manifest and SHA-256.

    Raises ConfigError, StorageInUse, StorageError, and BackupDamaged when a running replica breaks off.
    """
    require_data(config)
    with running_replica(config.data) as read:
        pieces = _stopped(config) if read is None else _sent(read)
        manifest, digest = write_backup(target, pieces)
    if manifest.log_fault:
        target.unlink()
        raise BackupDamaged(f"the replica's log is damaged: {manifest.log_fault}. Run keyserver check")
    return manifest, digest


def origin_of(config: Config) -> Origin:
    """What a backup of the configured replica says about itself, now."""
    return Origin(machine_of(config), config.realm_json, config.replica_name, time.time_ns() // 1_000_000)


def _sent(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(CHUNK_BYTES):
        yield piece


def _stopped(config: Config) -> Iterator[bytes]:
    with open_data(config.data, engine=engine_of(config)) as data:
        try:
            data.log.verify_chain(1, data.log.status().committed_index + 1)
            yield from copy_stream(origin_of(config), data.store, data.log)
        finally:
            trio.run(data.log.stop)
