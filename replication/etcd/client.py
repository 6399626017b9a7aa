"""Calls to etcd: mutual TLS, several endpoints, a deadline on each call. Blocking; for worker threads.

All calls go to one endpoint until it fails; then all go to the next. A call that failed may have been carried
out: whoever repeats it makes sure that it cannot be carried out twice.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from e2eks.etcd import api_pb2 as api
from google.protobuf.message import Message

from kv.keys import prefix_end
from replication.types import PeerTls, TlsFilesRefused

CALL_S = 2.0  # a majority of etcd answers within milliseconds; beyond this another endpoint is tried
STATUS_S = 1.0  # what one member answers by itself: who asks has a lease to keep meanwhile
LISTING_S = 60.0  # who lists keys makes etcd read what is under them: gigabytes, after a replica was away
COMPACT_S = 30.0  # answers when the work is done
DEFRAGMENT_S = 120.0  # rewriting gigabytes
MESSAGE_BYTES = 64 * 1024 * 1024
KEYS_AT_ONCE = 100_000  # of a log that could not be trimmed for long: 10 MB
SAID_CHARACTERS = 200
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a fresh channel is a fresh attempt, without shared back-off
    ("grpc.keepalive_time_ms", 10_000),  # etcd cuts who asks more often than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.enable_retries", 0),  # who retries, and when, is decided in one place
    ("grpc.enable_http_proxy", 0),
)
# A member that has lost its leader cancels streams of those who ask for one, instead of being silent.
METADATA = (("hasleader", "true"),)

A = TypeVar("A", bound=Message)


class EtcdError(Exception):
    """A call failed. Nothing is known about whether it was carried out; try again."""


class Compacted(EtcdError):
    """What happened at this revision is no longer in etcd's history; what is there still is."""


class NoSpace(EtcdError):
    """etcd's database has reached its quota; the call was not carried out."""


class Refused(EtcdError):
    """etcd does not accept the request itself, or the certificate it came with."""


