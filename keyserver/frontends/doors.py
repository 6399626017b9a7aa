"""All the fronts of a replica, opened together: public, verification (reading, pushing) and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import grpc.aio
import trio

from keyserver.config import Config
from keyserver.frontends import grpc_public, grpc_verification, health
from keyserver.frontends.edge import Edge
from keyserver.frontends.handlers import Handlers
from keyserver.frontends.listeners import listen, mutual_tls, new_server, tls
from keyserver.metrics import Metrics
from keyserver.service import Service
from keyserver.status import Status
from keyserver.verifier_list import VerifierCertificate

HEALTH_LOOKS_SECONDS = 0.5  # how late the standard health service may be

# Adds services to a server and returns its credentials, or None if there is nobody to serve.
Furnish = Callable[[grpc.aio.Server, Handlers], grpc.ServerCredentials | None]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """This replica's PEM certificate chain and key."""

    certificate: bytes
    key: bytes


class Doors:
    """The listeners of one replica. `serve` opens those whose address is not empty."""

    def __init__(
        self,
        config: Config,
        own: TlsFiles,
        pushers: Sequence[VerifierCertificate],
        service: Service,
        status: Status,
        metrics: Metrics,
    ) -> None:
        self._listen = config.listen
        self._own = own
        self._pushers = pushers
        self._service = service
        self._status = status
        self._metrics = metrics
        self._ports: dict[str, int] = {}
        self._health_task: asyncio.Task[None] | None = None

    async def serve(self, *, task_status: trio.TaskStatus[dict[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started with the ports. Raises ConfigError, or what halts."""
        edge = Edge()
        async with trio.open_nursery() as nursery:
            if self._listen.http:
                app = health.application(self._status, self._metrics)
                self._ports["http"] = await nursery.start(health.serve, app, self._listen.http)
            await nursery.start(edge.serve, partial(self._build, edge))
            self._status.listening = dict(self._ports)
            task_status.started(dict(self._ports))

    def _build(self, edge: Edge) -> list[grpc.aio.Server]:
        """Make the gRPC servers, ports bound, inside the edge thread."""
        handlers = Handlers(edge, self._metrics.call_ended)
        makers: dict[str, Furnish] = {
            "public": self._public,
            "verification": self._reading,
            "push": self._pushing,
        }
        servers = []
        for name, furnish in makers.items():
            address: str = getattr(self._listen, name)
            if not address:
                continue
            server = new_server()
            credentials = furnish(server, handlers)
            if credentials is not None:
                self._ports[name] = listen(server, name, address, credentials)
                servers.append(server)
        return servers

    def _public(self, server: grpc.aio.Server, handlers: Handlers) -> grpc.ServerCredentials:
        grpc_public.add_to(server, handlers, self._service)
        told = grpc_public.Health()
        told.add_to(server)
        self._health_task = asyncio.get_running_loop().create_task(self._tell(told))
        return tls(self._own.certificate, self._own.key)

    def _reading(self, server: grpc.aio.Server, handlers: Handlers) -> grpc.ServerCredentials:
        grpc_verification.add_to(server, handlers, grpc_verification.reading(self._service))
        return tls(self._own.certificate, self._own.key)

    def _pushing(self, server: grpc.aio.Server, handlers: Handlers) -> grpc.ServerCredentials | None:
        if not self._pushers:
            return None  # nobody could push: a listener without a client certificate to trust is refused
        methods = grpc_verification.pushing(self._service, self._pushers)
        grpc_verification.add_to(server, handlers, methods)
        clients = "".join(verifier.tls_certificate_pem for verifier in self._pushers)
        return mutual_tls(self._own.certificate, self._own.key, clients.encode("ascii"))

    async def _tell(self, told: grpc_public.Health) -> None:
        """Keep the standard health service true, for as long as the edge's loop runs."""
        while True:
            await told.show(not self._status.not_ready())
            await asyncio.sleep(HEALTH_LOOKS_SECONDS)
