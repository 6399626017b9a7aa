"""The seam between gRPC and trio: results, typed errors, cancellation and deadlines both ways, back-
pressure, stopping.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import grpc
import grpc.aio
import pytest
import trio
import trio.lowlevel
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from keyserver.frontends import errors, handlers
from keyserver.frontends.crowd import Crowd
from keyserver.frontends.edge import Edge, EdgeClosed
from keyserver.frontends.handlers import Caller, Crossing, Direct, Handlers, Method, Pages
from keyserver.frontends.http2_limits import SERVER_OPTIONS
from keyserver.rate_limits import Later, Limits, RateLimits
from kv.interface import StorageError
from verifier.errors import Reason, Refused

PATIENCE = 60.0
# A channel to the server, what was observed (method, outcome), and what stops the edge.
Served = tuple[grpc.Channel, list[tuple[str, str]], Callable[[], None]]


class Calls:
    """Use cases that tell the test what happens to them."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.cancelled = trio.Event()
        self.pages = 0

    async def echo(self, request: bytes, peer: Caller) -> bytes:
        return request + peer.address.encode()

    async def refuse(self, request: bytes, _: Caller) -> bytes:
        raise Refused(Reason(request.decode()), "because of the test")

    async def burst(self, request: bytes, _: Caller) -> bytes:
        raise KeyError("alice@example.org")

    async def wait(self, _: bytes, __: Caller) -> bytes:
        self.entered.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        raise AssertionError

    def direct(self, request: bytes, _: Caller) -> bytes:
        return request + threading.current_thread().name.encode()

    def in_turn(self, request: bytes, peer: Caller) -> Later:
        return Later(float(request), lambda: self.direct(request, peer))

    def unreadable(self, _: bytes, __: Caller) -> bytes:
        raise StorageError("a row is gone")

    def stream(self, request: bytes, _: Caller) -> handlers.NextPage:
        async def next_page() -> bytes | None:
            self.pages += 1
            self.entered.set()
            if request == b"three" and self.pages > 3:
                return None
            return bytes(1000)

        return next_page


@asynccontextmanager
async def served(
    calls: Calls, limits: Limits | None = None
) -> AsyncIterator[tuple[grpc.Channel, list[tuple[str, str]], Callable[[], None]]]:
    observed: list[tuple[str, str]] = []
    edge = Edge()
    ports: list[int] = []
    methods: dict[str, Method] = {
        "Echo": Crossing(calls.echo),
        "Refuse": Crossing(calls.refuse),
        "Burst": Crossing(calls.burst),
        "Wait": Crossing(calls.wait),
        "Direct": Direct(calls.direct),
        "InTurn": Direct(calls.in_turn),
        "Unreadable": Direct(calls.unreadable),
        "Stream": Pages(calls.stream),
    }

    def build() -> list[grpc.aio.Server]:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        granted = limits or Limits()

        def observe(method: str, outcome: str, _: float) -> None:
            observed.append((method, outcome))

        made = Handlers(edge, observe, RateLimits(granted), Crowd(granted))
        server.add_generic_rpc_handlers((made.service("t.Calls", methods),))
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        return [server]

    async with trio.open_nursery() as nursery:
        edge_scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            with edge_scope:
                await edge.serve(build, task_status=task_status)

        await nursery.start(serve)
        fixed_window = [("grpc.http2.bdp_probe", 0)]  # or a caller that reads nothing grants more and more
        channel = grpc.insecure_channel(f"127.0.0.1:{ports[0]}", fixed_window)
        try:
            yield channel, observed, edge_scope.cancel
        finally:
            await trio.to_thread.run_sync(channel.close)
            nursery.cancel_scope.cancel()


async def ask(channel: grpc.Channel, method: str, request: bytes = b"", seconds: float = PATIENCE) -> bytes:
    call = channel.unary_unary(f"/t.Calls/{method}")
    answer: bytes = await trio.to_thread.run_sync(partial(call, request, timeout=seconds))
    return answer


async def test_a_call_crosses_to_trio_and_back() -> None:
    async with served(Calls()) as (channel, observed, _):
        assert await ask(channel, "Echo", b"hello ") == b"hello 127.0.0.1"
    assert observed == [("Echo", "OK")]


async def test_what_is_granted_later_is_made_then_and_holds_up_nobody() -> None:
    async with served(Calls()) as (channel, observed, _):
        much_later = channel.unary_unary("/t.Calls/InTurn").future(b"60", timeout=PATIENCE)
        assert await ask(channel, "InTurn", b"0.001") == b"0.001grpc-edge"
        assert await ask(channel, "Direct") == b"grpc-edge"
        assert [method for method, _ in observed] == ["InTurn", "Direct"]
        much_later.cancel()


async def test_a_direct_call_stays_in_the_edge_thread() -> None:
    async with served(Calls()) as (channel, _, _):
        assert await ask(channel, "Direct", b"in ") == b"in grpc-edge"


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_has_a_status_and_arrives_as_error_info(reason: Reason) -> None:
    async with served(Calls()) as (channel, observed, _):
        with pytest.raises(grpc.RpcError) as caught:
            await ask(channel, "Refuse", reason.value.encode())
    assert caught.value.code() is errors.STATUS[reason]
    assert caught.value.details() == "because of the test"
    metadata = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(metadata[errors.DETAILS_KEY])
    info = error_details_pb2.ErrorInfo()
    packed: any_pb2.Any = status.details[0]
    assert packed.Unpack(info)
    assert (info.domain, info.reason, status.code) == ("e2eks", reason.value, errors.STATUS[reason].value[0])
    assert observed == [("Refuse", reason.value)]


