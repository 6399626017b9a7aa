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


class ProposalLost(ReplicationError):
    """The payload may or may not be committed, now or later: its leader was lost. Ask the log, or repeat."""


class NoLeader(ReplicationError):
    """No majority has a leader, for longer than a proposal waits. The payload was not proposed."""


class TlsFilesRefused(ReplicationError):
    """The TLS files of the links between replicas do not fit together, or cannot be read."""


def require_size(payload: bytes) -> None:
    """Raises PayloadTooLarge."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(f"a payload has at most {PAYLOAD_BYTES_MAX} bytes")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One committed entry. Indices are dense from 1 on every replica, whatever the engine counts inside."""

    index: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """Another member of the cluster as this one sees it."""

    name: str
    connected: bool  # what this replica sends goes out
    heard_s: float | None  # seconds since its last message; None: never since the start
    problem: str = ""  # why it was not reached the last time
    match_index: int | None = None  # newest entry it has acknowledged, as a leader knows it


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatus:
    """How the log stands, for health checks and operators. Indices are 0 while it is empty.

    What follows stored_index is known by engines of clusters alone.
    """

    engine: str
    running: bool  # started, not stopped, not failed
    leader: bool  # as leader_hint()
    first_index: int  # oldest entry that read() can give
    committed_index: int  # newest entry handed out by committed()
    stored_index: int = 0  # newest entry stored durably here, committed or not
    role: str = ""  # "leader", "follower", "candidate"
    term: int = 0  # number of the leadership, rises with every election
    leader_name: str = ""  # the leader that this replica follows, itself included; "" while there is none
    members: tuple[MemberStatus, ...] = ()  # all others, by name
    warnings: tuple[str, ...] = ()  # what an operator should see to, in words


@dataclass(frozen=True, slots=True)
class PeerTls:
    """PEM files of mutually authenticated links: the own chain and key, and the one authority believed."""

    certificate: Path
    key: Path
    authority: Path
