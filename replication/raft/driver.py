"""One member of a cluster, turn by turn. The order of a turn is the argument for its safety.

No thread, no clock, no chance of its own: the simulator and the shell drive the same code.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

from kv import crash_points
from replication.raft.engine import Engine
from replication.raft.events import (
    Chance,
    Connected,
    Disconnected,
    Event,
    Forgotten,
    HandOver,
    PeerStanding,
    Proposed,
    Received,
    Timing,
    Turn,
)
from replication.raft.journal import Journal
from replication.raft.proposals import Proposals

# A wait ends a little after what it waits for, which is due only when its time is past.
PAST_S = 0.001


class Driver:
    """A member of a cluster of `members` (its own name included), on its journal.

    After any exception out of turn() the process must end: what is on the disk is known only after opening
    the journal again. All methods but `journal.read` and its like are called by one thread at a time.
    """

    def __init__(
        self,
        *,
        member: str,
        members: Sequence[str],
        journal: Journal,
        clock: Callable[[], float],
        chance: Chance,
        timing: Timing,
    ) -> None:
        """Raises ValueError when the member is not among the members, EngineUnfit."""
        self._journal = journal
        self._clock = clock
        self._engine = Engine(
            member=member, members=members, journal=journal, chance=chance, timing=timing, now=clock()
        )
        self._proposals = Proposals(self._engine, journal, chance, timing.settle_s)
        self._told_to = journal.committed_to

    def know_committed(self, application: int) -> None:
        """Say, BEFORE the first turn, that entries up to an application index were applied here.

        Raises StorageError when the log ends before.
        """
        self._journal.know_committed(application)
        self._engine.take_over_commit()
        self._told_to = self._journal.committed_to

    def waits_for_disk(self, inbox: Sequence[Event]) -> bool:
        """Tell whether a turn with this inbox may wait for the disk; if not, it takes a moment.

        So whoever calls turn() may spare a thread. It is no promise: a turn is as right either way.
        """
        if self._journal.commit_is_due or self._clock() >= self._engine.tick_at():
            return True
        return not all(isinstance(event, Received) and self._engine.stages_nothing(event) for event in inbox)

    def turn(self, inbox: Sequence[Event]) -> Turn:
        """Take in what happened, make it durable, and say what to send. Blocks on the disk.

        Raises StorageError, and JournalConflict when a leader contradicts what was committed.
        """
        if self._journal.commit_is_due:
            self._journal.stage_commit()
        self._engine.begin(self._clock())
        for event in inbox:
            self._take(event)
        self._sync_received()  # BEFORE the tick: it counts this member's own entries as stored
        self._engine.tick()
        self._proposals.place()
        self._engine.replicate()
        self._sync_own()  # BEFORE anything leaves: votes, answers and entries speak of what is durable
        return self._result()

    def wait_s(self) -> float:
        """Return how many seconds the next turn may be away if nothing happens until then."""
        due_at = min(self._engine.due_at(), self._proposals.due_at())
        now = self._clock()
        return due_at - now + PAST_S if due_at > now else 0.0

    def peers(self) -> tuple[PeerStanding, ...]:
        """Return what is known of the other members, in the order of their names."""
        return self._engine.peers()

    def _take(self, event: Event) -> None:
        match event:
            case Proposed(token, payload):
                self._proposals.take(token, payload)
            case Received(sender, message):
                if not self._engine.receive(sender, message):
                    self._proposals.receive(sender, message)
            case Connected(member):
                self._engine.connected(member)
                self._proposals.connected(member)
            case Disconnected(member):
                self._engine.disconnected(member)
                self._proposals.disconnected(member)
            case Forgotten(token):
                self._proposals.forget(token)
            case HandOver():
                self._engine.hand_over()
            case _:
                assert_never(event)

    def _sync_received(self) -> None:
        if self._journal.staged:
            crash_points.reach("P5")
            self._journal.sync()
            crash_points.reach("P6")

    def _sync_own(self) -> None:
        staged = self._journal.staged
        if staged:
            crash_points.reach("P3")
        self._journal.sync()  # publishes how far entries are committed, even if nothing is staged
        if staged:
            crash_points.reach("P4")

    def _result(self) -> Turn:
        engine, committed_to = self._engine, self._journal.committed_to
        if committed_to > self._told_to:
            crash_points.reach("P7")
            self._told_to = committed_to
        outgoing, engine.outbox.queued = tuple(engine.outbox.queued), []
        return Turn(
            outgoing=outgoing,
            committed_to=committed_to,
            settled=self._proposals.take_settled(),
            role=engine.role,
            term=engine.term,
            leader=engine.leader,
        )