async def test_an_unforeseen_exception_is_internal_and_shows_nothing_of_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with served(Calls()) as (channel, observed, _):
        with pytest.raises(grpc.RpcError) as caught:
            await ask(channel, "Burst")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "alice" not in caught.value.details()
    assert observed == [("Burst", "INTERNAL")]
    logged = "".join(capsys.readouterr())
    assert "KeyError" in logged
    assert "alice" not in logged


async def test_a_passed_deadline_cancels_the_trio_task() -> None:
    calls = Calls()
    async with served(calls) as (channel, _, _):
        for seconds in (0.2, 2.0, 20.0):  # a deadline may pass before the call has come in
            with pytest.raises(grpc.RpcError) as caught:
                await ask(channel, "Wait", seconds=seconds)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if calls.entered.is_set():
                break
        with trio.fail_after(PATIENCE):
            await calls.cancelled.wait()


async def test_a_cancelled_call_cancels_the_trio_task() -> None:
    calls = Calls()
    async with served(calls) as (channel, _, _):
        future = channel.unary_unary("/t.Calls/Wait").future(b"", timeout=PATIENCE)
        with trio.fail_after(PATIENCE):
            await calls.entered.wait()
            future.cancel()
            await calls.cancelled.wait()


async def test_stopping_ends_waiting_calls_as_not_ready() -> None:
    calls = Calls()
    async with served(calls) as (channel, _, stop):
        future = channel.unary_unary("/t.Calls/Wait").future(b"", timeout=PATIENCE)
        with trio.fail_after(PATIENCE):
            await calls.entered.wait()
        stop()
        with trio.fail_after(PATIENCE):
            error = await trio.to_thread.run_sync(partial(future.exception, timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert calls.cancelled.is_set()


async def test_a_storage_error_in_a_direct_call_ends_the_edge() -> None:
    async def fall() -> None:
        async with served(Calls()) as (channel, _, _):
            with pytest.raises(grpc.RpcError) as refused:
                await ask(channel, "Unreadable")
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            with trio.fail_after(PATIENCE):
                await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await fall()
    assert caught.group_contains(StorageError)


async def test_a_stream_hands_out_its_pages_and_ends() -> None:
    async with served(Calls()) as (channel, observed, _):
        stream = channel.unary_stream("/t.Calls/Stream")(b"three", timeout=PATIENCE)
        assert [len(page) for page in await trio.to_thread.run_sync(list, stream)] == [1000] * 3
    assert observed == [("Stream", "OK")]


async def test_an_unread_stream_is_not_read_ahead_without_end() -> None:
    calls = Calls()
    async with served(calls) as (channel, _, _):
        stream = channel.unary_stream("/t.Calls/Stream")(b"endless", timeout=PATIENCE)
        await trio.to_thread.run_sync(next, stream)
        with trio.fail_after(PATIENCE):
            before = -1
            while calls.pages != before:  # until the window between the two is full
                before = calls.pages
                await ask(channel, "Echo")
                await trio.sleep(0.1)
        assert calls.pages < 20_000
        stream.cancel()


async def test_streams_of_one_address_are_bounded() -> None:
    async with served(Calls(), Limits(peer_streams=2)) as (channel, _, _):
        opened = []
        for _ in range(2):
            opened.append(channel.unary_stream("/t.Calls/Stream")(b"endless", timeout=PATIENCE))
            await trio.to_thread.run_sync(next, opened[-1])
        third = channel.unary_stream("/t.Calls/Stream")(b"endless", timeout=PATIENCE)
        with pytest.raises(grpc.RpcError) as caught:
            await trio.to_thread.run_sync(next, third)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in opened:
            stream.cancel()


async def test_many_waiting_calls_hold_no_thread() -> None:
    calls = Calls()
    async with served(calls) as (channel, _, _):
        before = threading.active_count()
        futures = [channel.unary_unary("/t.Calls/Wait").future(b"", timeout=PATIENCE) for _ in range(200)]
        with trio.fail_after(PATIENCE):
            await calls.entered.wait()
            await ask(channel, "Echo")
        assert threading.active_count() <= before + 5
        for future in futures:
            future.cancel()


async def test_a_taken_port_is_an_error_of_serve() -> None:
    edge = Edge()

    def build() -> list[grpc.aio.Server]:
        raise RuntimeError("address in use")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(edge.serve, build)
    assert caught.group_contains(RuntimeError, match="address in use")


async def test_after_the_end_calls_raise_edge_closed() -> None:
    edge = Edge()
    async with trio.open_nursery() as nursery:
        await nursery.start(edge.serve, list)
        nursery.cancel_scope.cancel()

    def call_late() -> None:
        with pytest.raises(EdgeClosed):
            asyncio.run(edge.call(trio.lowlevel.checkpoint))

    with trio.fail_after(PATIENCE):
        await trio.to_thread.run_sync(call_late)
