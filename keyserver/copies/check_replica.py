"""Check the configured replica, running or stopped, as `keyserver check` does."""

from __future__ import annotations

from dataclasses import dataclass

from keyserver.config import Config
from keyserver.copies.backup import Copy
from keyserver.copies.check import Progress, Report, Subject, check
from keyserver.copies.check_register import Recorded
from keyserver.copies.moment import machine_of, recorded_by, require_data, scratch_store, stopped_replica
from keyserver.operator_socket import running_replica


@dataclass(frozen=True, slots=True)
class Checked:
    """A report, and whether the replica ran meanwhile."""

    report: Report
    running: bool


def check_replica(config: Config, progress: Progress) -> Checked:
    """Check the replica as it stands. A running one sends a copy of this moment, and works on.

    Raises ConfigError where there is nothing, StorageInUse for a process without operator socket,
    BackupDamaged when a running replica's copy breaks off.
    """
    require_data(config)
    with running_replica(config.data) as read:
        if read is not None:
            copy = Copy(read)
            subject = copy.subject()
            recorded = recorded_by(config, subject.found, online=True)  # AFTER the copy began
            return Checked(_check(config, subject, recorded, progress), running=True)
    with stopped_replica(config) as subject:
        recorded = recorded_by(config, subject.found)
        return Checked(_check(config, subject, recorded, progress), running=False)


def _check(config: Config, subject: Subject, recorded: Recorded | None, progress: Progress) -> Report:
    with scratch_store(subject.applied or 0) as scratch:
        return check(machine_of(config), subject, scratch, recorded=recorded, progress=progress)
