"""The public port: service e2eks.v1.Keyserver over TLS, and grpc.health.v1.Health."""

from __future__ import annotations

import grpc.aio

from keyserver.frontends import grpc_health
from keyserver.frontends.grpc_health import Health
from keyserver.frontends.handlers import Crossing, Direct, Handlers, Method, Pages
from keyserver.service import Service

SERVICE = "e2eks.v1.Keyserver"


def methods(service: Service) -> dict[str, Method]:
    """What answers each call, and where."""
    return {
        "Lookup": Direct(lambda request, caller: service.lookup_in_turn(request, caller.address)),
        "Update": Crossing(lambda request, caller: service.update(request, caller.address)),
        "Erase": Crossing(lambda request, caller: service.erase(request, caller.address)),
        "GetRealm": Direct(lambda request, _: service.get_realm(request)),
        "Consistency": Direct(lambda request, _: service.consistency(request)),
        "PolicyHeads": Pages(lambda request, _: service.policy_heads(request)),
    }


def add_to(server: grpc.aio.Server, handlers: Handlers, service: Service, health: Health) -> None:
    """Serve the public calls on `server`."""
    public = handlers.service(SERVICE, methods(service))
    server.add_generic_rpc_handlers((public, handlers.service(grpc_health.SERVICE, health.methods())))
