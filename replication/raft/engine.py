"""What a leader sends and a follower accepts: pysyncobj's log matching and commit rule, exact and bounded.

From the parent: whether a leader's entries fit, what a majority has. Ours: answers carry their term and the
place they answer, the commit index reaches no further than what was shown to match, refusals say where to go
on, nothing on the way is sent again, and what is on the way is bounded. docs/adr/0007 has the reasons.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replication.raft import core
from replication.raft.elections import LONG_AGO, Elections
from replication.raft.events import Chance, PeerStanding, Received, Timing
from replication.raft.journal import Journal
from replication.raft.messages import (
    APPLICATION,
    BATCH_BYTES_MAX,
    BATCH_ENTRIES_MAX,
    Entry,
    Message,
    batch_bytes,
)
from replication.raft.progress import Progress
from replication.raft.rows import FIRST_INDEX

# So many elections nobody misses. Whoever speaks of a later term lies, and must not bring terms to an end.
TERMS_AHEAD_MAX = 2**20
# So long the word that entries are committed waits for new entries, which take it along.
NEWS_S = 0.001
NEVER_DUE = float("inf")


class Engine(Elections):
    """begin() each turn; receive(), connected(), disconnected(); tick(); append(); replicate()."""

    def __init__(
        self,
        *,
        member: str,
        members: Sequence[str],
        journal: Journal,
        chance: Chance,
        timing: Timing,
        now: float,
    ) -> None:
        """Raises EngineUnfit; ValueError when the member is not among the members, or one is there twice."""
        self._progress = {name: Progress() for name in sorted(members) if name != member}
        self._announced = (0, 0)  # last and commit index of which all followers were sent word
        self._news_until = NEVER_DUE  # so long news of a commit alone wait for entries to go with
        self.awaited_to = 0  # newest entry that a follower asked for: it waits to hear
        self._answering: Message = {}  # the append_entries that is being answered
        self._answered: tuple[str, int, int] | None = None  # leader, term and next index of the last success
        self._answered_at = LONG_AGO
        self._hands_over_until = LONG_AGO
        super().__init__(
            member=member, members=members, journal=journal, chance=chance, timing=timing, now=now
        )

    # The turn.

    def begin(self, now: float) -> None:
        super().begin(now)
        self._batches: dict[int, tuple[Entry, ...]] = {}  # what was read for one follower serves all

    def receive(self, sender: str, message: Message) -> bool:
        """Take in a message that was checked; False when it is none of the engine's.

        Raises JournalConflict when it cannot be true.
        """
        progress, handle = self._progress.get(sender), HANDLERS.get(message["type"])
        if progress is None or message["term"] > self.term + TERMS_AHEAD_MAX:
            return True
        progress.heard = self.now
        if handle is not None:
            handle(self, self._nodes[sender], message)
        return handle is not None

    def stages_nothing(self, event: Received) -> bool:
        """Tell whether a message surely leaves nothing to sync, and asks for nothing that is on the disk."""
        message = event.message
        if message["type"] == "append_entries":
            return message["term"] == self.term and not message["entries"]
        return message["type"] == "next_node_idx" and self._journal.is_in_memory(message["next_node_idx"])

    def connected(self, member: str) -> None:
        """Take in that messages to a member reach it from now on; what was on the way is lost."""
        if member in self._progress:
            self.outbox.reached.add(member)
            self._SyncObj__onNodeConnected(self._nodes[member])
            self._restart(member, probing=True)

    def disconnected(self, member: str) -> None:
        """Take in that messages to a member are lost from now on. That of a leader is probably dead."""
        if member in self._progress:
            self.outbox.reached.discard(member)
            self._SyncObj__onNodeDisconnected(self._nodes[member])
            self._restart(member, probing=True)
            if member == self.leader:
                self._leader_heard = LONG_AGO
                self._hurry_election()

    def append(self, payloads: Sequence[bytes]) -> int:
        """Append entries of the application, as the leader; return Raft's index of the first."""
        term, first = self.term, self._journal.last + 1
        for index, payload in enumerate(payloads, first):
            self._journal.append(APPLICATION + payload, index, term)
        return first

    def hand_over(self) -> None:
        """Let another member lead, if this one does and one has all of the log within an election's time."""
        if self.leads:
            self._hands_over_until = self.now + self._timing.election_min_s

    @property
    def takes_entries(self) -> bool:
        """Whether this member leads and may append: not while it waits for a successor that is near."""
        if not self.leads or self.now >= self._hands_over_until:
            return self.leads
        match, commit = self._SyncObj__raftMatchIndex, self._journal.commit
        return not any(match[self._nodes[name]] >= commit for name in self.outbox.reached)

    def replicate(self) -> None:
        """Send followers what is new for them, and resign if that is wanted and possible."""
        if not self.leads:
            return
        is_news = self._is_news()
        for name, progress in self._progress.items():
            if progress.due or is_news:
                self._send_entries(name, progress)
        if self.now < self._hands_over_until and (successor := self._successor()) is not None:
            self._hands_over_until = LONG_AGO
            self._abdicate(successor)

    def _is_news(self) -> bool:
        """Tell whether all followers are to be sent word now; what is committed alone may wait a little."""
        newest = self._journal.last, self._journal.commit
        if newest == self._announced:
            return False
        if newest[0] == self._announced[0] and self.awaited_to <= self._announced[1]:
            self._news_until = min(self._news_until, self.now + NEWS_S)
            if self.now < self._news_until:
                return False
        self._announced, self._news_until = newest, NEVER_DUE
        return True

    def _successor(self) -> str | None:
        """The member heard last of those that have all of the log."""
        last, match = self._journal.last, self._SyncObj__raftMatchIndex
        level = [name for name in self.outbox.reached if match[self._nodes[name]] == last]
        heard = {name: self._progress[name].heard or LONG_AGO for name in level}
        return max(sorted(level), key=heard.__getitem__, default=None)

    # How it stands.

    def due_at(self) -> float:
        """Return the time at which the next turn is wanted."""
        return min(self.tick_at(), self._news_until) if self.leads else self.tick_at()

    def tick_at(self) -> float:
        """Return the time at which a tick may have something to do for the disk."""
        if not self.leads:
            return float(self._SyncObj__raftElectionDeadline)
        unsettled = not self._progress and self._journal.commit < self._journal.last
        return self.now if unsettled else float(self._SyncObj__newAppendEntriesTime)

    def peers(self) -> tuple[PeerStanding, ...]:
        """Return what is known of the other members, in the order of their names."""
        return tuple(self._standing(name, progress) for name, progress in self._progress.items())

    def _standing(self, name: str, progress: Progress) -> PeerStanding:
        match = self._SyncObj__raftMatchIndex.get(self._nodes[name], 0) if self.leads else 0
        return PeerStanding(
            member=name,
            connected=name in self.outbox.reached,
            heard_s=None if progress.heard is None else max(0.0, self.now - progress.heard),
            matched_to=self._journal.application(match) if match else None,
        )

    # Following.

    def _take_append_entries(self, sender: core.Member, message: Message) -> None:
        if message["term"] < self.term:
            self.tell_higher_term(sender.id)
            return
        if message["term"] == self.term and (self.leads or self.leader not in (None, sender.id)):
            return  # a term has one leader; whoever says so is mistaken or lies
        self._leader_heard = self.now
        self._pre_votes, self._may_run = set(), False
        self._answering = message
        shown = message["prevLogIdx"] + len(message["entries"])
        clamped = {**message, "commit_index": min(message["commit_index"], shown)}
        self._SyncObj__onMessageReceived(sender, clamped)

    def _is_but_news(self) -> bool:
        """Tell whether what is answered only says what is committed, just after an answer was given."""
        lately = self.now - self._answered_at < self._timing.heartbeat_s / 2
        return lately and not self._answering["entries"]

    # Leading.

    def _take_next_node_idx(self, sender: core.Member, message: Message) -> None:
        """Believe an answer to this leader's own messages; let the parent count it."""
        if not self.leads or message["term"] != self.term:
            return  # an answer to another leadership
        if message["next_node_idx"] > self._journal.last + 1:
            return
        progress, match = self._progress[sender.id], self._SyncObj__raftMatchIndex[sender]
        planned = self._SyncObj__raftNextIndex[sender]
        if message["success"]:
            self._SyncObj__onMessageReceived(sender, {**message, "reset": False})
            # The parent would send again what is on the way already.
            self._SyncObj__raftNextIndex[sender] = max(planned, message["next_node_idx"])
            progress.acknowledged(message["next_node_idx"])
            progress.due = planned <= self._journal.last and progress.may_send()
            return
        refused, match = message["prevLogIdx"], max(match, FIRST_INDEX)  # with which every log begins
        self._SyncObj__lastResponseTime[sender] = self.now
        if refused <= match or (progress.probing and refused != planned - 1):
            return  # an answer to what was sent before we knew better
        resumed = max(match + 1, min(message["next_node_idx"], refused))
        self._SyncObj__onMessageReceived(sender, {**message, "next_node_idx": resumed})
        progress.restart(probing=True)

    def _restart(self, member: str, *, probing: bool) -> None:
        """Send again, when asked, what was not acknowledged; answer anew what was answered."""
        self._answered = None
        node = self._nodes[member]
        if self.leads and self._SyncObj__raftMatchIndex[node]:
            self._SyncObj__raftNextIndex[node] = self._SyncObj__raftMatchIndex[node] + 1
        self._progress[member].restart(probing=probing)

    def _send_entries(self, member: str, progress: Progress) -> None:
        """Send one follower what the window has room for, or else one empty message with the commit index."""
        progress.due = False
        node = self._nodes[member]
        if member not in self.outbox.reached:
            return
        first = self._SyncObj__raftNextIndex[node]
        sent = False
        while first <= self._journal.last and progress.may_send():
            entries = self._batch(first)
            self._send_append(member, first - 1, entries)
            first += len(entries)
            progress.sent(first - 1, batch_bytes([entry[0] for entry in entries]))
            sent = True
        self._SyncObj__raftNextIndex[node] = first
        if not sent:
            self._send_append(member, first - 1, ())

    def _send_append(self, member: str, previous: int, entries: tuple[Entry, ...]) -> None:
        place = {"prevLogIdx": previous, "prevLogTerm": self._journal.term_at(previous), "entries": entries}
        commit = {"term": self.term, "commit_index": self._journal.commit}
        self.send(member, {"type": "append_entries", **commit, **place})

    def _batch(self, first: int) -> tuple[Entry, ...]:
        batch = self._batches.get(first)
        if batch is None:
            batch = self._journal.batch(first, BATCH_ENTRIES_MAX, BATCH_BYTES_MAX)
            self._batches[first] = batch
        return batch

    # In place of the parent's methods of these names.

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        for progress in self._progress.values():
            progress.restart(probing=False)
        self._news_until = NEVER_DUE
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """The heartbeat: a word to everybody, bounded."""
        self._SyncObj__newAppendEntriesTime = self.now + self._timing.heartbeat_s
        for name, progress in self._progress.items():
            self._send_entries(name, progress)

    def _SyncObj__sendNextNodeIdx(  # noqa: N802
        self,
        node: core.Member,
        reset: bool = False,
        nextNodeIdx: int | None = None,  # noqa: N803
        success: bool = False,
    ) -> None:
        """Answer a leader. A contradiction is answered with what surely fits: all that is committed here."""
        follows = self._journal.last + 1 if nextNodeIdx is None else nextNodeIdx
        if reset and nextNodeIdx is not None:
            follows = self._journal.commit + 1
        place = self._answering["prevLogIdx"]
        answer = {"reset": reset, "success": success, "prevLogIdx": place, "next_node_idx": follows}
        said = (node.id, self.term, follows) if success else None
        if said is not None and said == self._answered and self._is_but_news():
            return
        self._answered, self._answered_at = said, self.now
        self.send(node.id, {"type": "next_node_idx", "term": self.term, **answer})


HANDLERS: Mapping[str, Callable[[Any, Any, Message], None]] = {
    "pre_vote": Engine._take_pre_vote,
    "pre_vote_ok": Engine._take_pre_vote_ok,
    "request_vote": Engine._take_request_vote,
    "response_vote": Engine._take_response_vote,
    "append_entries": Engine._take_append_entries,
    "next_node_idx": Engine._take_next_node_idx,
    "abdicate": Engine._take_abdicate,
    "higher_term": Engine._take_higher_term,
}
