"""The public port: service e2eks.v1.Keyserver over TLS, and grpc.health.v1.Health."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # no stubs

from keyserver.frontends.handlers import Crossing, Direct, Handlers, Method, Pages
from keyserver.service import Service

SERVICE = "e2eks.v1.Keyserver"


def methods(service: Service) -> dict[str, Method]:
    """What answers each call, and where."""
    return {
        "Lookup": Direct(lambda request, caller: service.lookup(request, caller.address)),
        "Update": Crossing(lambda request, caller: service.update(request, caller.address)),
        "Erase": Crossing(lambda request, caller: service.erase(request, caller.address)),
        "GetRealm": Direct(lambda request, _: service.get_realm(request)),
        "Consistency": Direct(lambda request, _: service.consistency(request)),
        "PolicyHeads": Pages(lambda request, _: service.policy_heads(request)),
    }


class Health:
    """The standard health service. Made, and told, in the edge thread."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()

    async def show(self, ready: bool) -> None:
        """Say whether the replica is ready; the empty name stands for the whole process."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if ready else states.NOT_SERVING
        for name in ("", SERVICE):
            await self._servicer.set(name, state)

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)


def add_to(server: grpc.aio.Server, handlers: Handlers, service: Service) -> None:
    """Serve the public calls on `server`."""
    server.add_generic_rpc_handlers((handlers.service(SERVICE, methods(service)),))
