"""Methods as a table: which use case answers, in which thread, and how its refusals reach the caller.

Servers and handlers work on raw bytes: every limit is checked before anything is parsed. Use cases come in
three forms: `Direct` answers in the edge thread from an immutable view; `Crossing` runs as a trio task;
`Pages` is a stream whose next message is fetched from trio only when the caller has taken the last one, so
a slow reader holds neither thread nor rows. A caller that does not send its request in time is refused;
one that does not take its answer in time, or is refused without end, loses its connection.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
import structlog

from keyserver.frontends import errors
from keyserver.frontends.connections import hang_up
from keyserver.frontends.crowd import Crowd, FairShare, Penance, Readers, Visit
from keyserver.frontends.edge import Edge, EdgeClosed
from keyserver.machine.codes import Halt
from keyserver.rate_limits import Later, RateLimited, RateLimits, network_of
from kv.interface import StorageError
from verifier.errors import Malformed, Reason, Refused

SLOW_READER = "it does not take its answers"
SLOW_CALLER_SECONDS = 5.0  # for gRPC to notice that a connection was cut
CUTS_REMEMBERED = 1_024


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the network (rate_limits.network_of), and the PEM client certificate (empty without mutual
    TLS).
    """

    address: str
    certificate_pem: bytes = b""


NextPage = Callable[[], Awaitable[bytes | None]]  # the next message, or None at the end


@dataclass(frozen=True, slots=True)
class Direct:
    use_case: Callable[[bytes, Caller], bytes | Later]


