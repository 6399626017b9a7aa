"""The line to another replica: whatever the other one answers is an answer, a refusal, or nobody reached."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trio
from clusters.certificates import PeersAuthority
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from keyserver.frontends import errors
from keyserver.peer_certificates import LinkFiles, read_peer_files
from keyserver.peers.lines import DETAILS, SERVICE, PeerLine, Unreached
from verifier.errors import Reason, Refused
from verifier.files import SECRET_MODE

DEADLINE_S = 60.0
TOLD = "as the test says"
Answer = Callable[[bytes, grpc.ServicerContext], bytes]


def files_of(name: str, authority: PeersAuthority) -> LinkFiles:
    made = authority.member(name)
    made.key.chmod(SECRET_MODE)
    return read_peer_files(made, name)


@contextmanager
def peer(folder: Path, answer: Answer) -> Iterator[PeerLine]:
    """The line from r1 to r2, which answers the method Status."""
    authority = PeersAuthority(folder)
    own, shown = files_of("r1", authority), files_of("r2", authority)
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Status": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials(
        [(shown.key, shown.certificate)], root_certificates=shown.authority, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    line = PeerLine("r2", f"127.0.0.1:{port}", own)
    try:
        yield line
    finally:
        line.close()
        server.stop(None).wait()


def refusing(details: bytes) -> Answer:
    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(((DETAILS, details),))
        context.abort(grpc.StatusCode.UNAVAILABLE, TOLD)
        raise AssertionError

    return answer


def with_detail(value: bytes) -> bytes:
    kind = f"type.googleapis.com/{error_details_pb2.ErrorInfo.DESCRIPTOR.full_name}"
    detail = any_pb2.Any(type_url=kind, value=value)
    return status_pb2.Status(details=[detail]).SerializeToString()


async def asked(line: PeerLine) -> bytes:
    return await line.call("Status", b"?", DEADLINE_S)


async def test_an_answer_comes_as_it_is(tmp_path: Path) -> None:
    with peer(tmp_path, lambda request, _: request + b"!") as line:
        assert await asked(line) == b"?!"


async def test_a_refusal_keeps_its_reason(tmp_path: Path) -> None:
    details = errors.status_details(Refused(Reason.PROOF_EXPIRED, TOLD))
    with peer(tmp_path, refusing(details)) as line, pytest.raises(Refused, match=f"r2: {TOLD}") as caught:
        await asked(line)
    assert caught.value.reason is Reason.PROOF_EXPIRED


@pytest.mark.parametrize("details", [b"\xff no message", with_detail(b"\xff neither"), with_detail(b"")])
async def test_a_refusal_that_nobody_can_read_is_nobody_reached(tmp_path: Path, details: bytes) -> None:
    """Not an exception of another kind: it would end the replica, at the will of one that lies."""
    with peer(tmp_path, refusing(details)) as line, pytest.raises(Unreached, match="r2: UNAVAILABLE"):
        await asked(line)


async def test_nobody_there_is_nobody_reached(tmp_path: Path) -> None:
    line = PeerLine("r2", "127.0.0.1:1", files_of("r1", PeersAuthority(tmp_path)))
    with trio.fail_after(DEADLINE_S), pytest.raises(Unreached):
        await asked(line)
    line.close()
