"""How long to wait before the next attempt: doubling, capped, and spread so that many verifiers do not come
at once.
"""

from __future__ import annotations

from random import Random


class Backoff:
    """Waits of min_ms, twice that, … up to max_ms, each between half and all of it."""

    def __init__(self, min_ms: int, max_ms: int, rng: Random) -> None:
        self._min_ms = min_ms
        self._max_ms = max_ms
        self._rng = rng
        self._ms = min_ms

    def next_s(self) -> float:
        """The next wait in seconds."""
        wait_ms, self._ms = self._ms, min(2 * self._ms, self._max_ms)
        return wait_ms * (0.5 + self._rng.random() / 2) / 1000

    def reset(self) -> None:
        """Something went well: start over."""
        self._ms = self._min_ms
