"""How a refusal looks on the wire: a gRPC status and a google.rpc.ErrorInfo with the stable reason, from
one table.

Nothing else ever leaves: an unforeseen exception becomes INTERNAL without its text, which may hold what
must not be shown.
"""

from __future__ import annotations

from typing import NoReturn, Protocol

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from keyserver.rate_limits import RateLimited
from verifier.errors import Reason, Refused

DOMAIN = "e2eks"
DETAILS_KEY = "grpc-status-details-bin"

STATUS: dict[Reason, grpc.StatusCode] = {
    Reason.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_REALM: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.VERSION_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOT_AUTHORIZED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.WRONG_INDEX: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.COMMITMENT_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UPDATE_PENDING: grpc.StatusCode.ABORTED,
    Reason.REVOKED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PROOF_REQUIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PROOF_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PROOF_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PROOF_REPLAYED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.DOMAIN_NOT_SERVED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.QUORUM_UNSATISFIABLE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NOT_RATIFIED_IN_TIME: grpc.StatusCode.UNAVAILABLE,
    Reason.NO_SUCH_EPOCH: grpc.StatusCode.OUT_OF_RANGE,
    Reason.EPOCH_PENDING: grpc.StatusCode.UNAVAILABLE,
    Reason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.NOT_READY: grpc.StatusCode.UNAVAILABLE,
}


class Context(Protocol):
    """The part of a call's context that is needed to end it with an error."""

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = ...,
        trailing_metadata: tuple[tuple[str, bytes], ...] = ...,
    ) -> NoReturn: ...


def status_details(refusal: Refused) -> bytes:
    """The encoded google.rpc.Status of a refusal: its text, ErrorInfo{domain "e2eks", reason}, and RetryInfo
    if it is known when to try again.
    """
    told: list[Message] = [error_details_pb2.ErrorInfo(reason=refusal.reason.value, domain=DOMAIN)]
    if isinstance(refusal, RateLimited):
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromNanoseconds(round(refusal.retry_after_s * 1e9))
        told.append(delay)
    details = [any_pb2.Any() for _ in told]
    for detail, message in zip(details, told, strict=True):
        detail.Pack(message)
    code = STATUS[refusal.reason].value[0]
    status = status_pb2.Status(code=code, message=refusal.what, details=details)
    encoded: bytes = status.SerializeToString()
    return encoded


async def refuse(context: Context, refusal: Refused) -> NoReturn:
    """End the call with a refusal."""
    metadata = ((DETAILS_KEY, status_details(refusal)),)
    await context.abort(STATUS[refusal.reason], refusal.what, metadata)


async def fail(context: Context) -> NoReturn:
    """End the call after an exception that nobody foresaw."""
    await context.abort(grpc.StatusCode.INTERNAL, "internal error: the log of the server has it", ())
