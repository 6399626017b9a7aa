"""Sources and targets in memory, for daemons whose disk is what the test is about."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class MemorySource:
    """Serves messages of one step each, then waits to be cancelled."""

    address = "memory"

    def __init__(self, steps: Sequence[bytes]) -> None:
        self.steps = steps  # as VerifierSteps messages, one for each step

    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> MemoryMessages:
        return MemoryMessages(iter(self.steps[start - 1 :]))


class MemoryMessages:
    def __init__(self, messages: Iterator[bytes]) -> None:
        self.overdue = False
        self._messages = messages
        self._cancelled = threading.Event()

    def read(self) -> bytes | None:
        message = next(self._messages, None)
        if message is None:
            self._cancelled.wait()
        return message

    def cancel(self) -> None:
        self._cancelled.set()


class MemoryTarget:
    """Takes every push. `enough` is set when `wanted` different pushes arrived."""

    address = "memory"

    def __init__(self, wanted: int) -> None:
        self.pushed: list[bytes] = []
        self.enough = threading.Event()
        self._wanted = wanted

    @contextmanager
    def connected(self) -> Iterator[MemoryTarget]:
        yield self

    def push(self, ratification: bytes) -> bytes:
        self.pushed.append(ratification)
        if len(set(self.pushed)) >= self._wanted:
            self.enough.set()
        return b""
