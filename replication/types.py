"""What the log hands out, what it refuses, and how much it takes."""

from dataclasses import dataclass
from pathlib import Path

# The contract's limit of a log entry. Larger is refused before it can be stored, for every engine alike.
PAYLOAD_BYTES_MAX = 1024 * 1024
# One run handed out, and one synced batch: large enough to share a sync among all who wait, small enough
# that a replica replaying a long log holds some megabytes of it at a time.
RUN_ENTRIES_MAX = 1024
RUN_BYTES_MAX = 4 * 1024 * 1024
# Proposals waiting to be stored. Beyond it the disk is hopelessly behind, and memory must not pay for it.
WAITING_BYTES_MAX = 64 * 1024 * 1024


class ReplicationError(Exception):
    """A proposal was not taken. The log itself is well; a broken log raises kv's StorageError."""


class PayloadTooLarge(ReplicationError):
    """The payload exceeds PAYLOAD_BYTES_MAX. It was not proposed."""


class LogOverloaded(ReplicationError):
    """More than WAITING_BYTES_MAX wait already. The payload was not proposed; try later."""


class LogNotRunning(ReplicationError):
    """The log is not started, or is stopping. Whether a payload already proposed is lost is not known."""


class PublicPartChanged(ReplicationError):
    """A stored entry may only be replaced by one with the same public part. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One committed entry. Indices are dense from 1 on every replica, whatever the engine counts inside."""

    index: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatus:
    """How the log stands, for health checks and operators. Indices are 0 while it is empty."""

    engine: str
    running: bool  # started, not stopped, not failed
    leader: bool  # as leader_hint()
    first_index: int  # oldest entry that read() can give
    committed_index: int  # newest entry handed out by committed()


@dataclass(frozen=True, slots=True)
class PeerTls:
    """PEM files of mutually authenticated links: the own chain and key, and the one authority believed."""

    certificate: Path
    key: Path
    authority: Path
