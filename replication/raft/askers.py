"""Proposers of this process, each waiting to hear what became of its payload. For the trio thread."""

from collections.abc import Callable, Iterable
from itertools import count

from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from replication.raft.events import Outcome
from replication.types import ProposalLost

COMMITTED = Outcome.COMMITTED  # looked up for each proposal, which an Enum is slow at


class Askers:
    """Who asked for what to be committed: by token, from the asking to the outcome."""

    def __init__(self, propose: Callable[[int, bytes], None], forget: Callable[[int], None]) -> None:
        """`propose` gets a token and the payload, `forget` the token of somebody who waits no more."""
        self._propose = propose
        self._forget = forget
        self._tokens = count(1)
        self._waiting: dict[int, Task] = {}
        self._failed: dict[int, Outcome | Exception] = {}  # what else than COMMITTED they are about to hear

    async def ask(self, payload: bytes) -> bool:
        """Propose; False: it was refused. Raises ProposalLost, or what fail_all() was given."""
        token = next(self._tokens)
        self._waiting[token] = current_task()
        self._propose(token, payload)

        def give_up(_: object) -> Abort:
            del self._waiting[token]
            self._forget(token)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(give_up)
        if token not in self._failed:
            return True
        outcome = self._failed.pop(token)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is Outcome.UNKNOWN:
            raise ProposalLost("the leader was lost before the proposal was decided")
        return False

    def settle(self, settled: Iterable[tuple[int, Outcome | Exception]]) -> None:
        """Tell those who wait under these tokens, as far as they still do."""
        waiting = self._waiting
        for token, outcome in settled:
            if (task := waiting.pop(token, None)) is not None:
                if outcome is not COMMITTED:
                    self._failed[token] = outcome
                reschedule(task)

    def fail_all(self, error: Exception) -> None:
        """Let everybody fail who still waits."""
        self.settle([(token, error) for token in self._waiting])
