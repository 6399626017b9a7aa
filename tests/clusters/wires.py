"""Transports on loopback and what they say, and bare TLS connections for whoever is no transport."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from clusters.certificates import PeersAuthority
from replication.raft.tls import Contexts, read_contexts
from replication.raft.transport import Address, Ends, Transport
from replication.types import PeerTls

HANGS_AFTER_S = 60
HOST = "127.0.0.1"

Event = tuple[str, str, bytes | str]


class Station:
    """One member's transport; `events` are what it told, in order."""

    def __init__(self, name: str, files: PeerTls, listener: trio.SocketListener) -> None:
        self.name = name
        self.files = files
        self.listener = listener
        self.events: list[Event] = []
        self.transport: Transport
        self.taking: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # delays what is received
        self._told = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def address(self) -> Address:
        return Address(HOST, self.listener.socket.getsockname()[1])

    def connect_to(self, others: Mapping[str, Address]) -> None:
        ends = Ends(
            received=self._received,
            connected=lambda member: self._tell("connected", member),
            disconnected=lambda member: self._tell("disconnected", member),
            refused=lambda _address, reason: self._tell("refused", "", reason),
        )
        self.transport = Transport(
            member=self.name,
            addresses=others,
            contexts=read_contexts(self.files),
            clock=time.monotonic,
            chance=random.Random(1),
            ends=ends,
        )

    async def run(self) -> None:
        with self._scope:
            await self.transport.run([self.listener])

    def end(self) -> None:
        """Be gone, as a process that was killed."""
        self._scope.cancel()

    async def _received(self, member: str, content: bytes) -> None:
        await self.taking()
        self._tell("received", member, content)

    def _tell(self, what: str, member: str, content: bytes | str = "") -> None:
        self.events.append((what, member, content))
        told, self._told = self._told, trio.Event()
        told.set()

    async def until(self, event: Event, times: int = 1) -> None:
        """Wait for an event to have been told so often."""
        with trio.fail_after(HANGS_AFTER_S):
            while self.events.count(event) < times:
                await self._told.wait()

    async def until_some(self, what: str) -> Event:
        """Wait for any event of a kind, and return the first."""
        with trio.fail_after(HANGS_AFTER_S):
            while True:
                for event in self.events:
                    if event[0] == what:
                        return event
                await self._told.wait()

    def received(self) -> list[tuple[str, bytes | str]]:
        return [(member, content) for what, member, content in self.events if what == "received"]


@asynccontextmanager
async def stations(folder: Path, *names: str) -> AsyncIterator[tuple[PeersAuthority, list[Station]]]:
    """Run transports of members that know each other, until the context is left."""
    authority = PeersAuthority(folder / "peers")
    made: list[Station] = []
    for name in names:
        (listener,) = await trio.open_tcp_listeners(0, host=HOST)
        made.append(Station(name, authority.member(name), listener))
    async with trio.open_nursery() as nursery:
        for station in made:
            station.connect_to({other.name: other.address for other in made if other is not station})
            nursery.start_soon(station.run)
        yield authority, made
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def dial(address: Address, contexts: Contexts) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """Connect and shake hands as somebody with these files; the other end may still refuse."""
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        secured = trio.SSLStream(stream, contexts.dialing, server_hostname="anybody", https_compatible=True)
        await secured.do_handshake()
        yield secured


async def is_hung_up(stream: trio.abc.ReceiveStream) -> bool:
    """Wait for the other end to hang up; False if it says something instead."""
    with trio.fail_after(HANGS_AFTER_S):
        try:
            return not await stream.receive_some(1)
        except (OSError, trio.BrokenResourceError):
            return True
