"""A lying keyserver for the demo: passes every call on to the genuine one, but changes lookup answers.

It has a TLS certificate of the realm, as a corrupt operator would. Run as a process of its own:
python -m keyserver.demo.impostor --listen HOST:PORT --certificate F --key F --upstream HOST:PORT --roots F
    [--answer FILE]      answer every lookup with the bytes of FILE; else genuine answers are altered
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from keyserver.demo import forge

SERVICE = "/e2eks.v1.Keyserver/"
TIMEOUT_S = 20.0


class Impostor(grpc.GenericRpcHandler):
    """Forwards raw bytes; `lie` turns a genuine lookup answer into the one that is sent."""

    def __init__(self, upstream: grpc.Channel, lie: Callable[[bytes], bytes]) -> None:
        self._upstream = upstream
        self._lie = lie

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        method = handler_call_details.method
        if method == SERVICE + "PolicyHeads":
            return grpc.unary_stream_rpc_method_handler(self._stream(method))
        if method == SERVICE + "Lookup":
            return grpc.unary_unary_rpc_method_handler(self._call(method, self._lie))
        return grpc.unary_unary_rpc_method_handler(self._call(method, lambda answer: answer))

    def _call(
        self, method: str, change: Callable[[bytes], bytes]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        forward: Any = self._upstream.unary_unary(method)  # raw bytes: the stubs know messages only

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return change(forward(request, timeout=TIMEOUT_S))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details() or "")
                raise

        return handle

    def _stream(self, method: str) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
        forward: Any = self._upstream.unary_stream(method)

        def handle(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            del context
            yield from forward(request, timeout=TIMEOUT_S)

        return handle


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("listen", "upstream"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("certificate", "key", "roots"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--answer", type=Path)
    options = parser.parse_args()
    roots = grpc.ssl_channel_credentials(options.roots.read_bytes())
    upstream = grpc.secure_channel(options.upstream, roots)
    prepared = options.answer.read_bytes() if options.answer else None
    lie = forge.tamper if prepared is None else lambda _: prepared
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Impostor(upstream, lie),))
    pair = (options.key.read_bytes(), options.certificate.read_bytes())
    server.add_secure_port(options.listen, grpc.ssl_server_credentials([pair]))
    server.start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
