"""The metrics of a verifier over plain HTTP, for its operator's own network: where it stands, nothing more.

Off unless the configuration names an address. A connection carries one request, small and soon, and few are
open at one time: the daemon's work never waits for who reads its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from kv.interface import StorageError
from verifier.config_file import split_address
from verifier.errors import ConfigError

CONNECTIONS_MAX = 16
REQUEST_BYTES = 8 * 1024
PATIENCE_S = 5.0

# Metric -> the name in the standing of a daemon, its unit, help.
GAUGES: Mapping[str, tuple[str, float, str]] = {
    "e2eks_verifier_epoch": ("epoch", 1, "Newest epoch replayed."),
    "e2eks_verifier_ratified_epoch": ("ratified_epoch", 1, "Newest epoch this verifier ratified."),
    "e2eks_verifier_lag_epochs": ("lag_epochs", 1, "Epochs replayed and not ratified."),
    "e2eks_verifier_outbox": ("owed", 1, "Ratifications that no keyserver has acknowledged."),
    "e2eks_verifier_pending_updates": ("pending_updates", 1, "Updates replayed of the next epoch."),
    "e2eks_verifier_issue_time_seconds": (
        "issue_time_ms",
        0.001,
        "Issue time of the newest epoch replayed, Unix time.",
    ),
    "e2eks_verifier_last_message_seconds": ("last_message_ms", 0.001, "Last message of a stream, Unix time."),
    "e2eks_free_bytes": ("free_bytes", 1, "Bytes left on the fullest disk this verifier writes to."),
    "e2eks_tls_certificate_not_after_seconds": (
        "certificate_end_ms",
        0.001,
        "When this verifier's TLS certificate ends, Unix time.",
    ),
}


def text(standing: Mapping[str, Any]) -> bytes:
    """A daemon's standing in the form that Prometheus reads."""
    registry = CollectorRegistry()
    for name, (source, unit, help_text) in GAUGES.items():
        Gauge(name, help_text, registry=registry).set(standing.get(source, 0) * unit)
    following = Gauge("e2eks_verifier_following", "1 while a stream is read.", registry=registry)
    following.set(bool(standing.get("following")))
    peers = Gauge("e2eks_verifier_peer_epoch", "Newest epoch compared.", ("peer",), registry=registry)
    for peer, epoch in standing.get("peers", {}).items():
        peers.labels(peer).set(epoch)
    return generate_latest(registry)


async def serve(
    address: str, standing: Callable[[], Mapping[str, Any]], listening: Callable[[int], None]
) -> None:
    """Serve /metrics and /livez at "host:port" until cancelled; `listening` is told the port.

    `standing` is called in a thread. Raises ConfigError if the address cannot be bound.
    """
    host, port = split_address(address, "metrics")
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        what = f"metrics: {address} cannot be bound: {error.strerror or error}"
        raise ConfigError(f"{what}. Is another process using the port?") from None
    listening(listeners[0].socket.getsockname()[1])
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(PATIENCE_S):
            try:
                async with limit:
                    await _answer(stream, standing)
            except trio.BrokenResourceError:
                return  # who asked has gone

    await trio.serve_listeners(answer, listeners)


def _measured(standing: Callable[[], Mapping[str, Any]]) -> tuple[bytes, bytes]:
    try:
        return b"200 OK", text(standing())
    except StorageError:  # who replays and ratifies meets it, too, and ends the process with words
        return b"503 Service Unavailable", b"the verifier cannot read its database\n"


async def _answer(stream: trio.SocketStream, standing: Callable[[], Mapping[str, Any]]) -> None:
    request = b""
    while b"\r\n\r\n" not in request and len(request) < REQUEST_BYTES:
        some = await stream.receive_some(REQUEST_BYTES)
        if not some:
            return
        request += some
    match request.split(b"\r\n", 1)[0].split(b" "):
        case [b"GET", b"/metrics", _]:
            status, body = await trio.to_thread.run_sync(_measured, standing)
        case [b"GET", b"/livez", _]:
            status, body = b"200 OK", b"alive\n"
        case _:
            status, body = b"404 Not Found", b"GET /metrics or /livez\n"
    head = (
        b"HTTP/1.1 %b\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n"
    )
    await stream.send_all(head % (status, len(body)) + body)