@dataclass(frozen=True, slots=True)
class Pem:
    """What PeerTls names, read."""

    roots: bytes
    certificate: bytes
    key: bytes

    @classmethod
    def read(cls, tls: PeerTls) -> Pem:
        """Raises TlsFilesRefused when the files cannot be read or do not fit together."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # gRPC would say nothing before the handshake
        try:
            context.load_verify_locations(cafile=str(tls.authority))
            context.load_cert_chain(str(tls.certificate), str(tls.key), password=lambda: "")
            return cls(tls.authority.read_bytes(), tls.certificate.read_bytes(), tls.key.read_bytes())
        except OSError as error:  # unreadable; no PEM, another key
            named = f"{tls.certificate}, {tls.key} and {tls.authority}"
            raise TlsFilesRefused(f"the TLS files {named} do not make an identity: {error}") from None


class EtcdClient:
    """One replica's connection to a cluster of etcd members. May be used by several threads."""

    def __init__(self, endpoints: Sequence[str], pem: Pem) -> None:
        """`endpoints`: "https://host:port" or "host:port", the preferred one first."""
        if not endpoints:
            raise ValueError("an etcd cluster has at least one endpoint")
        self.endpoints = tuple(endpoint.removeprefix("https://").rstrip("/") for endpoint in endpoints)
        self._pem = pem
        self._lock = threading.Lock()
        self._current = 0
        self._channels: dict[str, grpc.Channel] = {}
        self._closed = False

    def renew(self, pem: Pem) -> None:
        """Show another certificate from the next connection on; those that stand are made anew."""
        with self._lock:
            self._pem = pem
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def close(self) -> None:
        """Cut all calls under way; later ones raise EtcdError. Idempotent."""
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    # Calls to the current endpoint

    def txn(self, request: api.TxnRequest, timeout_s: float = CALL_S) -> api.TxnResponse:
        """Carry out a transaction. Raises EtcdError, NoSpace, Refused."""
        return self._call("KV/Txn", request, api.TxnResponse, timeout_s)

    def range(self, request: api.RangeRequest, timeout_s: float = CALL_S) -> api.RangeResponse:
        """Read keys; linearizable. Raises EtcdError, Compacted."""
        return self._call("KV/Range", request, api.RangeResponse, timeout_s)

    def compact_history(self, revision: int) -> None:
        """Forget what was replaced before `revision`. Raises EtcdError, Compacted when it was already."""
        request = api.CompactionRequest(revision=revision, physical=True)
        self._call("KV/Compact", request, api.CompactionResponse, COMPACT_S)

    def grant_lease(self, ttl_s: int) -> int:
        """Return the id of a new lease of `ttl_s` seconds. Raises EtcdError."""
        return self._call(
            "Lease/LeaseGrant", api.LeaseGrantRequest(TTL=ttl_s), api.LeaseGrantResponse, CALL_S
        ).ID

    def revoke_lease(self, lease: int) -> None:
        """End a lease and what hangs on it. Raises EtcdError."""
        self._call("Lease/LeaseRevoke", api.LeaseRevokeRequest(ID=lease), api.LeaseRevokeResponse, CALL_S)

    def keep_lease(self, lease: int) -> int:
        """Begin a lease's time anew and return it in seconds; 0: it has ended. Raises EtcdError."""
        request = api.LeaseKeepAliveRequest(ID=lease)
        stream = self._stream("Lease/LeaseKeepAlive", iter((request,)), api.LeaseKeepAliveResponse, CALL_S)
        answer = next(stream, None)
        stream.close()
        return 0 if answer is None else answer.TTL

    def watch(self, prefix: bytes, start_revision: int) -> Generator[api.WatchResponse]:
        """Iterate over what happens to the keys from `prefix` on, since `start_revision` and in its order.

        Raises EtcdError when the stream ends, also because another call to the endpoint failed or close() was
        called; Compacted when its beginning is no longer known.
        """
        create = api.WatchCreateRequest(
            key=prefix,
            range_end=prefix_end(prefix),
            start_revision=start_revision,
            fragment=True,
        )
        ended = threading.Event()

        def requests() -> Iterator[api.WatchRequest]:
            yield api.WatchRequest(create_request=create)
            ended.wait()  # the end of the requests would be the end of the watch

        try:
            for answer in self._stream("Watch/Watch", requests(), api.WatchResponse, None):
                if answer.compact_revision:
                    raise Compacted(f"the history before revision {answer.compact_revision} is gone")
                if answer.canceled:
                    raise EtcdError(f"the watch was cancelled: {answer.cancel_reason[:SAID_CHARACTERS]}")
                yield answer
            raise EtcdError("the watch has ended")
        finally:
            ended.set()

    def alarms(self) -> Sequence[api.AlarmMember]:
        """Return the alarms that are raised. Raises EtcdError."""
        request = api.AlarmRequest(action=api.AlarmRequest.GET)
        return self._call("Maintenance/Alarm", request, api.AlarmResponse, CALL_S).alarms

    def disarm(self, alarm: api.AlarmMember) -> None:
        """Take an alarm back: what caused it has ended. Raises EtcdError."""
        request = api.AlarmRequest(
            action=api.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
        )
        self._call("Maintenance/Alarm", request, api.AlarmResponse, CALL_S)

    # Calls to one endpoint, whichever is the current one

    def status(self, endpoint: str) -> api.StatusResponse:
        """Ask one member how it is; it answers without a leader, too. Raises EtcdError."""
        return self._call("Maintenance/Status", api.StatusRequest(), api.StatusResponse, STATUS_S, endpoint)

    def defragment(self, endpoint: str) -> None:
        """Give the free pages of one member's file back; it answers nobody meanwhile. Raises EtcdError."""
        request = api.DefragmentRequest()
        self._call("Maintenance/Defragment", request, api.DefragmentResponse, DEFRAGMENT_S, endpoint)

    def _call(
        self, method: str, request: Message, answer: type[A], timeout_s: float, endpoint: str | None = None
    ) -> A:
        at = endpoint or self.endpoints[self._current]
        channel = self._channel(at)
        with self._translated(at, channel, leave=endpoint is None):
            rpc = channel.unary_unary(
                f"/etcdserverpb.{method}",
                request_serializer=_encoded,
                response_deserializer=answer.FromString,
            )
            return rpc(request, timeout=timeout_s, metadata=METADATA if endpoint is None else ())

    def _stream(
        self, method: str, requests: Iterator[Message], answer: type[A], timeout_s: float | None
    ) -> Generator[A]:
        at = self.endpoints[self._current]
        channel = self._channel(at)
        with self._translated(at, channel, leave=True):
            rpc = channel.stream_stream(
                f"/etcdserverpb.{method}",
                request_serializer=_encoded,
                response_deserializer=answer.FromString,
            )
            stream: Any = rpc(requests, timeout=timeout_s, metadata=METADATA)
            try:
                yield from stream
            finally:
                stream.cancel()

    def _channel(self, endpoint: str) -> grpc.Channel:
        with self._lock:
            if self._closed:
                raise EtcdError("the connection to etcd is closed")
            if endpoint not in self._channels:
                pem = self._pem
                credentials = grpc.ssl_channel_credentials(pem.roots, pem.key, pem.certificate)
                self._channels[endpoint] = grpc.secure_channel(endpoint, credentials, CHANNEL_OPTIONS)
            return self._channels[endpoint]

    @contextmanager
    def _translated(self, endpoint: str, channel: grpc.Channel, *, leave: bool) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            failure = _failure(endpoint, error)
            if leave and type(failure) is EtcdError:
                self._leave(endpoint, channel)
            raise failure from None
        except ValueError:  # another thread has closed the channel
            raise EtcdError(f"{endpoint}: the connection was cut") from None

    def _leave(self, endpoint: str, channel: grpc.Channel) -> None:
        """Go on to the next endpoint, and cut the other calls to this one; once for each channel."""
        with self._lock:
            if self._channels.get(endpoint) is not channel:
                return
            del self._channels[endpoint]
            self._current = (self.endpoints.index(endpoint) + 1) % len(self.endpoints)
        channel.close()


def _encoded(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _failure(endpoint: str, error: Any) -> EtcdError:
    code, details = error.code(), str(error.details())[:SAID_CHARACTERS]
    said = f"{endpoint}: {details or code.name}"
    match code:
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "space" in details:
            return NoSpace(said)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return Refused(said)
        case grpc.StatusCode.OUT_OF_RANGE:
            return Compacted(said)
        case (
            grpc.StatusCode.INVALID_ARGUMENT
            | grpc.StatusCode.PERMISSION_DENIED
            | grpc.StatusCode.UNAUTHENTICATED
            | grpc.StatusCode.UNIMPLEMENTED
        ):
            return Refused(said)
        case _:
            return EtcdError(said)