@dataclass(frozen=True, slots=True)
class Crossing:
    use_case: Callable[[bytes, Caller], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Pages:
    use_case: Callable[[bytes, Caller], NextPage]


Method = Direct | Crossing | Pages
Observe = Callable[[str, str, float], None]  # method, "OK" or reason, seconds
Work = Callable[[bytes, Caller, Visit, Any], Awaitable[bytes | None]]  # request, who, the call, its context


class NoSuchName(Exception):
    """The call asks for something by a name that nothing here has."""


class Handlers:
    """Makes gRPC handlers of methods, with one way to end a call that failed.

    To gRPC every method is a stream of requests, of which one is taken: only so is a call known, counted
    and timed before its request has arrived. Callers see no difference.
    """

    def __init__(self, edge: Edge, observe: Observe, rates: RateLimits, crowd: Crowd) -> None:
        self._edge = edge
        self._observe = observe
        self._rates = rates
        self._crowd = crowd
        self._limits = self._crowd.limits
        self._crossings = 0
        self._idle = asyncio.Event()
        self._readers = Readers()
        self._share = FairShare()
        self._penance = Penance()
        self._cuts: OrderedDict[str, float] = OrderedDict()  # connection -> when it was cut
        self._log = structlog.get_logger("edge")

    async def wait_idle(self) -> bool:
        """Return when no update and no push is under way, and whether one was."""
        busy = bool(self._crossings)
        while self._crossings:
            self._idle.clear()
            await self._idle.wait()
        return busy

    def service(self, name: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
        """The handler of the service `name`, e.g. "e2eks.v1.Keyserver"."""
        made = {method: self._handler(method, form) for method, form in methods.items()}
        return grpc.method_handlers_generic_handler(name, made)

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        match method:
            case Direct(use_case):
                return grpc.stream_unary_rpc_method_handler(self._handle(name, self._direct(use_case)))
            case Crossing(use_case):
                return grpc.stream_unary_rpc_method_handler(self._handle(name, self._crossing(use_case)))
            case Pages(use_case):
                work = self._pages(use_case)
                return grpc.stream_stream_rpc_method_handler(self._handle(name, work, stream=True))

    def _handle(self, name: str, work: Work, *, stream: bool = False) -> Any:  # grpc's type knows no bytes
        async def handle(_: object, context: Any) -> bytes | None:
            started, connection = time.monotonic(), context.peer()
            peer = caller(context)
            try:
                self._rates.call(peer.address)
                visit = self._crowd.enter(peer.address, stream=stream)
                at_end(visit.leave)
                request = await self._request(connection, peer.address, context)
                visit.carry(len(request))
                answer = await work(request, peer, visit, context)
            except Exception as error:
                await self._end(context, name, started, error)
            except asyncio.CancelledError:
                self._observe(name, "CANCELLED", time.monotonic() - started)
                self._bear_with(connection)
                raise
            self._observe(name, "OK", time.monotonic() - started)
            return answer

        return handle

    async def _request(self, connection: str, network: str, context: Any) -> bytes:
        """The request, whole. Raises Malformed if none comes in time."""
        seconds = self._limits.request_timeout_ms / 1000
        try:
            request: bytes | object = await self._readers.read(connection, network, seconds, context.read)
        except TimeoutError:
            raise Malformed(f"the request did not arrive within {seconds:g} s") from None
        if not isinstance(request, bytes):
            raise Malformed("the call has no request")
        return request

    def _direct(self, use_case: Callable[[bytes, Caller], bytes | Later]) -> Work:
        async def work(request: bytes, peer: Caller, visit: Visit, context: Any) -> bytes:
            await self._share.turn(peer.address, context.peer())
            answer = use_case(request, peer)
            if isinstance(answer, Later):
                await asyncio.sleep(answer.seconds)
                await self._share.turn(peer.address, context.peer())
                answer = answer.answer()
            self._let_go(answer, visit, context)
            return answer

        return work

    def _crossing(self, use_case: Callable[[bytes, Caller], Awaitable[bytes]]) -> Work:
        async def work(request: bytes, peer: Caller, visit: Visit, context: Any) -> bytes:
            self._crossings += 1
            try:
                answer = await self._edge.call(partial(use_case, request, peer))
            finally:
                self._crossings -= 1
                if not self._crossings:
                    self._idle.set()
            self._let_go(answer, visit, context)
            return answer

        return work

    def _let_go(self, answer: bytes, visit: Visit, context: Any) -> None:
        """The answer is handed to gRPC: cut the connection if its caller does not take it."""
        visit.carry(len(answer))
        seconds = self._limits.send_timeout_ms / 1000
        timer = asyncio.get_running_loop().call_later(seconds, self._cut, context.peer(), SLOW_READER)
        at_end(timer.cancel)

    def _pages(self, use_case: Callable[[bytes, Caller], NextPage]) -> Work:
        async def work(request: bytes, peer: Caller, _: Visit, context: Any) -> None:
            next_page = use_case(request, peer)
            while (page := await self._edge.call(next_page)) is not None:
                try:
                    async with asyncio.timeout(self._limits.send_timeout_ms / 1000):
                        await context.write(page)
                except TimeoutError:
                    self._cut(context.peer(), SLOW_READER)
                    await asyncio.sleep(SLOW_CALLER_SECONDS)  # cancelled as soon as gRPC sees it
                    return

        return work

    def _bear_with(self, connection: str) -> None:
        """Count a call that came to nothing; cut a connection that has too many of them."""
        try:
            self._rates.refusal(connection)
        except RateLimited:
            self._cut(connection, "too many calls refused or cancelled")

    def _cut(self, connection: str, why: str) -> None:
        now = time.monotonic()
        if now - self._cuts.get(connection, -math.inf) < SLOW_CALLER_SECONDS:
            return  # its other calls are being ended just now
        self._cuts[connection] = now
        self._cuts.move_to_end(connection)
        if len(self._cuts) > CUTS_REMEMBERED:
            self._cuts.popitem(last=False)
        if hang_up(connection):
            self._log.warning("connection cut", why=why)
            self._crowd.observe("slow_readers" if why == SLOW_READER else "connection_refusals")

    async def _end(self, context: Any, name: str, started: float, error: Exception) -> NoReturn:
        """End the call with the status of `error`; a storage error or Halt ends the process too."""
        refusal = None
        if isinstance(error, NoSuchName):
            self._observe(name, "NOT_FOUND", time.monotonic() - started)
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is nothing of this name")
        if isinstance(error, Refused):
            refusal = error
        elif isinstance(error, EdgeClosed):
            refusal = Refused(Reason.NOT_READY, "the replica is stopping")
        elif isinstance(error, StorageError | Halt):
            self._edge.halt(error)
            refusal = Refused(Reason.NOT_READY, "the replica cannot read its data and stops")
        self._observe(name, refusal.reason if refusal else "INTERNAL", time.monotonic() - started)
        if refusal is not None:
            if isinstance(refusal, RateLimited) and not await self._penance.hold(caller(context).address):
                self._bear_with(context.peer())
            await errors.refuse(context, refusal)
        self._log.error("call failed", method=name, error=type(error).__name__, at=places(error))
        await errors.fail(context)


def at_end(act: Callable[[], object]) -> None:
    """Act when the call is over: its answer and status sent, or its caller gone.

    gRPC has callbacks of its own; they keep the call, and its place in the connection, until the garbage
    collector comes by. The task of a call ends with it.
    """
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: act())


def caller(context: Any) -> Caller:
    """Who calls, as gRPC tells it."""
    certificates = context.auth_context().get("x509_pem_cert", ())
    return Caller(network_of(context.peer()), certificates[0] if certificates else b"")


def places(error: BaseException) -> list[str]:
    """Where an exception passed, without its text or values: those may name a user."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
