"""TLS credentials of gRPC servers that may change while they serve: those of replicas and of verifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc

T = TypeVar("T")


def renewing(
    current: Callable[[], T],
    configured: Callable[[T], grpc.ServerCertificateConfiguration],
    *,
    clients: bool = False,
) -> grpc.ServerCredentials:
    """Credentials `configured` from what is `current` at each handshake; unchanged is the same object.
    `clients`: they must show a certificate, too.

    gRPC asks in threads of its own and is told only what is new: it frees the former configuration at once,
    and a handshake that another thread begins with it ends the process (grpc/grpc issue 36693).
    """
    used = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        newest = current()
        if newest is used:
            return None
        used = newest
        return configured(newest)

    first = configured(used)
    return grpc.dynamic_ssl_server_credentials(first, fetch, clients)  # type: ignore[arg-type]  # None: no change
