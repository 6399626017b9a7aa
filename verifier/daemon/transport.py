"""Calls to keyservers and to other verifiers: raw bytes over TLS. Blocking; `run` calls these in threads.

A Stream is read in one thread and cancelled from another. Every connection attempt makes a channel of its
own, so that nothing of an older failure slows a newer attempt down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from e2eks.v1 import verification_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from verifier import limits
from verifier.daemon.failures import CallRefused, Unreachable

STREAM = "/e2eks.v1.Verification/VerifierStream"
PUSH = "/e2eks.v1.Verification/PushRatification"
GET = "/e2eks.v1.RatifiedHeads/Get"
DETAILS_KEY = "grpc-status-details-bin"
SAID_CHARACTERS = 500  # of a server's own words, in which nothing stays that a terminal obeys

MESSAGE_BYTES = 2 * limits.VERIFIER_STEPS_BYTES  # the steps of a message, and its framing
GET_TIMEOUT_S = 10.0
# Until a connection stands, TLS included: room for a lost packet, and no more, because the system of a
# process that is stopped goes on taking connections, and the next address may answer at once.
CONNECT_MS = 3_000

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel is a fresh attempt, without shared back-off
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),  # gRPC's name for how long an attempt may take
    ("grpc.keepalive_time_ms", 30_000),  # a peer that vanished is noticed although nothing is sent
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # who retries, and when, is decided in one place
)

# The server took the call and said no; anything else may as well be the network.
ANSWERS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM: the roots to believe, and this verifier's own certificate and key."""

    roots: bytes
    certificate: bytes = b""
    key: bytes = b""

    def channel(self, address: str, *, mutual: bool = False) -> grpc.Channel:
        """A new channel to `address`; with `mutual`, this verifier shows its certificate."""
        pair = (self.key, self.certificate) if mutual else (None, None)
        credentials = grpc.ssl_channel_credentials(self.roots or None, *pair)
        return grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


@dataclass(slots=True)
class Renewable:
    """Credentials that may change while the daemon runs: connections are made with those of their moment."""

    current: Credentials

    def channel(self, address: str, *, mutual: bool = False) -> grpc.Channel:
        """As Credentials.channel."""
        return self.current.channel(address, mutual=mutual)


class Stream:
    """VerifierSteps messages as bytes."""

    def __init__(self, channel: grpc.Channel, start: int, page_size: int, timeout_s: float) -> None:
        self.overdue = False  # whether it ended because its time was over
        self._channel = channel
        request = verification_pb2.VerifierStreamRequest(start=start, page_size=page_size)
        call: Any = channel.unary_stream(STREAM, None, None)
        self._messages: Iterator[bytes] = call(
            request.SerializeToString(deterministic=True), timeout=timeout_s
        )

    def read(self) -> bytes | None:
        """The next message; None when the stream ended or its time was over. Raises Unreachable,
        CallRefused.
        """
        try:
            return next(self._messages, None)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self.overdue = True
                return None
            raise _failure(error) from None

    def cancel(self) -> None:
        """End the stream, also while another thread waits in `read`. Idempotent."""
        self._channel.close()


@dataclass(frozen=True, slots=True)
class Keyserver:
    """A place to read the verifier log from."""

    address: str
    credentials: Credentials | Renewable

    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> Stream:
        """The steps from `start` on; page_size 0 = and all that come. Returns before the connection
        stands.
        """
        return Stream(self.credentials.channel(self.address), start, page_size, timeout_s)


@dataclass(frozen=True, slots=True)
class PushTarget:
    """A place to push ratifications to."""

    address: str
    credentials: Credentials | Renewable
    timeout_s: float

    @contextlib.contextmanager
    def connected(self) -> Iterator[Pusher]:
        """A connection for some pushes."""
        with self.credentials.channel(self.address, mutual=True) as channel:
            yield Pusher(channel, self.timeout_s)


class Pusher:
    """An open connection to push over."""

    def __init__(self, channel: grpc.Channel, timeout_s: float) -> None:
        self._call: Any = channel.unary_unary(PUSH, None, None)
        self._timeout_s = timeout_s

    def push(self, ratification: bytes) -> bytes:
        """The PushRatificationResponse with which the keyserver acknowledges. Raises Unreachable,
        CallRefused.
        """
        try:
            answer: bytes = self._call(ratification, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise _failure(error) from None
        return answer


@dataclass(frozen=True, slots=True)
class Peer:
    """Another verifier, as the realm lists it."""

    name: str
    address: str
    credentials: Credentials | Renewable

    def get(self, epoch: int) -> bytes | None:
        """Its ratified head of `epoch`, 0 = its newest; None if it has none. Raises Unreachable,
        CallRefused.
        """
        request = verification_pb2.RatifiedHeadRequest(epoch=epoch).SerializeToString(deterministic=True)
        with self.credentials.channel(self.address) as channel:
            call: Any = channel.unary_unary(GET, None, None)
            try:
                answer: bytes = call(request, timeout=GET_TIMEOUT_S)
            except grpc.RpcError as error:
                failure = _failure(error)
                if isinstance(failure, CallRefused) and failure.reason in ("NO_SUCH_EPOCH", "NOT_READY"):
                    return None
                raise failure from None
        return answer


def _failure(error: grpc.RpcError) -> Unreachable | CallRefused:
    reason = _reason(error)
    if reason:
        return CallRefused(reason)
    code = error.code()
    if code in ANSWERS:
        return CallRefused(code.name)
    said = "".join(c if c.isprintable() else "?" for c in (error.details() or "")[:SAID_CHARACTERS])
    return Unreachable(f"no answer ({code.name}: {said}). Is it running, and reachable from here?")


def _reason(error: grpc.RpcError) -> str:
    """The stable reason in the error's details, or "". Whatever a server sends, this does not raise."""
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key != DETAILS_KEY:
            continue
        with contextlib.suppress(DecodeError):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == "e2eks" and info.reason.isprintable():
                    return str(info.reason[:64])
    return ""
