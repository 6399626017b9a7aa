"""gRPC servers on raw bytes, and how they are reached: addresses, TLS, limits of connections.

Certificates are asked for at each new connection, so that new ones need no restart and end no connection.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc
import grpc.aio

from keyserver.frontends.http2_limits import CONCURRENT_CALLS, SERVER_OPTIONS
from keyserver.tls_files import Credentials
from verifier.errors import ConfigError
from verifier.renewing import renewing


def new_server() -> grpc.aio.Server:
    """A server within the house's limits. Call it in the edge thread."""
    return grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS)


def tls(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """TLS with the certificate that `current` gives, for any client."""
    return renewing(current, _own)


def mutual_tls(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """TLS for clients that show a certificate leading to one of the pushers' that `current` gives."""
    return renewing(current, _with_clients, clients=True)


def links(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """TLS for other replicas: both sides show certificates of the peers' authority."""
    return renewing(current, _with_peers, clients=True)


def _with_peers(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    assert credentials.links is not None
    shown = credentials.links
    pairs = [(shown.key, shown.certificate)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=shown.authority)


def _own(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    own = credentials.own
    return grpc.ssl_server_certificate_configuration([(own.key, own.certificate)])


def _with_clients(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    own = credentials.own
    roots = "".join(verifier.tls_certificate_pem for verifier in credentials.pushers).encode("ascii")
    return grpc.ssl_server_certificate_configuration([(own.key, own.certificate)], root_certificates=roots)


def listen(server: grpc.aio.Server, name: str, address: str, credentials: grpc.ServerCredentials) -> int:
    """Bind "host:port" and return the port. Raises ConfigError when that is not possible."""
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"listen.{name}: {address} cannot be bound. Is another process using the port?")
    return port
