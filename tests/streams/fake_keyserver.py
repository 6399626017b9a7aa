"""A keyserver's verification ports over real TLS, serving a Stream and misbehaving on demand."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from enum import Enum
from typing import Self

import grpc
from e2eks.v1 import types_pb2 as pb
from e2eks.v1 import verification_pb2
from streams.build import Stream, steps_message

from verifier.daemon.setup import make_certificate

DEADLINE_S = 60.0
POLL_S = 0.05


class OnPush(Enum):
    """What happens to one push."""

    CUT_BEFORE = "the connection breaks before the server has it"
    CUT_AFTER = "the server has it, the answer is lost"
    REFUSE = "the server says no"
    HANG = "the server does not answer until it closes"


SOON = tuple(fate for fate in OnPush if fate is not OnPush.HANG)


class FakeKeyserver:
    """Serves `stream` as it grows. `pushed` holds every ratification received, in order."""

    def __init__(self, stream: Stream, verifier_certificates: bytes = b"") -> None:
        self.stream = stream
        self.certificate, self._key = make_certificate("keyserver", "127.0.0.1", datetime.now(UTC))
        self.pushed: list[bytes] = []
        self.starts: list[int] = []  # of the streams opened
        self.steps_per_message = 3
        self.cut_streams_after: deque[int] = deque()  # messages until a stream breaks, one number a stream
        self.on_push: deque[OnPush] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._servers: list[grpc.Server] = []
        self.verification = self._serve({"VerifierStream": self._stream_handler()}, None)
        self.push = self._serve({"PushRatification": self._push_handler()}, verifier_certificates or None)

    def _serve(self, handlers: dict[str, grpc.RpcMethodHandler], clients: bytes | None) -> str:
        generic = grpc.method_handlers_generic_handler("e2eks.v1.Verification", handlers)
        server = grpc.server(ThreadPoolExecutor(32), [generic], options=[("grpc.so_reuseport", 0)])
        pair = [(self._key, self.certificate)]
        credentials = grpc.ssl_server_credentials(pair, clients, require_client_auth=clients is not None)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}"

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for server in self._servers:
            server.stop(None).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def grow(self, change: Callable[[Stream], object]) -> None:
        """Change the stream, and tell those who follow."""
        with self._changed:
            change(self.stream)
            self._changed.notify_all()

    def wait_until(self, happened: Callable[[], bool], what: str = "") -> None:
        """Wait for something the fake sees. Raises TimeoutError after a generous deadline."""
        with self._changed:
            if not self._changed.wait_for(happened, DEADLINE_S):
                raise TimeoutError(what or "it did not happen")

    def ratified_epochs(self) -> set[int]:
        return {self._epoch(push) for push in self.pushed}

    def pushes_of(self, epoch: int) -> list[bytes]:
        return [push for push in self.pushed if self._epoch(push) == epoch]

    @staticmethod
    def _epoch(push: bytes) -> int:
        return pb.EpochHead.FromString(pb.SignedEpochHead.FromString(push).head).epoch

    def _stream_handler(self) -> grpc.RpcMethodHandler:
        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            wanted = verification_pb2.VerifierStreamRequest.FromString(request)
            with self._changed:
                self.starts.append(wanted.start)
                left = self.cut_streams_after.popleft() if self.cut_streams_after else -1
                self._changed.notify_all()
            following, sent = wanted.start, 0
            while context.is_active():
                if left == 0:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                steps = self._next(following)
                if steps:
                    yield steps_message(*steps)
                    following, sent, left = following + len(steps), sent + len(steps), left - 1
                elif wanted.page_size or self._closing:
                    return

        return grpc.unary_stream_rpc_method_handler(stream)

    def _next(self, start: int) -> list[bytes]:
        with self._changed:
            if len(self.stream.steps) < start and not self._closing:
                self._changed.wait(POLL_S)
            return self.stream.steps[start - 1 : start - 1 + self.steps_per_message]

    def _answer(self) -> bytes:
        """The newest ratification, the first one of its epoch: all pushes are by one verifier."""
        answer = verification_pb2.PushRatificationResponse()
        if self.pushed:
            newest = max(self.pushed, key=lambda push: (self._epoch(push), -self.pushed.index(push)))
            answer.newest.ParseFromString(newest)
        return answer.SerializeToString(deterministic=True)

    def _push_handler(self) -> grpc.RpcMethodHandler:
        def push(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._changed:
                fate = self.on_push.popleft() if self.on_push else None
                if fate not in (OnPush.CUT_BEFORE, OnPush.REFUSE):
                    self.pushed.append(request)
                self._changed.notify_all()
                if fate is OnPush.HANG:
                    self._changed.wait_for(lambda: self._closing)
            if fate is OnPush.REFUSE:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "not listed")
            if fate is not None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            return self._answer()

        return grpc.unary_unary_rpc_method_handler(push)
