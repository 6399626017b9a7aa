"""Who was turned away at the replication port, in the log: each reason at once, then once a minute.

Strangers choose how often they knock, and must not choose how much is written.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

QUIET_S = 60.0
REASONS = 64  # remembered: those of TLS are a list of OpenSSL's, and longer


class TurnedAway:
    """Called with each address that is turned away, and why. `seconds` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._known: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when last told; times since
        self._log = structlog.get_logger("replication")

    def __call__(self, address: str, reason: str) -> None:
        """Tell, or only count."""
        now = self._seconds()
        told, times = self._known.pop(reason, (-math.inf, 0))
        if now - told < QUIET_S:
            self._known[reason] = told, times + 1
            return
        self._known[reason] = now, 0
        if len(self._known) > REASONS:
            self._known.popitem(last=False)
        self._log.warning("turned away", address=address, reason=reason, times=times + 1)
