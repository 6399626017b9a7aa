"""gRPC servers on raw bytes, and how they are reached: addresses, TLS, limits of connections."""

from __future__ import annotations

import grpc
import grpc.aio

from keyserver.files import ConfigError
from keyserver.frontends.http2_limits import CONCURRENT_CALLS, SERVER_OPTIONS


def new_server() -> grpc.aio.Server:
    """A server within the house's limits. Call it in the edge thread."""
    return grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS)


def tls(certificate: bytes, key: bytes) -> grpc.ServerCredentials:
    """TLS with this PEM certificate chain, for any client."""
    return grpc.ssl_server_credentials([(key, certificate)])


def mutual_tls(certificate: bytes, key: bytes, clients: bytes) -> grpc.ServerCredentials:
    """TLS for clients that show a certificate leading to one of the PEM certificates in `clients`."""
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=clients, require_client_auth=True
    )


def listen(server: grpc.aio.Server, name: str, address: str, credentials: grpc.ServerCredentials) -> int:
    """Bind "host:port" and return the port. Raises ConfigError when that is not possible."""
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"listen.{name}: {address} cannot be bound. Is another process using the port?")
    return port
