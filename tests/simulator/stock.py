"""pysyncobj as it is, with a journal that does what its own does, in the place of the shipped engine: the
control that the simulator must catch.

Its journal never syncs. A process that dies leaves what it has written; a machine that loses power leaves
nothing, for the operating system writes such pages back after half a minute only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pysyncobj.syncobj as stock
from pysyncobj import SyncObjConf
from pysyncobj.node import Node

import simulator.process
from replication.raft.events import (
    Connected,
    Disconnected,
    Event,
    Forgotten,
    Outcome,
    Proposed,
    Received,
    Role,
    Timing,
    Turn,
)
from replication.raft.messages import APPLICATION
from replication.types import LogEntry
from simulator.disk import SimulatedStore

ROLES = (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER)
_time: list[float] = [0.0]


class StockJournal:
    """What FileJournal keeps, kept whatever happens."""

    def __init__(self, store: SimulatedStore, public_part: Callable[[bytes], bytes]) -> None:
        disk = store._disk
        if disk.dark:
            disk.dark = False
            disk.views.pop("stock", None)
        kept = disk.views.setdefault("stock", {"entries": [], "term": 0, "vote": None, "commit": 1})
        self._kept: dict[str, Any] = kept

    def add(self, command: bytes, index: int, term: int) -> None:
        self._kept["entries"].append((command, index, term))

    def clear(self) -> None:
        self._kept["entries"].clear()

    def deleteEntriesFrom(self, place: int) -> None:
        del self._kept["entries"][place:]

    def __len__(self) -> int:
        return len(self._kept["entries"])

    def __getitem__(self, item: Any) -> Any:
        return self._kept["entries"][item]

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self._kept["term"], self._kept["vote"] = term, vote

    def getCurrentTerm(self) -> int:
        return int(self._kept["term"])

    def getVotedForNodeId(self) -> str | None:
        vote: str | None = self._kept["vote"]
        return vote

    def setRaftCommitIndex(self, index: int) -> None:
        self._kept["commit"] = index

    def getRaftCommitIndex(self) -> int:
        return int(self._kept["commit"])

    def onOneSecondTimer(self) -> None: ...

    # What the replica asks of its journal

    def _payloads(self, count: int) -> list[bytes]:
        return [entry[0][1:] for entry in self._kept["entries"][:count] if entry[0][:1] == APPLICATION]

    @property
    def committed_to(self) -> int:
        return len(self._payloads(self._kept["commit"]))

    @property
    def last_application(self) -> int:
        return len(self._payloads(len(self)))

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        payloads = self._payloads(self._kept["commit"])[lo - 1 : hi - 1]
        return tuple(LogEntry(lo + number, payload) for number, payload in enumerate(payloads))

    def verify_chain(self, lo: int, hi: int) -> None: ...

    def rewrite_private(self, index: int, payload: bytes) -> None: ...

    def compact(self, indices: object) -> bool:
        return True


class _Transport:
    """Queues what is sent, for after the turn."""

    ready = True

    def __init__(self) -> None:
        self.queued: list[tuple[str, Any]] = []

    def send(self, node: Node, message: Any) -> bool:
        self.queued.append((node.id, message))
        return True

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class _Stock(stock.SyncObj):  # type: ignore[misc]  # untyped parent
    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        """The replica reads what is committed from the journal."""


class StockDriver:
    """Stock SyncObj behind the face of the shipped driver."""

    def __init__(
        self,
        *,
        member: str,
        members: Sequence[str],
        journal: StockJournal,
        clock: Callable[[], float],
        chance: Any,
        timing: Timing,
    ) -> None:
        self._journal, self._clock = journal, clock
        self._nodes = {name: Node(name) for name in members}
        self._transport = _Transport()
        self._settled: list[tuple[int, Outcome]] = []
        settings = SyncObjConf(
            journalFile=journal,
            autoTick=False,
            appendEntriesUseBatch=False,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            appendEntriesPeriod=timing.heartbeat_s,
            leaderFallbackTimeout=timing.quorum_s,
            logCompactionMinEntries=1 << 60,
            logCompactionMinTime=1 << 60,
        )
        self._chance = chance
        others = [self._nodes[name] for name in sorted(members) if name != member]
        with self._now():
            self._raft = _Stock(self._nodes[member], others, settings, transport=self._transport)

    @contextmanager
    def _now(self) -> Iterator[None]:
        _time[0] = self._clock()
        with mock.patch.object(stock, "random", self._chance):
            yield

    def turn(self, inbox: Sequence[Event]) -> Turn:
        with self._now():
            for event in inbox:
                self._take(event)
            self._raft.doTick(0.0)
        outgoing, self._transport.queued = tuple(self._transport.queued), []
        settled, self._settled = tuple(self._settled), []
        leader = self._raft._SyncObj__raftLeader
        return Turn(
            outgoing=outgoing,
            committed_to=self._journal.committed_to,
            settled=settled,
            role=ROLES[self._raft._SyncObj__raftState],
            term=self._raft._SyncObj__raftCurrentTerm,
            leader=None if leader is None else leader.id,
        )

    def _take(self, event: Event) -> None:
        match event:
            case Received(sender, message):
                self._raft._SyncObj__onMessageReceived(self._nodes[sender], message)
            case Connected(member):
                self._raft._SyncObj__onNodeConnected(self._nodes[member])
            case Disconnected(member):
                self._raft._SyncObj__onNodeDisconnected(self._nodes[member])
            case Proposed(token, payload):
                self._raft._applyCommand(APPLICATION + payload, lambda _, error: self._settle(token, error))
            case Forgotten():
                pass

    def _settle(self, token: int, error: Any) -> None:
        self._settled.append((token, Outcome.UNKNOWN if error else Outcome.COMMITTED))

    def know_committed(self, application: int) -> None: ...

    def wait_s(self) -> float:
        return 0.05


@contextmanager
def stock_engine() -> Iterator[None]:
    """Every replica started inside runs on the stock engine."""
    poller = SimpleNamespace(poll=lambda _: None)
    with ExitStack() as patched:
        for owner, name, value in (
            (stock, "createJournal", lambda journal: journal),
            (stock, "createPoller", lambda _: poller),
            (stock, "PIPE_NOTIFIER_ENABLED", False),
            (stock, "monotonicTime", lambda: _time[0]),
            (simulator.process, "Journal", StockJournal),
            (simulator.process, "Driver", StockDriver),
            (stock.logger, "disabled", True),
            (simulator.process, "carried", lambda messages: messages),
        ):
            patched.enter_context(mock.patch.object(owner, name, value))
        yield
