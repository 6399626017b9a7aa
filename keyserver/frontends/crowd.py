"""Who is inside: calls, streams and bytes under way, counted by network and in all. Runs in the edge thread.

Every call is a Visit, from its headers until its last byte is sent or the caller is gone. What a visit
would take beyond its share is refused before it is taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from keyserver.rate_limits import Limits, RateLimited

T = TypeVar("T")

RETRY_AFTER_S = 1.0  # what leaves is not known beforehand
READERS = 64  # requests that arrive at one time: each holds up to 256 KiB before anything is known of it
READERS_PER_NETWORK = 32
READERS_PER_CONNECTION = 8  # one connection that dribbles leaves the others room
HURRY_SECONDS = 0.25  # to read a request while others wait: 256 KiB at 8 Mbit/s
PENITENTS_PER_NETWORK = 256
PENITENTS = 512  # of the 2,048 calls
PENANCE_SECONDS = 1.0


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
    """Turns at reading requests: so many in all, of one network, of one connection; others queue, in order.

    Nobody is hurried while there are turns. Once somebody waits for one, a turn lasts HURRY_SECONDS.
    """

    def __init__(self, total: int = READERS) -> None:
        self._all = asyncio.Semaphore(total)
        self._groups: dict[str, tuple[asyncio.Semaphore, int]] = {}  # its turns, and who wants or has one
        self._reading: set[asyncio.Timeout] = set()
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._groups)

    async def read(
        self, connection: str, network: str, seconds: float, read: Callable[[], Awaitable[T]]
    ) -> T:
        """What `read` returns, in a turn. Raises TimeoutError; RateLimited for one that was hurried."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        patience = asyncio.timeout_at(end)
        try:
            async with (
                patience,
                self._turn(connection, READERS_PER_CONNECTION),
                self._turn(network, READERS_PER_NETWORK),
                self._any_turn(),
            ):
                if self._waiting:
                    patience.reschedule(min(end, loop.time() + HURRY_SECONDS))
                self._reading.add(patience)
                try:
                    return await read()
                finally:
                    self._reading.discard(patience)
        except TimeoutError:
            if loop.time() >= end:
                raise
            raise RateLimited("the request came slowly, while others waited", RETRY_AFTER_S) from None

    @asynccontextmanager
    async def _turn(self, name: str, each: int) -> AsyncIterator[None]:
        turns, wanted = self._groups.get(name) or (asyncio.Semaphore(each), 0)
        self._groups[name] = (turns, wanted + 1)
        try:
            async with turns:
                yield
        finally:
            turns, wanted = self._groups.pop(name)
            if wanted > 1:
                self._groups[name] = (turns, wanted - 1)

    @asynccontextmanager
    async def _any_turn(self) -> AsyncIterator[None]:
        if self._all.locked():
            soon = asyncio.get_running_loop().time() + HURRY_SECONDS
            for patience in self._reading:
                end = patience.when()
                if not patience.expired():  # its turn is ending in this round of the loop
                    patience.reschedule(soon if end is None else min(end, soon))
        self._waiting += 1
        try:
            await self._all.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._all.release()


class FairShare:
    """Turns at the edge thread's processor: one at a time, each network's in turn, and of a network each
    connection's, whoever asks how much.

    A caller alone has its turn at once.
    """

    def __init__(self) -> None:
        self._networks: OrderedDict[str, OrderedDict[str, deque[asyncio.Future[None]]]] = OrderedDict()
        self._busy = False

    async def turn(self, network: str, connection: str) -> None:
        """Return when it is this call's turn; it lasts until the caller next waits for something."""
        loop = asyncio.get_running_loop()
        if not self._busy:
            self._busy = True
            loop.call_soon(self._next)
            return
        future = loop.create_future()
        self._networks.setdefault(network, OrderedDict()).setdefault(connection, deque()).append(future)
        await future

    def _next(self) -> None:
        """Give the next turn. Once in each round of the loop, so that calls are taken in between."""
        self._busy = False
        while self._networks and not self._busy:
            network, connections = self._networks.popitem(last=False)
            connection, queue = connections.popitem(last=False)
            future = queue.popleft()
            if queue:
                connections[connection] = queue
            if connections:
                self._networks[network] = connections
            if not future.done():  # whose caller has gone
                future.set_result(None)
                self._busy = True
        if self._busy:
            asyncio.get_running_loop().call_soon(self._next)


class Penance:
    """Refusals for a rate are told late, so that whoever does not listen asks no faster. Some at a time."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    async def hold(self, network: str) -> bool:
        """Wait PENANCE_SECONDS; False, at once, when too many of the network wait already."""
        if self._held[network] >= PENITENTS_PER_NETWORK or self._held.total() >= PENITENTS:
            return False
        self._held[network] += 1
        try:
            await asyncio.sleep(PENANCE_SECONDS)
        finally:
            self._held[network] -= 1
            if not self._held[network]:
                del self._held[network]
        return True
