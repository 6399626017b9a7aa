"""A simulated realm behind a real gRPC server with TLS on a loopback port."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from simulated_realm import HANDLERS, SimulatedRealm
from verifier.client.outcome import Unreachable
from verifier.errors import Refused

SERVICE = "/e2eks.v1.Keyserver/"


@dataclass(frozen=True)
class Certificates:
    """An authority and a certificate of it for this machine, with its private key; all PEM."""

    root: bytes
    chain: bytes
    key: bytes


def make_certificates() -> Certificates:
    """An authority of its own each time."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate(
        "authority", root_key, "authority", root_key, x509.BasicConstraints(ca=True, path_length=0)
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = _certificate("replica", key, "authority", root_key, x509.SubjectAlternativeName(names))
    return Certificates(
        root=root.public_bytes(serialization.Encoding.PEM),
        chain=leaf.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(*reversed(names), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@contextmanager
def serving(world: SimulatedRealm, certificates: Certificates) -> Iterator[str]:
    """The address at which `world` is served, as its first address."""
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Handler(world),))
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(certificates.key, certificates.chain)])
    )
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, world: SimulatedRealm) -> None:
        self._world = world

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = str(call.method).removeprefix(SERVICE)
        first = self._world.addresses[0]
        if method == "PolicyHeads":
            return grpc.unary_stream_rpc_method_handler(
                _speaking(lambda request: iter(self._world.stream(first, method, request)))
            )
        if method in HANDLERS:
            return grpc.unary_unary_rpc_method_handler(
                _speaking(lambda request: self._world.call(first, method, request))
            )
        return None


def _speaking(answer: Callable[[bytes], object]) -> Callable[[bytes, grpc.ServicerContext], object]:
    """Refusals as the keyserver sends them: a status with ErrorInfo."""

    def handle(request: bytes, context: grpc.ServicerContext) -> object:
        try:
            return answer(request)
        except Refused as refusal:
            detail = any_pb2.Any()
            detail.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason.value, domain="e2eks"))
            code = grpc.StatusCode.FAILED_PRECONDITION
            status = status_pb2.Status(code=code.value[0], message=refusal.what, details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(code, refusal.what)
        except Unreachable:
            context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    return handle
