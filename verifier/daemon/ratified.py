"""RatifiedHeads: what this verifier ratified, for its peers and for clients; and asking the peers the same.

Two clients that use different verifiers, or replicas that show each verifier another history, are found out
here: same epoch, two validly signed heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
from e2eks.v1 import verification_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from kv.interface import Reader, StorageError
from verifier import encoding
from verifier.daemon.failures import Misbehaved
from verifier.daemon.outbox import served_head
from verifier.daemon.state import head_at, load_state, newest_ratified
from verifier.daemon.step import fork_with
from verifier.daemon.transport import DETAILS_KEY, Credentials, Peer
from verifier.errors import ConfigError, Malformed, Reason, Refused
from verifier.renewing import renewing
from verifier.types import Realm

SERVICE = "e2eks.v1.RatifiedHeads"
REQUEST_BYTES = 64  # an epoch number
THREADS = 4  # answers come from memory or one disk read
CALLS_MAX = 64  # beyond it callers are turned away at once rather than queued
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 1024),  # above the limit, so that the refusal is ours and says why
    ("grpc.max_concurrent_streams", CALLS_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
)
STATUS = {
    Reason.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NO_SUCH_EPOCH: grpc.StatusCode.OUT_OF_RANGE,
}


def answer(reader: Reader, realm: Realm, request: bytes) -> bytes:
    """The bytes of a SignedEpochHead for those of a RatifiedHeadRequest. Raises Refused, StorageError."""
    wanted = encoding.parse(verification_pb2.RatifiedHeadRequest, request, REQUEST_BYTES, "request")
    epoch = wanted.epoch or newest_ratified(reader)
    head = served_head(reader, realm, epoch) if epoch else None
    if head is None:
        raise Refused(Reason.NO_SUCH_EPOCH, "this verifier has not ratified the epoch")
    return head


@contextlib.contextmanager
def serving(
    listen: str,
    reader: Reader,
    realm: Realm,
    shown: Callable[[], Credentials],
    log_failure: Callable[[str], None],
) -> Iterator[int]:
    """Serve RatifiedHeads at `listen` over TLS while in the context; gives the port. Raises ConfigError.

    Each new connection is shown the certificate that `shown` gives at its moment.
    """

    def get(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(reader, realm, request)
        except Refused as refused:
            context.set_trailing_metadata(((DETAILS_KEY, _details(refused)),))
            context.abort(STATUS.get(refused.reason, grpc.StatusCode.INVALID_ARGUMENT), refused.what)
        except StorageError as error:
            log_failure(str(error))
            context.abort(grpc.StatusCode.UNAVAILABLE, "the verifier cannot read its database")
        raise AssertionError("abort raises")

    handler = grpc.method_handlers_generic_handler(SERVICE, {"Get": grpc.unary_unary_rpc_method_handler(get)})
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ratified-heads")
    server = grpc.server(pool, [handler], options=SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
    try:
        port = server.add_secure_port(listen, renewing(shown, _configured))
    except RuntimeError:
        port = 0
    if port == 0:
        pool.shutdown()
        raise ConfigError(f"the address {listen} cannot be listened at. Is another process using the port?")
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=1).wait()
        pool.shutdown()


def _configured(own: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(own.key, own.certificate)])


def _details(refusal: Refused) -> bytes:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason.value, domain="e2eks"))
    code = STATUS.get(refusal.reason, grpc.StatusCode.INVALID_ARGUMENT).value[0]
    encoded: bytes = status_pb2.Status(code=code, message=refusal.what, details=[detail]).SerializeToString()
    return encoded


@dataclass(frozen=True, slots=True)
class Agreement:
    """A peer's head of `epoch` equals ours; epoch 0 = there is none to compare yet."""

    epoch: int


def compare(reader: Reader, realm: Realm, peer: Peer) -> Agreement:
    """Compare the newest head that both have replayed.

    Raises Misbehaved with evidence when the peer holds another validly signed head, Malformed when it
    answers rubbish or a head that nobody signed, Unreachable, CallRefused, StorageError.
    """
    newest = peer.get(0)
    if newest is None:
        return Agreement(0)
    theirs = encoding.decode_signed_head(newest)
    replayed = load_state(reader, realm).chain.epoch
    if replayed == 0:
        return Agreement(0)
    if theirs.head.epoch > replayed:
        older = peer.get(replayed)
        if older is None:
            return Agreement(0)
        theirs = encoding.decode_signed_head(older)
        if theirs.head.epoch != replayed:
            raise Malformed("a verifier answered with another epoch than asked")
    fork = fork_with(reader, realm, theirs)
    if fork is not None:
        raise Misbehaved(fork)
    ours = head_at(reader, theirs.head.epoch)
    if ours is None or ours.head.encoded != theirs.head.encoded:
        raise Malformed("a verifier answered with another head, which the replicas did not sign")
    return Agreement(theirs.head.epoch)
