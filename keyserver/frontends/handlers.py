"""Methods as a table: which use case answers, in which thread, and how its refusals reach the caller.

Servers and handlers work on raw bytes: every limit is checked before anything is parsed. Use cases come in
three forms: `Direct` answers in the edge thread from an immutable view; `Crossing` runs as a trio task;
`Pages` is a stream whose next message is fetched from trio only when the caller has taken the last one, so
a slow reader holds neither thread nor rows.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
import structlog

from keyserver.frontends import errors
from keyserver.frontends.edge import Edge, EdgeClosed
from keyserver.machine.codes import Halt
from kv.interface import StorageError
from verifier import limits
from verifier.errors import Reason, Refused

STREAMS_PER_PEER = 64  # of one address: verifiers behind one gateway, and a few that reconnect
CONCURRENT_CALLS = 12_000  # of one server: the waiting updates, and room for lookups and streams
CONCURRENT_STREAMS = 1_000  # of one connection; HTTP/2 allows without end

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    (
        "grpc.max_receive_message_length",
        2 * limits.REQUEST_BYTES,
    ),  # below it the refusal is ours and says why
    ("grpc.max_send_message_length", 2 * limits.VERIFIER_STEPS_BYTES),
    ("grpc.max_concurrent_streams", CONCURRENT_STREAMS),
    ("grpc.so_reuseport", 0),  # a second process on the port is a mistake, and is told so
    ("grpc.keepalive_time_ms", 60_000),  # finds callers that went away without a word
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),  # followers of an idle stream may ping
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the address without its port, and the PEM client certificate (empty without mutual TLS)."""

    address: str
    certificate_pem: bytes = b""


NextPage = Callable[[], Awaitable[bytes | None]]  # the next message, or None at the end


@dataclass(frozen=True, slots=True)
class Direct:
    use_case: Callable[[bytes, Caller], bytes]


@dataclass(frozen=True, slots=True)
class Crossing:
    use_case: Callable[[bytes, Caller], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Pages:
    use_case: Callable[[bytes, Caller], NextPage]


Method = Direct | Crossing | Pages
Observe = Callable[[str, str, float], None]  # method, "OK" or reason, seconds


class Handlers:
    """Makes gRPC handlers of methods, with one way to end a call that failed."""

    def __init__(self, edge: Edge, observe: Observe) -> None:
        self._edge = edge
        self._observe = observe
        self._streams: Counter[str] = Counter()
        self._log = structlog.get_logger("edge")

    def service(self, name: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
        """The handler of the service `name`, e.g. "e2eks.v1.Keyserver"."""
        made = {method: self._handler(method, form) for method, form in methods.items()}
        return grpc.method_handlers_generic_handler(name, made)

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        match method:
            case Direct(use_case):
                return grpc.unary_unary_rpc_method_handler(self._direct(name, use_case))
            case Crossing(use_case):
                return grpc.unary_unary_rpc_method_handler(self._crossing(name, use_case))
            case Pages(use_case):
                return grpc.unary_stream_rpc_method_handler(self._pages(name, use_case))

    def _direct(
        self, name: str, use_case: Callable[[bytes, Caller], bytes]
    ) -> Any:  # grpc's type knows no bytes
        async def handle(request: bytes, context: Any) -> bytes:
            started = time.monotonic()
            try:
                answer = use_case(request, caller(context))
            except Exception as error:
                await self._end(context, name, started, error)
            self._observe(name, "OK", time.monotonic() - started)
            return answer

        return handle

    def _crossing(self, name: str, use_case: Callable[[bytes, Caller], Awaitable[bytes]]) -> Any:
        async def handle(request: bytes, context: Any) -> bytes:
            started = time.monotonic()
            try:
                answer = await self._edge.call(partial(use_case, request, caller(context)))
            except Exception as error:
                await self._end(context, name, started, error)
            except asyncio.CancelledError:
                self._observe(name, "CANCELLED", time.monotonic() - started)
                raise
            self._observe(name, "OK", time.monotonic() - started)
            return answer

        return handle

    def _pages(self, name: str, use_case: Callable[[bytes, Caller], NextPage]) -> Any:
        async def handle(request: bytes, context: Any) -> None:
            started = time.monotonic()
            peer = caller(context)
            try:
                with self._one_stream(peer):
                    next_page = use_case(request, peer)
                    while (page := await self._edge.call(next_page)) is not None:
                        await context.write(page)
            except Exception as error:
                await self._end(context, name, started, error)
            except asyncio.CancelledError:
                self._observe(name, "CANCELLED", time.monotonic() - started)
                raise
            self._observe(name, "OK", time.monotonic() - started)

        return handle

    @contextmanager
    def _one_stream(self, peer: Caller) -> Iterator[None]:
        if self._streams[peer.address] >= STREAMS_PER_PEER:
            raise Refused(Reason.RATE_LIMITED, f"more than {STREAMS_PER_PEER} streams from one address")
        self._streams[peer.address] += 1
        try:
            yield
        finally:
            self._streams[peer.address] -= 1
            if not self._streams[peer.address]:
                del self._streams[peer.address]

    async def _end(self, context: Any, name: str, started: float, error: Exception) -> NoReturn:
        """End the call with the status of `error`; a storage error or Halt ends the process too."""
        refusal = None
        if isinstance(error, Refused):
            refusal = error
        elif isinstance(error, EdgeClosed):
            refusal = Refused(Reason.NOT_READY, "the replica is stopping")
        elif isinstance(error, StorageError | Halt):
            self._edge.halt(error)
            refusal = Refused(Reason.NOT_READY, "the replica cannot read its data and stops")
        self._observe(name, refusal.reason if refusal else "INTERNAL", time.monotonic() - started)
        if refusal is not None:
            await errors.refuse(context, refusal)
        self._log.error("call failed", method=name, error=type(error).__name__, at=places(error))
        await errors.fail(context)


def caller(context: Any) -> Caller:
    """Who calls, as gRPC tells it."""
    peer: str = context.peer()
    certificates = context.auth_context().get("x509_pem_cert", ())
    return Caller(peer.rpartition(":")[0], certificates[0] if certificates else b"")


def places(error: BaseException) -> list[str]:
    """Where an exception passed, without its text or values: those may name a user."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
