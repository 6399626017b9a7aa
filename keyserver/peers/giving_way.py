"""A replica that may not propose gives way to the others.

One that leads, although it may propose no epoch, lets another one lead: without that each epoch waits until
somebody else takes it over. One whose key counts no more refuses those who wait already, so that they ask
another replica (docs/adr/0011, 0014).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import trio

from keyserver.proposer import Proposer
from keyserver.replica import Replica
from replication.interface import ReplicatedLog

LOOK_EVERY_S = 0.25
HAND_OVER_EVERY_S = 2.0  # in vain it costs an election's time without updates


class GivingWay:
    """Watches whether this replica may propose, and whether it leads. On the trio thread."""

    def __init__(
        self,
        log: ReplicatedLog,
        proposer: Proposer,
        replica: Replica,
        outside: Callable[[], str],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """`outside` tells why this replica's key counts for nothing, or ""."""
        self._log = log
        self._proposer = proposer
        self._replica = replica
        self._outside = outside
        self._seconds = seconds
        self._hand_over_due = -math.inf

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            await trio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Refuse who waits in vain, and let another replica lead: the leader is who ends epochs."""
        outside, now = self._outside(), self._seconds()
        if outside:
            self._replica.waiters.give_up()
        unfit = outside or self._proposer.unfit
        if unfit and now >= self._hand_over_due and self._log.status().leader:
            self._hand_over_due = now + HAND_OVER_EVERY_S
            self._log.hand_over()
