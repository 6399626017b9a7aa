"""Calls from this replica to the others, each over one channel that stays open.

A waiting call holds a task and no thread. Every call has a deadline, and each line a limit of calls under
way, so that a peer that hangs costs the time of those who wait for it and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import grpc
import trio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from keyserver.peer_certificates import LinkFiles
from verifier import limits
from verifier.errors import Reason, Refused

SERVICE = "e2eks.v1.Peers"
CALLS_AT_ONCE = 512  # some 20 KiB each, and the request
ANSWER_BYTES = 64 * 1024  # a signed head, or less
DETAILS = "grpc-status-details-bin"
_REASONS: Final = {reason.value: reason for reason in Reason}


class Unreached(Exception):
    """A peer did not answer in time, or not at all."""


class PeerLine:
    """The line to one member. On the trio thread."""

    def __init__(self, name: str, address: str, files: LinkFiles) -> None:
        self.name = name
        self._address = address
        self._channel: grpc.Channel | None = None
        self._under_way = 0
        self._files = files

    def renew(self, files: LinkFiles) -> None:
        """Show and believe these from the next call on."""
        self.close()
        self._files = files

    def close(self) -> None:
        """Break off the calls under way."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    async def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """The answer of `method`. Raises Unreached, and Refused with the peer's reason."""
        if self._under_way >= CALLS_AT_ONCE:
            raise Unreached(f"{self.name} has too many calls under way")
        token, done = trio.lowlevel.current_trio_token(), trio.Event()

        def ended(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        rpc: Any = self._open().unary_unary(f"/{SERVICE}/{method}")
        future = rpc.future(request, timeout=timeout_s)
        self._under_way += 1
        try:
            future.add_done_callback(ended)
            await done.wait()
        finally:
            self._under_way -= 1
            future.cancel()
        return _result(self.name, future)

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            files = self._files
            credentials = grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)
            options = (
                ("grpc.ssl_target_name_override", self.name),  # whom certificates stand for
                ("grpc.max_receive_message_length", ANSWER_BYTES),
                ("grpc.max_send_message_length", limits.REQUEST_BYTES + ANSWER_BYTES),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.enable_http_proxy", 0),
            )
            self._channel = grpc.secure_channel(self._address, credentials, options)
        return self._channel


def _result(name: str, future: Any) -> bytes:
    try:
        answer: bytes = future.result(timeout=0)
    except grpc.FutureCancelledError:
        raise Unreached(f"the line to {name} was closed") from None
    except grpc.RpcError as error:
        reason = _reason(error)
        if reason is None:
            raise Unreached(f"{name}: {future.code().name}") from None
        raise Refused(reason, f"{name}: {future.details()}") from None
    return answer


def _reason(error: Any) -> Reason | None:
    """The reason that the peer gave; None for none, and for bytes that say nothing: a peer may lie."""
    info = error_details_pb2.ErrorInfo()
    try:
        for item in error.trailing_metadata() or ():
            if item.key == DETAILS:
                for detail in status_pb2.Status.FromString(item.value).details:
                    detail.Unpack(info)
    except DecodeError:
        return None
    return _REASONS.get(info.reason)


def lines_to(others: Mapping[str, str], files: LinkFiles | None) -> tuple[PeerLine, ...]:
    """A line to each of the members (name -> host:port); none without TLS files to show."""
    return tuple(PeerLine(name, address, files) for name, address in others.items()) if files else ()
