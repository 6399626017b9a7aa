"""What becomes of the payloads proposed here: placed in the log by the leader, followed until settled.

A proposal is under way in one leadership. When that ends, what is not known to be committed is UNKNOWN: it
may still be committed by the next leader. To miss a leader is not its end: that is another term, or a link
that broke. Nothing here is durable; a proposer that hears nothing repeats.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from replication.raft.engine import Engine
from replication.raft.events import Chance, Outcome
from replication.raft.journal import Journal
from replication.raft.messages import BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, EACH_BYTES, Message, batch_bytes

# In a leader's log and not committed, or sent to the leader and not placed. Beyond it proposers must wait.
UNCOMMITTED_BYTES_MAX = 64 * 1024 * 1024
FORWARDED_BYTES_MAX = 16 * 1024 * 1024
LIVES = 2**52
ANSWERS_KEPT = 16  # a follower has hardly more requests under way

Leadership = tuple[int, str | None]  # term, and its leader if proposals can reach it


@dataclass(frozen=True, slots=True)
class _Forwarded:
    tokens: tuple[int, ...]
    size: int


class Proposals:
    """The proposals of one member, and at a leader those that followers sent."""

    def __init__(self, engine: Engine, journal: Journal, chance: Chance, settle_s: float) -> None:
        self._engine = engine
        self._journal = journal
        self._settle_s = settle_s
        self._life = int(chance.random() * LIVES)
        self._tokens: dict[int, float] = {}  # all that are not settled, oldest first -> when that ends
        self._queue: list[tuple[int, bytes]] = []  # of this turn
        self._requests: list[tuple[str, Message]] = []  # of this turn, from followers
        self._replies: list[Message] = []  # of this turn, from the leader
        self._settled: list[tuple[int, Outcome]] = []  # of this turn
        self._leadership: Leadership = (0, None)
        self._is_cut_off = False  # from the leader of this leadership, be it for a moment
        self._placed: dict[int, int] = {}  # Raft's index -> token, in this leadership
        self._forwarded: dict[int, _Forwarded] = {}  # first number of a request -> what it held
        self._forwarded_bytes = 0
        self._next_request = 0
        self._uncommitted: deque[tuple[int, int]] = deque()  # last index of what was appended, its bytes
        self._uncommitted_bytes = 0
        self._said: dict[str, deque[Message]] = {}  # follower -> its last answers, in this leadership
        self._seen: dict[str, tuple[int, int]] = {}  # follower -> life, next request
        self._examined = journal.commit  # placed proposals up to here are settled

    def take(self, token: int, payload: bytes) -> None:
        """Take in a payload that is proposed here."""
        self._tokens[token] = self._engine.now + self._settle_s
        self._queue.append((token, payload))

    def forget(self, token: int) -> None:
        """Settle nothing for the token any more. What is not placed yet never will be."""
        self._tokens.pop(token, None)

    def receive(self, sender: str, message: Message) -> None:
        """Take in a follower's request, or the leader's reply to ours."""
        if message["type"] == "propose":
            self._requests.append((sender, message))
        elif (message["term"], sender) == self._leadership and message["life"] == self._life:
            self._replies.append(message)

    def connected(self, member: str) -> None:
        """Say again to a follower what was answered on a link that may have lost it."""
        for reply in self._said.get(member, ()):
            self._engine.send(member, reply)

    def disconnected(self, member: str) -> None:
        """What was on the way to the leader may be lost with the link, even if there is a new one already."""
        if member == self._leadership[1]:
            self._is_cut_off = True

    def place(self) -> None:
        """After the tick: settle what it committed, then place what this turn brought."""
        self._settle_committed()
        for reply in self._replies:
            self._take_reply(reply)
        leadership = self._engine.term, self._engine.reachable_leader
        if self._is_cut_off or not self._goes_on(leadership):
            self._begin_leadership(leadership)
        self._expire()
        queue = [(token, payload) for token, payload in self._queue if token in self._tokens]
        if self._engine.leads:
            self._place_own(queue)
        elif leadership[1] is not None:
            self._forward(queue)
        else:
            self._settle_all([token for token, _ in queue], Outcome.REFUSED)
        for sender, request in self._requests:
            self._answer(sender, request)
        self._queue, self._requests, self._replies = [], [], []

    def take_settled(self) -> tuple[tuple[int, Outcome], ...]:
        """Return what was settled since the last call."""
        settled, self._settled = tuple(self._settled), []
        return settled

    def due_at(self) -> float:
        """Return when the oldest proposal is given up."""
        return next(iter(self._tokens.values()), float("inf"))

    def _goes_on(self, leadership: Leadership) -> bool:
        """Tell whether what is under way may still be settled by whoever took it.

        A follower that misses its leader may hear from it again in the same term. Who led itself cannot.
        """
        term, leader = self._leadership
        misses_leader = leadership == (term, None) and leader != self._engine.member
        return misses_leader or leadership == self._leadership

    def _begin_leadership(self, leadership: Leadership) -> None:
        queued = {token for token, _ in self._queue}
        self._settle_all([token for token in self._tokens if token not in queued], Outcome.UNKNOWN)
        self._placed.clear()
        self._forwarded.clear()
        self._forwarded_bytes = 0
        self._said.clear()
        self._uncommitted.clear()
        self._uncommitted_bytes = 0
        self._leadership, self._is_cut_off = leadership, False

    def _settle_all(self, tokens: Sequence[int], outcome: Outcome) -> None:
        for token in tokens:
            if self._tokens.pop(token, None) is not None:
                self._settled.append((token, outcome))

    def _expire(self) -> None:
        expired = []
        for token, until in self._tokens.items():
            if until > self._engine.now:
                break
            expired.append(token)
        self._settle_all(expired, Outcome.UNKNOWN)

    def _settle_committed(self) -> None:
        commit = self._journal.commit
        if self._placed:
            committed = range(self._examined + 1, commit + 1)
            if len(committed) > len(self._placed):
                places = sorted(index for index in self._placed if index <= commit)
            else:
                places = [index for index in committed if index in self._placed]
            for index in places:
                self._settle_place(index, self._placed.pop(index))
        self._examined = commit
        while self._uncommitted and self._uncommitted[0][0] <= commit:
            self._uncommitted_bytes -= self._uncommitted.popleft()[1]

    def _settle_place(self, index: int, token: int) -> None:
        """Settle what was placed at an index that is committed; with another term, it was replaced."""
        same = self._journal.term_at(index) == self._leadership[0]
        self._settle_all([token], Outcome.COMMITTED if same else Outcome.REFUSED)

    def _place_own(self, queue: Sequence[tuple[int, bytes]]) -> None:
        room = max(0, UNCOMMITTED_BYTES_MAX - self._uncommitted_bytes) if self._engine.takes_entries else 0
        taken = _prefix([payload for _, payload in queue], len(queue), room)
        self._settle_all([token for token, _ in queue[taken:]], Outcome.REFUSED)
        if taken:
            first = self._append([payload for _, payload in queue[:taken]])
            self._placed.update((first + place, token) for place, (token, _) in enumerate(queue[:taken]))

    def _append(self, payloads: Sequence[bytes]) -> int:
        first = self._engine.append(payloads)
        size = batch_bytes(payloads)
        self._uncommitted.append((first + len(payloads) - 1, size))
        self._uncommitted_bytes += size
        return first

    def _forward(self, queue: Sequence[tuple[int, bytes]]) -> None:
        while queue:
            room = min(BATCH_BYTES_MAX, FORWARDED_BYTES_MAX - self._forwarded_bytes)
            taken = _prefix([payload for _, payload in queue], BATCH_ENTRIES_MAX, room)
            if not taken:
                self._settle_all([token for token, _ in queue], Outcome.REFUSED)
                return
            self._send_request(queue[:taken])
            queue = queue[taken:]

    def _send_request(self, part: Sequence[tuple[int, bytes]]) -> None:
        payloads = tuple(payload for _, payload in part)
        forwarded = _Forwarded(tuple(token for token, _ in part), batch_bytes(payloads))
        self._forwarded[self._next_request] = forwarded
        self._forwarded_bytes += forwarded.size
        term, leader = self._leadership
        request = {"term": term, "life": self._life, "request": self._next_request, "payloads": payloads}
        self._engine.send(leader or "", {"type": "propose", **request})
        self._next_request += len(part)

    def _answer(self, sender: str, request: Message) -> None:
        """Place a follower's payloads, unless they were, and tell it where."""
        life, number, payloads = request["life"], request["request"], request["payloads"]
        known, expected = self._seen.get(sender, (life, 0))
        if request["term"] < self._engine.term:
            self._engine.tell_higher_term(sender)
        if request["term"] != self._engine.term or not self._engine.leads:
            return  # not refused: it may have been placed when it was said the first time
        if life == known and number < expected:
            return  # said twice
        self._seen[sender] = life, number + len(payloads)
        first, placed = 1, 0
        has_room = self._uncommitted_bytes + batch_bytes(payloads) <= UNCOMMITTED_BYTES_MAX
        if has_room and self._engine.takes_entries:
            first, placed = self._append(payloads), len(payloads)
            self._engine.awaited_to = first + placed - 1
        reply = {"term": request["term"], "life": life, "request": number, "count": placed, "log_idx": first}
        self._said.setdefault(sender, deque(maxlen=ANSWERS_KEPT)).append({"type": "proposed", **reply})
        self._engine.send(sender, self._said[sender][-1])

    def _take_reply(self, reply: Message) -> None:
        forwarded = self._forwarded.pop(reply["request"], None)
        if forwarded is None:
            return
        self._forwarded_bytes -= forwarded.size
        if reply["count"] != len(forwarded.tokens):
            self._settle_all(forwarded.tokens, Outcome.UNKNOWN if reply["count"] else Outcome.REFUSED)
            return
        for index, token in enumerate(forwarded.tokens, reply["log_idx"]):
            if index <= self._examined:
                self._settle_place(index, token)
            else:
                self._placed[index] = token


def _prefix(payloads: Sequence[bytes], count_max: int, bytes_max: int) -> int:
    """Return how many of the first payloads fit."""
    size = 0
    for count, payload in enumerate(payloads[:count_max]):
        size += len(payload) + EACH_BYTES
        if size > bytes_max:
            return count
    return min(len(payloads), count_max)
