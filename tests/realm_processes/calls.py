"""gRPC calls on raw bytes, as any stranger can make them, and how they ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

DEADLINE_S = 60.0
DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Reply:
    """`code` is the name of the gRPC status, `reason` that of the ErrorInfo or empty."""

    code: str
    reason: str = ""
    data: bytes = b""
    domain: str = ""


@dataclass(frozen=True)
class Door:
    """One listener. `pair` is a client's certificate and key (PEM)."""

    address: str
    roots: bytes
    pair: tuple[bytes, bytes] | None = None

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        certificate, key = self.pair or (None, None)
        credentials = grpc.ssl_channel_credentials(self.roots, key, certificate)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        with grpc.secure_channel(self.address, credentials, options) as channel:
            yield channel

    def call(self, path: str, request: bytes, timeout_s: float = DEADLINE_S) -> Reply:
        """One call of a method that answers once, over a connection of its own."""
        with self.channel() as channel:
            rpc: Any = channel.unary_unary(path)
            try:
                return Reply("OK", data=rpc(request, timeout=timeout_s))
            except grpc.RpcError as error:
                return reply_of(error)

    def stream(self, path: str, request: bytes) -> tuple[list[bytes], Reply]:
        """All messages of a stream that ends, and how it ended."""
        messages: list[bytes] = []
        with self.channel() as channel:
            rpc: Any = channel.unary_stream(path)
            try:
                messages.extend(rpc(request, timeout=DEADLINE_S))
            except grpc.RpcError as error:
                return messages, reply_of(error)
        return messages, Reply("OK")


def reply_of(error: Any) -> Reply:
    """Status and reason of an error."""
    details = [item.value for item in error.trailing_metadata() or () if item.key == DETAILS_KEY]
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(details[0] if details else b"").details:
        detail.Unpack(info)
    return Reply(error.code().name, info.reason, domain=info.domain)
