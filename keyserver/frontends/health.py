"""Health and metrics over HTTP, for the machine's own network: plain text, no secrets, nothing of users.

/livez    200 as long as the replica's loop turns: the answer comes from it
/readyz   200, or 503 with the reason in words
/status   the record of keyserver.status, with 503 if not ready
/metrics  Prometheus

A replica whose storage failed ends; what is asked of it until then gets 503 with the failure as reason.
"""

from __future__ import annotations

import socket
from typing import Any

import anycorn
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from keyserver.machine.codes import Halt
from keyserver.metrics import CONTENT_TYPE, Metrics
from keyserver.status import SCHEMA, Status
from kv.interface import StorageError
from verifier.config_file import split_address
from verifier.errors import ConfigError

STOP_GRACE_SECONDS = 1.0  # for answers under way


def application(status: Status, metrics: Metrics) -> Starlette:
    """The four paths as an ASGI application on trio."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        why = status.not_ready()
        return PlainTextResponse(f"{why or 'ready'}\n", status_code=503 if why else 200)

    async def show(_: Request) -> Response:
        record = status.record()
        return JSONResponse(record, status_code=200 if record["ready"] else 503)

    async def measured(_: Request) -> Response:
        for attribute, value, *labels in status.gauges():
            metrics.set(attribute, value, *labels)
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    paths = (("/livez", livez), ("/readyz", readyz), ("/status", show), ("/metrics", measured))
    return Starlette(
        routes=[Route(path, answer) for path, answer in paths],
        exception_handlers={StorageError: _storage_failed, Halt: _storage_failed},
    )


async def _storage_failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"schema": SCHEMA, "ready": False, "reason": str(error)}, status_code=503)


async def serve(
    app: Starlette, address: str, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve on "host:port" until cancelled; started with the port. Raises ConfigError if it cannot be
    bound.
    """
    listener = _bind(address)
    port: int = listener.getsockname()[1]
    config = anycorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = STOP_GRACE_SECONDS
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_serve_until, app, config, stop)
        task_status.started(port)
        try:
            await trio.sleep_forever()
        finally:
            stop.set()


def _bind(address: str) -> socket.socket:
    host, port = split_address(address, "listen.http")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = (error.strerror or "").partition(" (while")[0]  # Python adds what it tried
        what = f"listen.http: {address} cannot be bound: {why}"
        raise ConfigError(f"{what}. Is another process using the port?") from None


async def _serve_until(
    app: Any,  # anycorn and starlette, trio and anyio spell these two types differently
    config: anycorn.Config,
    stop: trio.Event,
    *,
    task_status: Any,
) -> None:
    """Serve until `stop`: a cancelled anycorn would call the end of the application a failure of it."""
    with trio.CancelScope(shield=True):
        await anycorn.serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)
