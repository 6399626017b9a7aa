"""The peers' port: service e2eks.v1.Peers, for the other members alone.

TLS lets in whoever has a certificate of the peers' authority; here the name in it must be a member's, and
another one's: a caller with this replica's own name is a copy of it, or a thief of its key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import grpc.aio

from keyserver.frontends.handlers import Caller, Crossing, Handlers, Method
from keyserver.peer_certificates import name_in
from keyserver.peers.lines import SERVICE
from keyserver.peers.service import Peers
from verifier.errors import Reason, Refused


def methods(peers: Peers, others: Collection[str]) -> dict[str, Method]:
    """The calls of the listener, for the members named in `others`."""

    def only_members(use_case: Callable[[bytes], bytes]) -> Crossing:
        async def answer(request: bytes) -> bytes:
            return use_case(request)

        def call(request: bytes, caller: Caller) -> Awaitable[bytes]:
            if name_in(caller.certificate_pem) not in others:
                raise Refused(Reason.NOT_AUTHORIZED, "the certificate is not that of another member")
            return answer(request)

        return Crossing(call)

    return {
        "Endorse": only_members(peers.endorse),
        "ShowHead": only_members(peers.show_head),
        "Status": only_members(peers.status),
    }


def add_to(server: grpc.aio.Server, handlers: Handlers, table: dict[str, Method]) -> None:
    """Serve the methods on `server`."""
    server.add_generic_rpc_handlers((handlers.service(SERVICE, table),))
