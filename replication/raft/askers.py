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
        self._waiting: dict[int, _Asker] = {}

    async def ask(self, payload: bytes) -> Outcome:
        """Propose, and return COMMITTED or REFUSED. Raises ProposalLost, or what settle_all() was given."""
        token = next(self._tokens)
        asker = self._waiting[token] = _Asker()
        self._propose(token, payload)
        try:
            await asker.settled.wait()
        except trio.Cancelled:
            self._forget(token)
            raise
        finally:
            del self._waiting[token]
        if isinstance(asker.outcome, Exception):
            raise asker.outcome
        if asker.outcome is Outcome.UNKNOWN:
            raise ProposalLost("the leader was lost before the proposal was decided")
        return asker.outcome

    def settle(self, token: int, outcome: Outcome) -> None:
        """Tell whoever waits under this token, if there still is somebody."""
        if (asker := self._waiting.get(token)) is not None:
            asker.settle(outcome)

    def settle_all(self, error: Exception) -> None:
        """Let everybody fail who still waits."""
        for asker in self._waiting.values():
            asker.settle(error)


class _Asker:
    __slots__ = ("outcome", "settled")

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.outcome: Outcome | Exception = Outcome.UNKNOWN

    def settle(self, outcome: Outcome | Exception) -> None:
        if not self.settled.is_set():
            self.outcome = outcome
            self.settled.set()
