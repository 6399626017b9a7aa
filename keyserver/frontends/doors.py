"""All the fronts of a replica, opened together: public, verification (reading, pushing) and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import grpc.aio
import trio

from keyserver.config import Config
from keyserver.frontends import grpc_peers, grpc_public, grpc_verification, health
from keyserver.frontends.connections import Doorkeeper
from keyserver.frontends.crowd import Crowd
from keyserver.frontends.deafness import Turnstile
from keyserver.frontends.edge import Edge
from keyserver.frontends.grpc_health import Health
from keyserver.frontends.handlers import Handlers
from keyserver.frontends.listeners import links, listen, mutual_tls, new_server, tls
from keyserver.metrics import Metrics
from keyserver.peers.service import Peers
from keyserver.rate_limits import Arrivals, Limits, Rate, RateLimits
from keyserver.service import Service
from keyserver.status import Status
from keyserver.tls_files import Credentials

CONNECTION_LOOKS_SECONDS = 0.25  # how long a network may have too many connections
STRANGERS = ("public", "verification", "push")  # listeners that anybody may reach
LINGER_SECONDS = 1.0  # who was answered last may ask how the proof continues what it knew

# What members may ask: each of them forwards what its own clients were granted, and all may share a network.
PEER_LIMITS = Limits(peer_calls=Rate(20_000, 40_000), request_timeout_ms=3_000, send_timeout_ms=3_000)

# Adds services to a server and returns its credentials, or None if there is nobody to serve.
Furnish = Callable[[grpc.aio.Server, Handlers], grpc.ServerCredentials | None]


class Doors:
    """The listeners of one replica. `serve` opens those whose address is not empty."""

    def __init__(
        self,
        config: Config,
        credentials: Credentials,
        service: Service,
        status: Status,
        metrics: Metrics,
        rates: RateLimits,
        peers: Peers,
    ) -> None:
        self._listen = config.listen
        self._peers = peers
        self._others = config.cluster.others(config.replica_name) if config.cluster else {}
        self._rates = rates
        self._crowd = Crowd(config.limits, self._limited)
        self._service = service
        self._status = status
        self._metrics = metrics
        self._ports: dict[str, int] = {}
        self._health = Health(status.not_ready, (grpc_public.SERVICE,))
        self._edge = Edge()
        self._handlers: Handlers | None = None
        self.renew(credentials)

    def renew(self, credentials: Credentials) -> None:
        """Show and believe these from the next connection on; a push counts by them from the next call on.

        Those who had no push listener at the start get none now.
        """
        self._credentials = credentials
        self._listed = grpc_verification.listed_keys(credentials.pushers)
        ends_ms = self._status.certificates_ms = credentials.not_after_ms()
        ends_s = {holder: end_ms / 1000 for holder, end_ms in ends_ms.items()}
        self._metrics.set_all("certificate_end", ends_s)

    async def drain(self) -> None:
        """Take no new update; return when none waits. Everything else goes on: what callers wait for comes
        through the other listeners. Cancelled, it leaves the rest to the end of `serve`.
        """
        self._service.stopping = True
        await self._edge.run(self._drain)

    async def serve(self, *, task_status: trio.TaskStatus[dict[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started with the ports. Raises ConfigError, or what halts."""
        edge = self._edge
        async with trio.open_nursery() as nursery:
            if self._listen.http:
                app = health.application(self._status, self._metrics)
                self._ports["http"] = await nursery.start(health.serve, app, self._listen.http)
            await nursery.start(edge.serve, self._build)
            nursery.start_soon(self._health.run)
            nursery.start_soon(self._keep_doors)
            self._status.listening = dict(self._ports)
            task_status.started(dict(self._ports))

    def _build(self) -> list[grpc.aio.Server]:
        """Make the gRPC servers, ports bound, inside the edge thread."""
        handlers = self._handlers = Handlers(self._edge, self._metrics.call_ended, self._rates, self._crowd)
        makers: dict[str, Furnish] = {
            "public": self._public,
            "verification": self._reading,
            "push": self._pushing,
        }
        if self._credentials.links is not None:
            makers["peers"] = self._linking
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
        grpc_public.add_to(server, handlers, self._service, self._health)
        return tls(lambda: self._credentials)

    def _reading(self, server: grpc.aio.Server, handlers: Handlers) -> grpc.ServerCredentials:
        grpc_verification.add_to(server, handlers, grpc_verification.reading(self._service))
        return tls(lambda: self._credentials)

    def _pushing(self, server: grpc.aio.Server, handlers: Handlers) -> grpc.ServerCredentials | None:
        if not self._credentials.pushers:
            return None  # nobody could push: a listener without a client certificate to trust is refused
        methods = grpc_verification.pushing(self._service, lambda: self._listed)
        grpc_verification.add_to(server, handlers, methods)
        return mutual_tls(lambda: self._credentials)

    def _linking(self, server: grpc.aio.Server, _: Handlers) -> grpc.ServerCredentials:
        rates, crowd = RateLimits(PEER_LIMITS), Crowd(PEER_LIMITS, self._limited)
        handlers = Handlers(self._edge, self._metrics.call_ended, rates, crowd)
        grpc_peers.add_to(server, handlers, grpc_peers.methods(self._peers, self._others))
        return links(lambda: self._credentials)

    async def _drain(self) -> None:
        """In the edge thread."""
        if self._handlers is not None and await self._handlers.wait_idle():
            await asyncio.sleep(LINGER_SECONDS)

    async def _keep_doors(self) -> None:
        """Cut the connections of networks that have too many; hear those no more that connect too often."""
        limits, ports = self._crowd.limits, self._ports
        strangers = [ports[name] for name in STRANGERS if name in ports]
        too_often = partial(self._limited, "peer_new_connections")
        turnstile = Turnstile(Arrivals(limits.peer_new_connections), strangers, too_often)
        too_many = partial(self._limited, "peer_connections")
        keeper = Doorkeeper(limits.peer_connections, ports.values, too_many, turnstile.see)
        while True:
            await trio.sleep(CONNECTION_LOOKS_SECONDS)
            await trio.to_thread.run_sync(keeper.look)

    def _limited(self, limit: str) -> None:
        self._metrics.count("rate_limited", limit)
