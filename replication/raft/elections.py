"""Who leads: pysyncobj's elections, and around them what they lack.

From the parent: whose log is good enough for a vote, that a member votes once in a term, what is committed,
and when a leader without a majority gives up. Ours: a member asks before it disturbs anybody with a new term
(pre-vote), whoever hears a leader helps nobody to replace it, and a vote counts once, however often it comes.

Names of the parent are private to it: `self._SyncObj__raftLog` is its `self.__raftLog`. Where such a method
is defined here it replaces the parent's, which calls it by that name. Nothing here waits, sends or syncs.
"""

from collections.abc import Sequence

from replication.raft import core
from replication.raft.events import Chance, Role, Timing
from replication.raft.journal import Journal
from replication.raft.messages import Message

LONG_AGO = float("-inf")
ROLES = {core.FOLLOWER: Role.FOLLOWER, core.CANDIDATE: Role.CANDIDATE, core.LEADER: Role.LEADER}


class Elections(core.CORE.SyncObj):  # type: ignore[misc,name-defined]  # untyped parent
    """One member's part in elections. begin() each turn, then what came, then tick()."""

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
        core.self_test()
        if member not in members or len(set(members)) != len(members):
            raise ValueError("a member is one of the members, which are distinct")
        self.begin(now)
        self.member = member
        self.others = tuple(name for name in sorted(members) if name != member)
        self.outbox = core.Outbox()
        self._journal = journal
        self._chance = chance
        self._timing = timing
        self._nodes = {name: core.Member(name, place) for place, name in enumerate(sorted(members))}
        self._leader_heard = LONG_AGO
        self._pre_votes: set[str] = set()
        self._may_run = False  # a majority would vote for this member: the next tick may begin an election
        self._early_vote: tuple[core.Member, Message] | None = None  # asked for while a leader was heard
        self._votes: set[tuple[int, str]] = set()  # term, voter
        settings = core.settings(journal, timing, self._on_state_changed)
        nodes = [self._nodes[name] for name in self.others]
        super().__init__(self._nodes[member], nodes, settings, transport=self.outbox)
        core.check_fields(self)
        self.take_over_commit()
        if not self.others:
            self._SyncObj__raftElectionDeadline = LONG_AGO

    def begin(self, now: float) -> None:
        """Begin a turn at the time `now`, in seconds of a clock that never goes back."""
        self.now = now
        core.now_s.set(now)

    def take_over_commit(self) -> None:
        """Take the commit index from the journal."""
        self._SyncObj__raftCommitIndex = self._SyncObj__raftLastApplied = self._journal.commit

    def tick(self) -> None:
        """Let time pass: commit what a majority has, ask for votes, send heartbeats."""
        if not self.leads and not self._may_run and self._SyncObj__raftElectionDeadline < self.now:
            self._ask_for_pre_votes()
        self._onTick(0.0)
        if self._may_run:
            self._pre_votes, self._may_run = set(), False

    def send(self, member: str, message: Message) -> None:
        """Queue a message to a member."""
        self.outbox.send(self._nodes[member], message)

    def tell_higher_term(self, member: str) -> None:
        """Tell a member that the term it speaks of is over."""
        self.send(member, {"type": "higher_term", "term": self.term})

    @property
    def leads(self) -> bool:
        """Whether this member believes to be the leader."""
        return bool(self._SyncObj__raftState == core.LEADER)

    @property
    def role(self) -> Role:
        """What this member is in its term."""
        return ROLES[self._SyncObj__raftState]

    @property
    def term(self) -> int:
        """The newest term this member knows of."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> str | None:
        """The leader of the term, as far as this member knows."""
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def reachable_leader(self) -> str | None:
        """The leader of the term, if it is this member or proposals can be sent to it."""
        return self.leader if self.leads or self.leader in self.outbox.reached else None

    # What others say.

    def _is_majority(self, count: int) -> bool:
        return 2 * count > len(self._nodes)

    def _hears_leader(self) -> bool:
        """Tell whether a leader was heard so lately that nobody should be helped to replace it."""
        return self.leads or self.now - self._leader_heard < self._timing.election_min_s / 2

    def _last_log(self) -> dict[str, int]:
        last = self._journal.last
        return {"last_log_index": last, "last_log_term": self._journal.term_at(last)}

    def _is_behind(self, message: Message) -> bool:
        mine = self._last_log()
        return _log_order(message) < _log_order(mine)

    def _ask_for_pre_votes(self) -> None:
        """Ask whether others would vote, before a new term disturbs anybody."""
        self._SyncObj__raftLeader = None
        self._SyncObj__raftElectionDeadline = self.now + self._SyncObj__generateRaftTimeout()
        self._pre_votes = set()
        for name in self.others:
            self.send(name, {"type": "pre_vote", "term": self.term + 1, **self._last_log()})
        self._count_pre_vote(self.member)

    def _count_pre_vote(self, voter: str) -> None:
        self._pre_votes.add(voter)
        if self._is_majority(len(self._pre_votes)):
            self._may_run = True
            self._SyncObj__raftElectionDeadline = LONG_AGO

    def _take_pre_vote(self, sender: core.Member, message: Message) -> None:
        if message["term"] <= self.term:
            self.tell_higher_term(sender.id)
        elif not self._hears_leader() and not self._is_behind(message):
            self.send(sender.id, {"type": "pre_vote_ok", "term": message["term"]})

    def _take_pre_vote_ok(self, sender: core.Member, message: Message) -> None:
        asked = self._pre_votes and not self._may_run and not self.leads
        if asked and message["term"] == self.term + 1:
            self._count_pre_vote(sender.id)

    def _take_request_vote(self, sender: core.Member, message: Message) -> None:
        if message["term"] < self.term:
            self.tell_higher_term(sender.id)
        elif self._hears_leader():
            self._early_vote = sender, message  # it may be faster than the word of the leader that abdicates
        else:
            self._SyncObj__onMessageReceived(sender, message)

    def _take_response_vote(self, sender: core.Member, message: Message) -> None:
        vote = message["term"], str(sender.id)
        if vote not in self._votes:  # the parent counts messages, not voters
            self._votes = {known for known in self._votes if known[0] == self.term} | {vote}
            self._SyncObj__onMessageReceived(sender, message)

    def _take_higher_term(self, sender: core.Member, message: Message) -> None:  # noqa: ARG002  # as all handlers
        if message["term"] > self.term:
            self._SyncObj__setCurrentTerm(message["term"], None)
            self._SyncObj__setState(core.FOLLOWER)
            self._SyncObj__raftLeader = None

    def _abdicate(self, successor: str) -> None:
        """Lead no longer, and tell all who is to be the next (Ongaro's thesis, section 3.10)."""
        for name in self.others:
            self.send(name, {"type": "abdicate", "term": self.term, "successor": name == successor})
        self._SyncObj__setState(core.FOLLOWER)
        self._forget_leader()

    def _take_abdicate(self, sender: core.Member, message: Message) -> None:
        """Believe the leader itself, and nobody else, that it may be replaced."""
        if message["term"] != self.term or self.leader != sender.id:
            return
        self._forget_leader()
        if message["successor"]:
            self._may_run, self._SyncObj__raftElectionDeadline = True, LONG_AGO
        elif self._early_vote is not None:
            self._take_request_vote(*self._early_vote)

    def _forget_leader(self) -> None:
        self._SyncObj__raftLeader = None
        self._leader_heard = LONG_AGO
        self._hurry_election()  # for the case that nobody succeeds

    def _hurry_election(self) -> None:
        soon = self.now + self._SyncObj__generateRaftTimeout()
        self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, soon)

    def _on_state_changed(self, old: int, new: int) -> None:
        self._pre_votes, self._may_run = set(), False
        if old == core.LEADER and new != core.LEADER:
            self._SyncObj__raftElectionDeadline = self.now + self._SyncObj__generateRaftTimeout()

    # In place of the parent's methods of these names.

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        """As timed, or half of it when there is no leader to be patient with."""
        low, high = self._timing.election_min_s, self._timing.election_max_s
        timeout = low + (high - low) * self._chance.random()
        return timeout if self._hears_leader() else timeout / 2

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        """Applying is the business of who reads the log."""
        self._SyncObj__raftLastApplied = self._SyncObj__raftCommitIndex
        return False

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """The log is kept whole."""

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Proposals come through append()."""


def _log_order(log: Message) -> tuple[int, int]:
    return log["last_log_term"], log["last_log_index"]
