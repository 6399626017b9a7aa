"""Who waits in this process for what the log decides. Bounded, and lossy by contract.

A waiter that is lost with the process loses nothing but an answer: what was decided is in the database, and
the caller asks again. Everything here runs on the trio thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from keyserver.rate_limits import RateLimited
from verifier.errors import Reason, Refused

WAITERS_MAX = 1_800  # of the 2,048 calls under way: lookups find room beside them
RETRY_AFTER_S = 1.0  # about an epoch


class Signal:
    """Wakes everybody who waits. Whoever takes `turn` BEFORE looking cannot miss a change made after the
    look.
    """

    def __init__(self) -> None:
        self._event = trio.Event()

    def turn(self) -> trio.Event:
        """The event that the next `wake` sets."""
        return self._event

    def wake(self) -> None:
        self._event.set()
        self._event = trio.Event()


class Decision:
    """What became of one command: its verdict code and the epoch that contains the entry."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._outcome: tuple[int, int] | None = None

    def decide(self, code: int, epoch: int) -> None:
        self._outcome = self._outcome or (code, epoch)
        self._event.set()

    def give_up(self) -> None:
        self._event.set()

    async def wait(self) -> tuple[int, int]:
        """(verdict code, epoch), once the command was applied and written. Raises Refused (NOT_READY)."""
        await self._event.wait()
        if self._outcome is None:
            raise Refused(Reason.NOT_READY, "this replica cannot have it decided any more; ask another one")
        return self._outcome


class Waiters:
    """Decisions by command id, and the signals of heads and of the verifier log."""

    def __init__(self, capacity: int = WAITERS_MAX) -> None:
        self.heads = Signal()  # a head was composed, signed or ratified
        self.verifier_log = Signal()  # the verifier log grew
        self._capacity = capacity
        self._decisions: dict[bytes, list[Decision]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def expect(self, command_id: bytes) -> Iterator[Decision]:
        """Wait for a command: enter BEFORE proposing it. Raises RateLimited when too many wait
        already.
        """
        if self._count >= self._capacity:
            raise RateLimited("too many updates are waiting on this replica; try again", RETRY_AFTER_S)
        decision = Decision()
        self._decisions.setdefault(command_id, []).append(decision)
        self._count += 1
        try:
            yield decision
        finally:
            self._count -= 1
            waiting = self._decisions[command_id]
            waiting.remove(decision)
            if not waiting:
                del self._decisions[command_id]

    def decided(self, command_id: bytes, code: int, epoch: int) -> None:
        """Answer everybody who waits for this command, if anybody does."""
        for decision in self._decisions.get(command_id, ()):
            decision.decide(code, epoch)

    def give_up(self) -> None:
        """Refuse everybody who waits for a decision: the log takes nothing more from this replica."""
        for decisions in self._decisions.values():
            for decision in decisions:
                decision.give_up()
