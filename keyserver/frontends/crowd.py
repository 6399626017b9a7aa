"""Who is inside: calls, streams and bytes under way, counted by network and in all. Runs in the edge thread.

Every call is a Visit, from its headers until its last byte is sent or the caller is gone. What a visit
would take beyond its share is refused before it is taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from keyserver.rate_limits import Limits, RateLimited

RETRY_AFTER_S = 1.0  # what leaves is not known beforehand
READERS = 64  # requests that arrive at one time: each holds up to 256 KiB before anything is known of it
READERS_PER_CONNECTION = 8  # one connection that dribbles leaves the others room


class Crowd:
    """The calls under way on all gRPC listeners. `observe` is told the name of the limit that refused."""

    def __init__(self, limits: Limits, observe: Callable[[str], None] = lambda _: None) -> None:
        self.limits = limits
        self.observe = observe
        self._calls: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def enter(self, peer: str, *, stream: bool) -> Visit:
        """A new call. Raises RateLimited when the network has its share."""
        if self._calls[peer] >= self.limits.peer_calls_at_once:
            raise self._refused("peer_calls_at_once", "too many calls under way from one address")
        if stream and self._streams[peer] >= self.limits.peer_streams:
            raise self._refused("peer_streams", "too many streams from one address")
        if stream and self._streams.total() >= self.limits.streams:
            raise self._refused("streams", "too many streams")
        return Visit(self, peer, stream)

    def count(self, peer: str, *, calls: int, streams: int, size: int) -> None:
        """Change the counts of a network; who has left is forgotten."""
        for counter, change in ((self._calls, calls), (self._streams, streams), (self._bytes, size)):
            if change:
                counter[peer] += change
                if not counter[peer]:
                    del counter[peer]

    def require_room(self, peer: str, size: int) -> None:
        """Raises RateLimited if `size` more bytes are too many."""
        if self._bytes[peer] + size > self.limits.peer_request_bytes:
            raise self._refused("peer_request_bytes", "too many bytes under way from one address")
        if self._bytes.total() + size > self.limits.request_bytes:
            raise self._refused("request_bytes", "too many bytes under way")

    def _refused(self, name: str, what: str) -> RateLimited:
        self.observe(name)
        return RateLimited(f"{what}; try again later", RETRY_AFTER_S)


class Visit:
    """One call under way."""

    def __init__(self, crowd: Crowd, peer: str, stream: bool) -> None:
        self._crowd = crowd
        self._peer = peer
        self._stream = stream
        self._bytes = 0
        self._left = False
        crowd.count(peer, calls=1, streams=stream, size=0)

    def carry(self, size: int) -> None:
        """Hold this many bytes more, until the end. Raises RateLimited."""
        self._crowd.require_room(self._peer, size)
        self._bytes += size
        self._crowd.count(self._peer, calls=0, streams=0, size=size)

    def leave(self) -> None:
        """The call is over, whatever became of it. May be called again."""
        if not self._left:
            self._left = True
            self._crowd.count(self._peer, calls=-1, streams=-self._stream, size=-self._bytes)


class Readers:
    """Turns at reading requests: so many in all, so many of one connection; others queue, in order."""

    def __init__(self, total: int = READERS, each: int = READERS_PER_CONNECTION) -> None:
        self._all = asyncio.Semaphore(total)
        self._each = each
        self._connections: dict[str, tuple[asyncio.Semaphore, int]] = {}  # its turns, and who wants one

    def __len__(self) -> int:
        return len(self._connections)

    @asynccontextmanager
    async def turn(self, connection: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it."""
        turns, wanted = self._connections.get(connection) or (asyncio.Semaphore(self._each), 0)
        self._connections[connection] = (turns, wanted + 1)
        try:
            async with turns, self._all:
                yield
        finally:
            turns, wanted = self._connections.pop(connection)
            if wanted > 1:
                self._connections[connection] = (turns, wanted - 1)
