"""grpc.health.v1.Health on raw bytes, so that its calls and watchers are counted and timed like all others.

The library's own servicer would hold a place for every caller that never sends its request. One task looks
at the replica; watchers wait for what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import trio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]  # no stubs

from keyserver.frontends.handlers import Caller, Direct, Method, NextPage, NoSuchName, Pages
from verifier.errors import Malformed

SERVICE = "grpc.health.v1.Health"
LOOKS_SECONDS = 0.5  # how late the answers may be


class Health:
    """Whether the replica is ready: `not_ready` gives the reason why not, or "". Made and run on trio.

    `names` are the services told of; the empty name stands for the whole process.
    """

    def __init__(self, not_ready: Callable[[], str], names: Collection[str]) -> None:
        self._not_ready = not_ready
        self._names = frozenset(names) | {""}
        self._ready = False
        self._changed = trio.Event()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            ready = not self._not_ready()
            if ready != self._ready:
                self._ready = ready
                self._changed.set()
                self._changed = trio.Event()
            await trio.sleep(LOOKS_SECONDS)

    def methods(self) -> dict[str, Method]:
        """What answers each call."""
        return {"Check": Direct(self._check), "Watch": Pages(self._watch)}

    def _check(self, request: bytes, _: Caller) -> bytes:
        if _name(request) not in self._names:
            raise NoSuchName
        return self._answer(known=True)

    def _watch(self, request: bytes, _: Caller) -> NextPage:
        """Each state that differs from the one told before; of an unknown service, that it is unknown."""
        known, told = _name(request) in self._names, b""

        async def next_state() -> bytes:
            nonlocal told
            while True:
                changed = self._changed  # BEFORE looking
                answer = self._answer(known=known)
                if answer != told:
                    told = answer
                    return answer
                await changed.wait()

        return next_state

    def _answer(self, *, known: bool) -> bytes:
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if self._ready else states.NOT_SERVING
        encoded: bytes = states(status=state if known else states.SERVICE_UNKNOWN).SerializeToString()
        return encoded


def _name(request: bytes) -> str:
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(request).service
    except DecodeError:
        raise Malformed("the request is not an encoded HealthCheckRequest") from None
    return name
