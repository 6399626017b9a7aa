"""Proposers of this process, each waiting to hear what became of its payload. For the trio thread."""

from collections.abc import Callable
from itertools import count

import trio

from replication.raft.events import Outcome
from replication.types import ProposalLost


class Askers:
    """Who asked for what to be committed: by token, from the asking to the outcome."""

    def __init__(self, propose: Callable[[int, bytes], None], forget: Callable[[int], None]) -> None:
        """`propose` gets a token and the payload, `forget` the token of somebody who waits no more."""
        self._propose = propose
        self._forget = forget
        self._tokens = count(1)
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._outcomes: dict[int, Outcome | Exception] = {}  # of those who are about to go on

    async def ask(self, payload: bytes) -> Outcome:
        """Propose, and return COMMITTED or REFUSED. Raises ProposalLost, or what settle_all() was given."""
        token = next(self._tokens)
        self._waiting[token] = trio.lowlevel.current_task()
        self._propose(token, payload)

        def give_up(_: object) -> trio.lowlevel.Abort:
            del self._waiting[token]
            self._forget(token)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        outcome = self._outcomes.pop(token)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is Outcome.UNKNOWN:
            raise ProposalLost("the leader was lost before the proposal was decided")
        return outcome

    def settle(self, token: int, outcome: Outcome | Exception) -> None:
        """Tell whoever waits under this token, if there still is somebody."""
        if (task := self._waiting.pop(token, None)) is not None:
            self._outcomes[token] = outcome
            trio.lowlevel.reschedule(task)

    def settle_all(self, error: Exception) -> None:
        """Let everybody fail who still waits."""
        for token in list(self._waiting):
            self.settle(token, error)
