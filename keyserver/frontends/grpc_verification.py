"""The verification ports: service e2eks.v1.Verification, reading and pushing on listeners of their own.

Anybody may read the verifier log, over TLS. Pushing needs mutual TLS, and gRPC for Python can only ask
every client of a listener for a certificate or none (docs/adr/0005): hence two listeners. A certificate
stands for the key that is listed beside it, byte for byte; being signed by somebody means nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import grpc.aio

from keyserver.frontends.handlers import Caller, Crossing, Handlers, Method, Pages
from keyserver.service import Service
from keyserver.verifier_list import VerifierCertificate, certificate_der

SERVICE = "e2eks.v1.Verification"


def reading(service: Service) -> dict[str, Method]:
    """The calls of the reading listener."""
    return {"VerifierStream": Pages(lambda request, _: service.verifier_stream(request))}


def pushing(service: Service, key_ids: Callable[[], Mapping[bytes, bytes]]) -> dict[str, Method]:
    """The calls of the pushing listener, for the verifiers that `listed_keys` gives at each call."""

    def push(request: bytes, caller: Caller) -> Awaitable[bytes]:
        return service.push_ratification(request, key_ids().get(_shown(caller)))

    return {"PushRatification": Crossing(push)}


def listed_keys(listed: Iterable[VerifierCertificate]) -> dict[bytes, bytes]:
    """Exact certificate (DER) -> key id."""
    return {certificate_der(verifier.tls_certificate_pem): verifier.key_id for verifier in listed}


def _shown(caller: Caller) -> bytes:
    """The DER certificate of the caller, or b"", which no table holds."""
    try:
        return certificate_der(caller.certificate_pem.decode("ascii"))
    except ValueError:
        return b""


def add_to(server: grpc.aio.Server, handlers: Handlers, methods: Mapping[str, Method]) -> None:
    """Serve `methods` on `server`."""
    server.add_generic_rpc_handlers((handlers.service(SERVICE, methods),))
