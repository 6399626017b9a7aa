"""The network between replicas: a proxy on every directed link, which a test may cut and heal.

What crosses no more is held, as by a network that drops packets: connections stay, and go on when it heals.
`sever` ends them instead, as a middlebox does that forgot its connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import trio

from keyserver.demo.processes import free_port
from keyserver.demo.stage import HOST

CHUNK = 64 * 1024

Direction = tuple[str, str]  # from, to


@dataclass(frozen=True)
class Link:
    """Where `dialer` reaches a service of `target`."""

    dialer: str
    target: str
    service: str


class Links:
    """Proxies for every service of every replica's peers, in one thread. `ports` are the real ones."""

    def __init__(self, ports: Mapping[str, Mapping[str, int]]) -> None:
        self._real = ports
        self.ports = {
            Link(dialer, target, service): free_port()
            for dialer, target in permutations(ports, 2)
            for service in ports[target]
        }
        self._gates: dict[Direction, trio.Event] = {}
        self._crossing: dict[Direction, set[trio.CancelScope]] = {}
        self._up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)

    def start(self) -> None:
        """Return when all proxies listen."""
        self._thread.start()
        assert self._up.wait(60)

    def close(self) -> None:
        """End everything."""
        self._do(self._nursery.cancel_scope.cancel)
        self._thread.join()

    # For the test's thread

    def cut(self, directions: Iterable[Direction]) -> None:
        """Nothing passes in these directions any more."""
        self._do(self._close_gates, list(directions))

    def isolate(self, name: str) -> None:
        """Nothing reaches a replica nor leaves it."""
        self.cut([pair for pair in permutations(self._real, 2) if name in pair])

    def part(self, *sides: Iterable[str]) -> None:
        """Nothing passes between the sides."""
        groups = [set(side) for side in sides]
        together = [pair for group in groups for pair in permutations(group, 2)]
        self.cut([pair for pair in permutations(self._real, 2) if pair not in together])

    def heal(self) -> None:
        """Everything passes again, first what was held."""
        self._do(self._open_gates)

    def sever(self) -> None:
        """End every connection there is."""
        self._do(self._cancel_all)

    def _do(self, what: Callable[..., None], *arguments: object) -> None:
        trio.from_thread.run_sync(what, *arguments, trio_token=self._token)

    # In the proxies' thread

    def _close_gates(self, directions: Iterable[Direction]) -> None:
        for direction in directions:
            self._gates.setdefault(direction, trio.Event())

    def _open_gates(self) -> None:
        while self._gates:
            self._gates.popitem()[1].set()

    def _cancel_all(self) -> None:
        for scopes in self._crossing.values():
            for scope in scopes:
                scope.cancel()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            for link, port in self.ports.items():
                await self._nursery.start(
                    partial(trio.serve_tcp, partial(self._carry, link), port, host=HOST)
                )
            self._up.set()

    async def _carry(self, link: Link, near: trio.SocketStream) -> None:
        """One connection. It ends as a whole when either end ends."""
        direction = (link.dialer, link.target)
        with trio.CancelScope() as scope, suppress(OSError, trio.BrokenResourceError):
            self._crossing.setdefault(direction, set()).add(scope)
            try:
                await self._passes(direction)
                far = await trio.open_tcp_stream(HOST, self._real[link.target][link.service])
                async with far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, near, far, direction, scope)
                    nursery.start_soon(self._copy, far, near, direction[::-1], scope)
            finally:
                self._crossing[direction].discard(scope)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, direction: Direction, both: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(CHUNK):
                await self._passes(direction)
                await sink.send_all(data)
        await self._passes(direction)  # the end of a connection is news, too
        both.cancel()

    async def _passes(self, direction: Direction) -> None:
        while (gate := self._gates.get(direction)) is not None:
            await gate.wait()
