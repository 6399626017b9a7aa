"""pysyncobj.syncobj as this engine uses it: a copy of our own, with what it may not use taken out.

The only module that imports pysyncobj. In the copy, clock, chance, pickle, journals and polling are replaced;
the installed module stays as it is. `self_test` refuses any other release than the audited one.
"""

import hashlib
import importlib.util
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node

from replication.raft.events import Timing
from replication.raft.journal import Journal
from replication.raft.messages import NO_OP
from replication.raft.rows import FIRST_INDEX

VERSION = "0.3.17"
SOURCE_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
# What the engine overrides -> where the parent must call it, or our override would be dead.
HOOKS = {
    "_SyncObj__applyLogEntries": "_onTick",
    "_SyncObj__generateRaftTimeout": "_onTick",
    "_SyncObj__onBecomeLeader": "_SyncObj__onMessageReceived",
    "_SyncObj__sendAppendEntries": "_onTick",
    "_SyncObj__sendNextNodeIdx": "_SyncObj__onMessageReceived",
    "_SyncObj__tryLogCompaction": "_onTick",
    "_checkCommandsToApply": "_onTick",
}
METHODS = ("onMessageReceived", "onNodeConnected", "onNodeDisconnected", "setCurrentTerm", "setState")
FIELDS = (
    "lastResponseTime", "newAppendEntriesTime", "raftCommitIndex", "raftCurrentTerm", "raftElectionDeadline",
    "raftLastApplied", "raftLeader", "raftMatchIndex", "raftNextIndex", "raftState",
)  # fmt: skip
FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
NEVER = 1 << 60
FIRST_ENTRY = (NO_OP, FIRST_INDEX, 0)  # of every log

# The time of the turn that is going on, for the parent class: each turn sets it anew.
now_s: ContextVar[float] = ContextVar("now_s")


class EngineUnfit(RuntimeError):
    """The installed pysyncobj is not the one that was audited. The replica must not start."""


class _Refused:
    """In place of a module that must not be used: any use of it ends the process."""

    def __getattr__(self, name: str) -> Any:
        raise EngineUnfit(f"the engine reached for {name}, which it must not")


class _NoPoller:
    """The parent polls its sockets at the end of a tick; there are none."""

    def poll(self, timeout: float) -> None:
        """Return at once."""


def load_core() -> ModuleType:
    """Run the source of pysyncobj.syncobj as a module of our own. Raises EngineUnfit."""
    spec = importlib.util.find_spec("pysyncobj.syncobj")
    if spec is None or spec.loader is None or spec.origin is None:
        raise EngineUnfit("pysyncobj is not installed")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    replaced = {
        "monotonicTime": now_s.get,
        "createJournal": lambda journal: journal,
        "createPoller": lambda _: _NoPoller(),
        "pickle": _Refused(),
        "random": _Refused(),
        "time": _Refused(),
    }
    missing = replaced.keys() - vars(core).keys()
    if missing:
        raise EngineUnfit(f"pysyncobj.syncobj has no {min(missing)}")
    vars(core).update(replaced)
    source = spec.loader.get_data(spec.origin)  # type: ignore[attr-defined]  # loaders of files have it
    vars(core)["SOURCE_SHA256"] = hashlib.sha256(source).hexdigest()
    return core


def self_test(core: ModuleType | None = None) -> None:
    """Check that pysyncobj is the audited release and has every name used here. Raises EngineUnfit."""
    module = CORE if core is None else core
    if module.VERSION != VERSION or module.SOURCE_SHA256 != SOURCE_SHA256:
        raise EngineUnfit(f"pysyncobj {module.VERSION} is not the release {VERSION} that was audited")
    parent = vars(module.SyncObj)
    for name in [*HOOKS, *map(private, METHODS)]:
        if name not in parent:
            raise EngineUnfit(f"pysyncobj has no {name}")
    for name, caller in HOOKS.items():
        if name not in parent[caller].__code__.co_names:
            raise EngineUnfit(f"pysyncobj does not call {name} where it did")


def check_fields(engine: object) -> None:
    """Check that an engine has every private field used here. Raises EngineUnfit."""
    missing = [name for name in FIELDS if private(name) not in vars(engine)]
    if missing:
        raise EngineUnfit(f"pysyncobj has no field {missing[0]}")


def private(name: str) -> str:
    """Return what a private name of the parent is called from outside."""
    return f"_SyncObj__{name}"


def settings(journal: Journal, timing: Timing, on_state_changed: Any) -> SyncObjConf:
    """Return the parent's settings: no thread, no snapshots, no change of members, our journal."""
    return SyncObjConf(
        journalFile=_JournalFace(journal),
        autoTick=False,
        appendEntriesUseBatch=True,
        raftMinTimeout=timing.election_min_s,
        raftMaxTimeout=timing.election_max_s,
        appendEntriesPeriod=timing.heartbeat_s,
        leaderFallbackTimeout=timing.quorum_s,
        connectionTimeout=timing.election_max_s,
        dynamicMembershipChange=False,
        fullDumpFile=None,
        password=None,
        logCompactionMinEntries=NEVER,
        logCompactionMinTime=NEVER,
        onStateChanged=on_state_changed,
    )


class Member(Node):  # type: ignore[misc]  # untyped parent
    """A member by name. Hashed by its place among them, so that sets of members have one order everywhere."""

    def __init__(self, name: str, place: int) -> None:
        super().__init__(name)
        self._place = place

    def __hash__(self) -> int:
        return self._place


class Outbox:
    """The transport, as the parent sees it: it queues. What is queued leaves after the turn."""

    ready = True

    def __init__(self) -> None:
        self.queued: list[tuple[str, Any]] = []
        self.reached: set[str] = set()  # the members that messages can be sent to

    def send(self, member: Member, message: Any) -> bool:
        """Queue a message, if there is a link to the member."""
        if member.id in self.reached:
            self.queued.append((member.id, message))
        return True

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("setOn"):
            raise AttributeError(name)
        return lambda *_: None  # the engine's own methods deliver what happens


class _JournalFace:
    """Our journal under the names the parent uses."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.add = journal.append
        self.setRaftCommitIndex = journal.set_commit
        self.setCurrentTerm = journal.set_vote
        self.onOneSecondTimer = journal.want_commit

    def __len__(self) -> int:
        return self._journal.last

    def __getitem__(self, item: int | slice) -> Any:
        if isinstance(item, slice):
            # The parent asks for the entry before a message's entries, and for all behind it in order to
            # delete them. It is shown none: append() removes what contradicts, and only that.
            return [self._journal.entry(item.start + 1)] if item.start < self._journal.last else []
        return FIRST_ENTRY if item == 0 else self._journal.entry(self._journal.last)

    def getRaftCommitIndex(self) -> int:  # noqa: N802  # the parent's name
        return self._journal.commit

    def getCurrentTerm(self) -> int:  # noqa: N802  # the parent's name
        return self._journal.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802  # the parent's name
        return self._journal.vote


CORE = load_core()
