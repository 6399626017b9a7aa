"""What one replica knows of etcd and of the others. Written by the follower and the keeper, read by all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from replication.etcd.keyspace import Base, Report


@dataclass(frozen=True, slots=True)
class Timing:
    """How often and for how long, in seconds unless the name says otherwise."""

    tick_s: float = 0.5  # between two looks at the lease
    lease_s: int = 2  # a leader that is gone is replaced after this; etcd grants hardly less
    report_s: float = 2.0  # a replica that has stored something says so
    trim_s: float = 10.0  # what everybody has stored leaves etcd
    trim_entries: int = 1000  # the same, sooner
    survey_s: float = 10.0  # versions, sizes, alarms of all members
    send_s: float = 10.0  # a proposal is sent again and again, as long as that
    retry_s: float = 0.1  # between two attempts at whatever failed


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One member of etcd as it describes itself. Sizes in bytes."""

    endpoint: str
    problem: str = ""  # why it did not answer; the rest is then unknown
    version: str = ""
    size: int = 0  # of its file: this is what the quota limits
    size_in_use: int = 0
    quota: int = 0
    alarmed: bool = False  # some member has raised some alarm


class View:
    """Each attribute is replaced as a whole. `clock`: monotonic seconds."""

    def __init__(self, member: str, clock: Callable[[], float]) -> None:
        self.member = member
        self.clock = clock
        self.base: Base | None = None  # None: not in touch with etcd since the start
        self.base_revision = 0  # of the base row's last change: the fence of proposals
        # The base row and the revision of its last change, as of which the reports are known, too: the sender
        # may know of a later one, and not that somebody came back with an older copy.
        self.followed: tuple[Base, int] | None = None
        self.reports: dict[str, tuple[Report, float]] = {}  # by replica: its last, and when it was seen
        self.leader_name = ""
        self.leader_until = 0.0  # this replica holds the lease that long
        self.problem = "etcd has not been reached yet"  # "" while all is well
        self.arrived = 0  # bytes of entries since the last look at etcd's sizes; roughly
        self.full = ""  # why nothing new is taken
        self.warnings: tuple[str, ...] = ()
        self.attached = threading.Event()  # the base is known

    def learn_base(self, base: Base, revision: int) -> None:
        """Remember the base row, unless a newer one is known."""
        if revision > self.base_revision:
            self.base, self.base_revision = base, revision
        self.attached.set()

    @property
    def leads(self) -> bool:
        """Whether this replica holds the lease for certain."""
        return self.clock() < self.leader_until
