"""The clocks of the machines. Time that passes is the world's; what a wall clock shows may be wrong."""

from __future__ import annotations

from collections.abc import Callable

START_MS = 1_700_000_000_000


class WallClock:
    """Unix milliseconds as one machine believes them to be."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self.offset_ms = 0
        self.frozen_ms: int | None = None

    def __call__(self) -> int:
        return self.true_ms() + self.offset_ms if self.frozen_ms is None else self.frozen_ms

    def true_ms(self) -> int:
        return START_MS + self._now_us() // 1000

    def freeze(self) -> None:
        self.frozen_ms = self()

    def correct(self) -> None:
        self.offset_ms, self.frozen_ms = 0, None
