"""The seam between gRPC and trio: one thread with one asyncio loop, in which every gRPC server of the
process lives.

gRPC for Python has no trio mode. Servers live in the edge thread; what needs the replica crosses over with
`call`, which is cancelled with the call it serves and which never holds a thread while it waits. Nothing
else crosses.

Laws: an exception of the trio side reaches the asyncio side as itself; a call that is cancelled on either
side ends on both; after `serve` has begun to stop, `call` raises EdgeClosed; an error given to `halt` ends
`serve` with that error.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc.aio
import trio

T = TypeVar("T")

STOP_GRACE_SECONDS = 1.0  # calls under way may finish; streams without end are cut then


class EdgeClosed(Exception):
    """The replica is stopping: no call crosses any more."""


class Edge:
    """Made inside trio; `serve` runs there until cancelled. `call` and `halt` are for the edge thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._nursery: trio.Nursery | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak ones
        self._started = trio.Event()
        self._ended = trio.Event()
        self._stopping = (
            False  # read by the thread AFTER it has set its loop: no order of the two loses the stop
        )

    # The asyncio side

    async def call(self, use_case: Callable[[], Awaitable[T]]) -> T:
        """Run `use_case` as a trio task and return its result or raise its exception."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        scope = trio.CancelScope()

        def deliver(error: BaseException | None, results: list[T]) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(results[0])
            else:
                future.set_exception(error)

        async def job() -> None:
            error: BaseException | None = EdgeClosed()  # what a cancelled job leaves behind
            results: list[T] = []
            try:
                with scope:
                    results.append(await use_case())
                    error = None
            except Exception as raised:
                error = raised
            finally:
                _post(loop, deliver, error, results)

        def start() -> None:
            if self._nursery is None:
                _post(loop, deliver, EdgeClosed(), [])
            else:
                self._nursery.start_soon(job)

        self._to_trio(start)
        try:
            return await future
        except asyncio.CancelledError:
            with contextlib.suppress(EdgeClosed):
                self._to_trio(scope.cancel)
            raise

    def halt(self, error: BaseException) -> None:
        """End `serve` with `error`. For any thread."""
        with contextlib.suppress(EdgeClosed):
            self._to_trio(self._halted, error)

    def _to_trio(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            raise EdgeClosed from None

    # The trio side

    async def serve(
        self,
        build: Callable[[], Sequence[grpc.aio.Server]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Start the servers that `build` makes inside the edge thread; stop them when cancelled."""
        thread = threading.Thread(target=self._thread, args=(build,), name="grpc-edge")
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            thread.start()
            try:
                await self._started.wait()
                if self._failure is None:
                    task_status.started()
                await self._ended.wait()
            finally:
                self._nursery = None
                self._stopping = True
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    if self._loop is not None:
                        _post(self._loop, self._stop_servers)
                    await trio.to_thread.run_sync(thread.join)
        if self._failure is not None:
            raise self._failure

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` in the edge thread; returns when it has ended, or with the thread. It must not raise."""
        ended = trio.Event()
        loop = self._loop
        if loop is None:
            return

        async def task() -> None:
            try:
                await work()
            finally:
                with contextlib.suppress(EdgeClosed):
                    self._to_trio(ended.set)

        def start() -> None:
            made = loop.create_task(task())
            self._tasks.add(made)
            made.add_done_callback(self._tasks.discard)

        _post(loop, start)
        await ended.wait()

    def _halted(self, error: BaseException | None) -> None:
        self._failure = self._failure or error
        self._started.set()
        self._ended.set()

    # The thread

    def _thread(self, build: Callable[[], Sequence[grpc.aio.Server]]) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._serve_all(build))
        except BaseException as raised:
            error = raised
        with contextlib.suppress(EdgeClosed):
            self._to_trio(self._halted, error)

    async def _serve_all(self, build: Callable[[], Sequence[grpc.aio.Server]]) -> None:
        stop = self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        servers = build()
        try:
            for server in servers:
                await server.start()
            self._to_trio(self._started.set)
            if not self._stopping:
                await stop.wait()
        finally:
            await asyncio.gather(*(server.stop(STOP_GRACE_SECONDS) for server in servers))

    def _stop_servers(self) -> None:
        if self._stop is not None:
            self._stop.set()


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Run in a loop of another thread, unless it is closed: then nobody waits there."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)
