"""What an operator asks of a running replica on its own machine: HTTP over a Unix socket in its folder.

Whoever may open the socket may read the database: its mode is 0600.

POST /backup      the stream of keyserver.copies.backup, of this moment; 409 while another one is being sent
GET  /replicas    the present set of replicas, keyserver.replica_change.PresentSet
POST /replicas    a change with its approvals, as in its file; 200 once the log has accepted it
POST /hand-over   let another replica lead, if this one does; 200 with who leads then
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anycorn
import trio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from keyserver.copies.backup import Origin, copy_stream
from keyserver.frontends.replica_desk import ReplicaDesk
from keyserver.operator_socket import MODE, SOCKET, socket_address
from kv.interface import StorageError, Store
from replication.interface import ReplicatedLog
from verifier.errors import ConfigError

WAITING = 8  # connections that nobody has accepted yet; operators are few
STOP_GRACE_SECONDS = 1.0


async def serve(
    folder: Path,
    store: Store,
    log: ReplicatedLog,
    origin: Callable[[], Origin],
    replicas: ReplicaDesk | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on the socket in `folder` until cancelled. Raises ConfigError if it cannot be made.

    Call it only while this process has the folder's database locked: a socket that is there was left behind.
    """
    config = anycorn.Config()
    config.errorlog = None
    config.accesslog = None
    config.graceful_timeout = STOP_GRACE_SECONDS
    stop = trio.Event()
    with _listening(folder) as listener:
        config.bind = [f"fd://{listener.detach()}"]
        routes = [Route("/backup", _Backups(store, log, origin), methods=["POST"])]
        if replicas is not None:
            routes.append(Route("/replicas", replicas.answer, methods=["GET", "POST"]))
            routes.append(Route("/hand-over", replicas.hand_over, methods=["POST"]))
        app = Starlette(routes=routes)
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_until, app, config, stop)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                stop.set()


async def _serve_until(
    app: Starlette, config: anycorn.Config, stop: trio.Event, *, task_status: trio.TaskStatus[object]
) -> None:
    """Serve until `stop`: a cancelled anycorn would call the end of the application a failure of it."""
    with trio.CancelScope(shield=True):
        await anycorn.serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)  # type: ignore[arg-type]  # starlette and anycorn spell ASGI differently


@contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    """The socket, bound and private from the first moment on; its name is removed at the end."""
    with socket_address(folder) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        before = os.umask(0o777 & ~MODE)
        try:
            Path(address).unlink(missing_ok=True)
            listener.bind(address)
            listener.listen(WAITING)
        except OSError as error:
            raise ConfigError(f"{folder / SOCKET} cannot be made: {error.strerror}") from None
        finally:
            os.umask(before)
        try:
            yield listener
        finally:
            Path(address).unlink(missing_ok=True)


class _Backups:
    """Answers POST /backup, one at a time: each holds a snapshot, and reads the whole disk."""

    def __init__(self, store: Store, log: ReplicatedLog, origin: Callable[[], Origin]) -> None:
        self._store = store
        self._log = log
        self._origin = origin
        self._busy = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._busy:
            busy = PlainTextResponse("another backup is being sent\n", status_code=409)
            await busy(scope, receive, send)
            return
        self._busy = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, send, nursery.cancel_scope)
                await _disconnected(receive)
                nursery.cancel_scope.cancel()
        finally:
            self._busy = False

    async def _send(self, send: Send, done: trio.CancelScope) -> None:
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with self._store.snapshot() as rows:
            fault = await trio.to_thread.run_sync(self._log_fault)
            stream = copy_stream(self._origin(), rows, self._log, fault)
            while (piece := await trio.to_thread.run_sync(partial(next, stream, None))) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        done.cancel()

    def _log_fault(self) -> str:
        """What is wrong with the chain of the log, or ""."""
        try:
            self._log.verify_chain(1, self._log.status().committed_index + 1)
        except StorageError as error:
            return str(error)
        return ""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
