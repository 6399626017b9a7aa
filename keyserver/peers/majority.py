"""A member through which nothing can be decided says so at once, instead of letting callers wait in vain.

Lookups go on, from epochs whose age everybody sees; updates and pushes are refused, so that clients and
verifiers ask another replica.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

from keyserver.proposer import Clock, Proposer
from keyserver.replica import Replica
from replication.interface import ReplicatedLog

HOLDER = "majority"  # by this name the proposer is held
LEADERLESS_S = 2.0  # elections are over by then, unless there is no majority
LOOK_EVERY_S = 0.25


class Majority:
    """Watches whether anything can be decided here. On the trio thread."""

    def __init__(
        self,
        log: ReplicatedLog,
        proposer: Proposer,
        replica: Replica,
        clock: Clock,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._proposer = proposer
        self._replica = replica
        self._clock = clock
        self._seconds = seconds
        self._leader_seen = -math.inf  # who starts has heard of none, and is not ready before it has

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            await trio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Hold the proposer and refuse who waits in vain, or let it go on."""
        why = self.missing()
        if why:
            self._proposer.hold(HOLDER, why)
            self._replica.waiters.give_up()  # what they wait for may never come
        elif self._proposer.holds(HOLDER):
            self._proposer.release(HOLDER)
            self._replica.applied.wake()

    def missing(self) -> str:
        """Why nothing can be decided here, or ""."""
        log, now = self._log.status(), self._seconds()
        if not log.role or log.leader_name:  # an engine without roles answers for itself
            self._leader_seen = now
        quiet_s = now - self._leader_seen
        if quiet_s < LEADERLESS_S:
            return ""
        since = "since the start" if math.isinf(quiet_s) else f"for {quiet_s:.0f} s"
        return f"no majority: no leader was heard of {since}. {self._answers()}"

    def _answers(self) -> str:
        """What callers who only read can still have here."""
        state = self._replica.state
        if not state.signed_epoch:
            return "No epoch is known here yet"
        age_s = max(self._clock() - state.issue_time_ms, 0) // 1000
        return f"Lookups are answered from epoch {state.signed_epoch}; the newest head is {age_s} s old"
