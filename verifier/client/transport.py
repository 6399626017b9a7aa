"""Bytes to a keyserver and back: gRPC over TLS, on raw bytes. Believes nothing and decides nothing.

A refusal that carries an ErrorInfo of this project is `Refused` with its reason; all else that is not an
answer is `Unreachable`.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

import grpc
from e2eks.v1 import client_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from verifier import encoding, limits
from verifier.client.outcome import Unreachable
from verifier.errors import ConfigError, Malformed, Reason, Refused

SERVICE = "/e2eks.v1.Keyserver/"
DEFAULT_PORT = 4625
DEFAULT_TIMEOUT_S = 10.0
CONNECT_MS = 5_000  # until a connection stands: the system of a process that is stopped goes on taking them
ANSWER_BYTES = 2 * limits.REALM_JSON_BYTES  # the largest answer is a realm.json; more is no answer
STREAM_MESSAGES = 4096  # of one streamed answer; a realm changes its replicas a few times a year
STREAM_BYTES = 1024 * limits.SIGNED_HEAD_BYTES  # of one; all the changes of replicas that a client remembers
ERROR_DOMAIN = "e2eks"
DETAILS_KEY = "grpc-status-details-bin"
SAID_CHARACTERS = 500  # of a server's own words; a refusal needs two lines


class Transport(Protocol):
    """What the client asks through; tests put a simulated realm in its place."""

    @property
    def addresses(self) -> Sequence[str]:
        """All addresses, the one that answered last first."""
        ...

    def call(self, address: str, method: str, request: bytes) -> bytes:
        """The answer of one RPC of the Keyserver service. Raises Refused, Unreachable."""
        ...

    def stream(self, address: str, method: str, request: bytes) -> Sequence[bytes]:
        """All messages of one streamed answer. Raises Refused, Unreachable."""
        ...


class GrpcTransport:
    """gRPC with TLS, always: the roots are the realm's, or the system's if it names none."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        tls_roots_pem: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tried: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`timeout_s` bounds each call; `tried` is told of every call, in words."""
        self._addresses = list(addresses)
        roots = "\n".join(tls_roots_pem).encode() or None
        self._credentials = grpc.ssl_channel_credentials(root_certificates=roots)
        self._timeout_s = timeout_s
        self._tried = tried
        self._channels: dict[str, grpc.Channel] = {}

    @property
    def addresses(self) -> Sequence[str]:
        return tuple(self._addresses)

    def call(self, address: str, method: str, request: bytes) -> bytes:
        rpc: grpc.UnaryUnaryMultiCallable[bytes, bytes]
        with self._translated(address, method):
            rpc = self._channel(address).unary_unary(SERVICE + method)
            return rpc(request, timeout=self._timeout_s)

    def stream(self, address: str, method: str, request: bytes) -> Sequence[bytes]:
        rpc: grpc.UnaryStreamMultiCallable[bytes, bytes]
        with self._translated(address, method):
            rpc = self._channel(address).unary_stream(SERVICE + method)
            running = rpc(request, timeout=self._timeout_s)
            answers: list[bytes] = []
            room = STREAM_BYTES
            for answer in running:
                answers.append(answer)
                room -= len(answer)
                if len(answers) > STREAM_MESSAGES or room < 0:
                    running.cancel()
                    raise Unreachable(f"{address} does not stop streaming {method}")
            return answers

    def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _channel(self, address: str) -> grpc.Channel:
        if address not in self._channels:
            target = with_port(address)
            options = [
                ("grpc.max_receive_message_length", ANSWER_BYTES),
                ("grpc.http2.bdp_probe", 0),  # or a server that sends fast fills a window of megabytes
                ("grpc.enable_retries", 0),
                ("grpc.min_reconnect_backoff_ms", CONNECT_MS),  # gRPC's name for how long an attempt may take
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", int(not _is_loopback(target))),
            ]
            self._channels[address] = grpc.secure_channel(target, self._credentials, options)
        return self._channels[address]

    @contextmanager
    def _translated(self, address: str, method: str) -> Iterator[None]:
        self._tried(f"{method} at {address}")
        try:
            yield
        except grpc.RpcError as error:
            raise _as_refusal(error) or _as_unreachable(address, error) from None
        self._addresses.remove(address)
        self._addresses.insert(0, address)


def with_port(address: str) -> str:
    """host:port of an address that may lack the port."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.endswith("]")):
        return address
    return f"[{address}]:{DEFAULT_PORT}" if address.count(":") > 1 else f"{address}:{DEFAULT_PORT}"


def _is_loopback(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _as_refusal(error: grpc.RpcError) -> Refused | None:
    """The refusal in a gRPC error, if it is one of this project's."""
    details = [item.value for item in error.trailing_metadata() or () if item.key == DETAILS_KEY]
    try:
        status = status_pb2.Status.FromString(details[0] if details else b"")
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            known = detail.Unpack(info) and info.domain == ERROR_DOMAIN and info.reason in Reason.__members__
            if known:
                return Refused(Reason(info.reason), plain(status.message))
    except DecodeError:
        return None
    return None


def _as_unreachable(address: str, error: grpc.RpcError) -> Unreachable:
    return Unreachable(f"{address}: {error.code().name}: {plain(error.details() or '')}")


def plain(text: str) -> str:
    """What a server says, on one line and without anything that a terminal obeys."""
    return "".join(c if c.isprintable() else "?" for c in text[:SAID_CHARACTERS])


def fetch_realm_json(address: str, timeout_s: float) -> bytes:
    """What the server at `address` publishes as its realm.json, over TLS with whatever certificate it shows.

    Authenticated by nothing: the caller compares the realm's fingerprint. Raises Refused, Unreachable,
    ConfigError for what is no address.
    """
    target = with_port(address)
    host, _, port = target.rpartition(":")
    try:
        shown = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=timeout_s)
    except OSError as error:
        raise Unreachable(f"{address}: {error}") from None
    except (ValueError, OverflowError):
        what = f"{address!r} is neither a file nor the address of a keyserver, as in ks.example.org:4625"
        raise ConfigError(what) from None
    with GrpcTransport([target], tls_roots_pem=[shown], timeout_s=timeout_s) as transport:
        raw = transport.call(target, "GetRealm", b"")
    try:
        message = encoding.parse(client_pb2.GetRealmResponse, raw, ANSWER_BYTES, "realm answer")
    except Malformed as error:
        raise Unreachable(f"{address}: what answers is no keyserver: {error}") from None
    return message.realm_json
