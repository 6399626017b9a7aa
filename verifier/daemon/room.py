"""Whether there is room on the disk for what is replayed. While there is not, no stream is read; what is owed
is still delivered, and evidence may use the ballast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from kv.free_space import LOOK_S, Watermark

T = TypeVar("T")


class Room:
    """What a verifier's disk has left; always enough if nobody said what that is."""

    def __init__(self, watermark: Watermark | None = None) -> None:
        self._watermark = watermark
        self._is_there = trio.Event()
        self._reading = trio.CancelScope()
        self.free_bytes = 0
        if watermark is None:
            self._is_there.set()

    @property
    def short(self) -> str:
        """What was compared when there was too little; empty while there is enough."""
        return self._watermark.why if self._watermark else ""

    async def watch(self) -> None:
        """Look for ever. Raises StorageError when a folder is gone."""
        while self._watermark is not None:
            self.free_bytes = await trio.to_thread.run_sync(self._watermark.measure)
            self._watermark.judge(self.free_bytes)
            self._open_or_close()
            await trio.sleep(LOOK_S)

    def _open_or_close(self) -> None:
        if not self.short:
            self._is_there.set()
        elif self._is_there.is_set():
            self._is_there = trio.Event()
            self._reading.cancel()

    async def wait(self) -> trio.CancelScope:
        """Wait until there is room; the scope is cancelled when there is none any more."""
        while not self._is_there.is_set():  # asked again after each wait: there may be none any more
            await self._is_there.wait()
        self._reading = trio.CancelScope()
        return self._reading

    def even_if_full(self, writing: Callable[[], T]) -> T:
        """What `writing` returns, at the cost of the ballast if it must be. Raises what it raises."""
        return self._watermark.even_if_full(writing) if self._watermark else writing()
