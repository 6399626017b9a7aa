"""The replicated log as the proposer and the duties of one process see it: what `RaftLog` does under trio."""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from replication.raft.events import HandOver, Outcome, Proposed, Role, Turn
from replication.raft.log import LEADERLESS_S
from replication.types import LogEntry, NoLeader, ProposalLost
from simulator.seams import Until

if TYPE_CHECKING:
    from simulator.process import ReplicaProcess


class Log:
    """Over the driver and the journal of a process; `turn` is the driver's last one, `turns` counts them."""

    def __init__(self, process: ReplicaProcess) -> None:
        self._process = process
        self._tokens = count(1)
        self._waiting: list[Proposed | HandOver] = []
        self._outcomes: dict[int, list[Outcome]] = {}
        self.turn: Turn | None = None
        self.turns = 0

    # For the process

    def take(self) -> list[Proposed | HandOver]:
        """What is to be proposed in the next turn."""
        waiting, self._waiting = self._waiting, []
        return waiting

    @property
    def has_news(self) -> bool:
        return bool(self._waiting)

    def turned(self, turn: Turn) -> None:
        self.turn = turn
        self.turns += 1

    def settle(self, turn: Turn) -> None:
        for token, outcome in turn.settled:
            if token in self._outcomes:
                self._outcomes[token].append(outcome)

    # As ReplicatedLog

    async def propose(self, payload: bytes) -> None:
        self._process.world.judges.proposing(self._process.site, payload)
        seconds = self._process.world.seconds
        until = seconds() + LEADERLESS_S
        if not self._is_led():
            await self._wait_for_leader(until)
        while await self._ask(payload) is Outcome.REFUSED:
            seen = self.turns
            await Until(lambda seen=seen: self.turns > seen or seconds() >= until)  # type: ignore[misc]
            await self._wait_for_leader(until)

    async def _ask(self, payload: bytes) -> Outcome:
        token = next(self._tokens)
        told = self._outcomes[token] = []
        self._waiting.append(Proposed(token, payload))
        self._process.site.wake()
        await Until(lambda: bool(told))
        del self._outcomes[token]
        if told[0] is Outcome.UNKNOWN:
            raise ProposalLost(told[0].value)
        return told[0]

    async def _wait_for_leader(self, until: float) -> None:
        seconds = self._process.world.seconds
        await Until(lambda: self._is_led() or seconds() >= until)
        if not self._is_led():
            raise NoLeader("no majority of the members has a leader")
        if seconds() >= until:
            raise NoLeader("the leader is out of reach, or takes nothing")

    def _is_led(self) -> bool:
        return self.turn is not None and self.turn.leader is not None

    def leader_hint(self) -> bool:
        return self.turn is not None and self.turn.role is Role.LEADER

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        return self._process.journal.read(lo, hi, max_bytes)

    async def rewrite_private(self, index: int, payload: bytes) -> None:
        self._process.journal.rewrite_private(index, payload)

    async def compact(self, indices: Collection[int]) -> bool:
        return self._process.journal.compact(indices)

    def hand_over(self) -> None:
        self._waiting.append(HandOver())
        self._process.site.wake()

    def status(self) -> Any:
        journal, turn = self._process.journal, self.turn
        return SimpleNamespace(
            committed_index=journal.committed_to,
            stored_index=journal.last_application,
            role="" if turn is None else str(turn.role),
            leader=self.leader_hint(),
            leader_name="" if turn is None else turn.leader or "",
        )
