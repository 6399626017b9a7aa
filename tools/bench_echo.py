"""A bare grpc.aio server over TLS: any request of service bench.Echo is answered by as many bytes as asked.

What a replica's answers cost beyond it is ours; what it costs itself is gRPC's.
"""

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from keyserver.frontends.http2_limits import SERVER_OPTIONS

METHOD = "/bench.Echo/Echo"


async def serve(address: str, certificate: bytes, key: bytes, answer: bytes) -> None:
    """Serve until SIGTERM."""

    async def handle(_request: bytes, _context: Any) -> bytes:
        return answer

    service, _, method = METHOD.strip("/").rpartition("/")
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(handle)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("certificate", type=Path)
    parser.add_argument("key", type=Path)
    parser.add_argument("bytes", type=int)
    given = parser.parse_args()
    pair = given.certificate.read_bytes(), given.key.read_bytes()
    asyncio.run(serve(given.address, *pair, bytes(given.bytes)))


if __name__ == "__main__":
    main()
