"""Who may speak where: certificates on the push port, plain connections, impostors, other callers' doors."""

from __future__ import annotations

import datetime
import json
import signal
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from realm_processes.calls import DEADLINE_S, Door, Reply, reply_of
from realm_processes.people import connect
from realm_processes.realm import KEYSERVER, RATIFIED_HEADS, VERIFICATION
from samples import REALM
from simulated_realm import SimulatedRealm
from simulated_realm.server import Certificates, make_certificates, serving

from attacks.calls import NOBODY, WireSurface, said
from keyserver.demo.processes import wait_until
from keyserver.demo.stage import HOST, REPLICA
from verifier import encoding
from verifier.client.client import Client
from verifier.client.outcome import status_of
from verifier.client.pins import MemoryPins
from verifier.client.transport import GrpcTransport
from verifier.crypto.signatures import public_key

Pair = tuple[bytes, bytes]
SETTINGS_ACKNOWLEDGED = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Push(NamedTuple):
    """A ratification of the newest head by a verifier, over a connection with this certificate and key."""

    by: str
    pair: Pair | None


class LatePush(NamedTuple):
    """A lawful ratification by v4, over its own connection, after the list of verifiers changed."""

    change: str
    connection: str


class Knock(NamedTuple):
    """A call of a method at a listener; `how` is how the caller connects."""

    port: str
    path: str
    how: str = "as it should"


class Greeting(NamedTuple):
    """A bare connection to a listener: newest version of TLS spoken, protocols offered, first bytes."""

    port: str
    version: ssl.TLSVersion | None
    alpn: tuple[str, ...] = ("h2",)
    first: bytes = PREFACE


class Tls(WireSurface):
    # Who may push

    def make_push(self, by: str, connection: str) -> Push:
        """`by` signs; the connection shows a certificate of one kind."""
        pairs: Mapping[str, Callable[[], Pair | None]] = {
            "of v1": lambda: self._pair_of("v1"),
            "of v4": lambda: self._pair_of("v4"),
            "without certificate": lambda: None,
            "of a person of this realm": lambda: self.new_person().pair,
            "of the replica itself": self._replicas_pair,
            "self-signed in v4's name": lambda: self._issued(like="v4", by_v4=False),
            "issued by v4": lambda: self._issued(like="v4", by_v4=True),
        }
        return Push(by, pairs[connection]())

    def judge_push(self, push: Push) -> str:
        head = self.newest_head()
        data = encoding.encode_signed_head(head, [self.ratified(head, push.by)])
        own = self.realm.push("v4")
        reply = Door(own.address, own.roots, push.pair).call(VERIFICATION + "PushRatification", data)
        self.realm.check_alive()
        return said(reply)

    # Who may push no longer

    def make_late_push(self, change: str, connection: str) -> LatePush:
        return LatePush(change, connection)

    def judge_late_push(self, push: LatePush) -> str:
        """SIGHUP lets the replica read the list again; the connection is from before, or new."""
        door, path = self.realm.push("v4"), VERIFICATION + "PushRatification"
        with door.channel() as channel:
            rpc: Any = channel.unary_unary(path)
            with suppress(grpc.RpcError):
                rpc(b"", timeout=DEADLINE_S)  # malformed, but the connection is there
            with self._changed_list(push.change):
                head = self.newest_head()
                data = encoding.encode_signed_head(head, [self.ratified(head, "v4")])
                if push.connection == "new":
                    return said(door.call(path, data))
                try:
                    rpc(data, timeout=DEADLINE_S)
                except grpc.RpcError as error:
                    return said(reply_of(error))
        return "OK"

    @contextmanager
    def _changed_list(self, change: str) -> Iterator[None]:
        place = self.realm.replica / "verifiers.json"
        before = place.read_bytes()
        rows = {row["public_key"]: row for row in json.loads(before)}
        own = self.realm.key_of("v4").public_key.hex()
        certificate, _ = self._issued(like="v4", by_v4=False)
        another = {"public_key": public_key(bytes(range(32))).hex()}
        renewed = {**another, "tls_certificate_pem": certificate.decode("ascii")}
        match change:
            case "removed":
                del rows[own]
            case "another key":
                rows[own] |= another
            case "another key and certificate":
                rows[own] |= renewed
        self._reload(place, json.dumps(list(rows.values())).encode())
        try:
            yield
        finally:
            self._reload(place, before)

    def _reload(self, place: Path, data: bytes) -> None:
        def renewals() -> int:
            return self.realm.log_of(REPLICA).count("certificates renewed")

        so_far = renewals()
        place.write_bytes(data)
        self.realm.processes.running[REPLICA].send_signal(signal.SIGHUP)
        wait_until(lambda: renewals() > so_far, "the list to be read again")

    def _pair_of(self, name: str) -> Pair:
        pair = self.realm.push(name).pair
        assert pair is not None
        return pair

    def _replicas_pair(self) -> Pair:
        folder = self.realm.replica
        return (folder / "tls.pem").read_bytes(), (folder / "tls.key").read_bytes()

    def _issued(self, like: str, by_v4: bool) -> Pair:
        """A fresh key in a certificate with the names of a verifier's, signed by itself or by v4's key."""
        model, model_key = self._pair_of(like)
        theirs = x509.load_pem_x509_certificate(model)
        key = ec.generate_private_key(ec.SECP256R1())
        signer: Any = serialization.load_pem_private_key(model_key, None) if by_v4 else key
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "v4's child")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name if by_v4 else theirs.subject)
            .issuer_name(theirs.subject)
            .public_key(key.public_key())
            .serial_number(theirs.serial_number)
            .not_valid_before(theirs.not_valid_before_utc)
            .not_valid_after(theirs.not_valid_before_utc + datetime.timedelta(days=30))
        )
        for extension in theirs.extensions:
            if not isinstance(extension.value, x509.SubjectKeyIdentifier):
                builder = builder.add_extension(extension.value, extension.critical)
        certificate = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate, private

    # Which door is for whom, and how it is entered

    def make_knock(self, port: str, method: str, how: str = "as it should") -> Knock:
        services = (KEYSERVER, VERIFICATION, RATIFIED_HEADS)
        service = next(s for s in services if s.strip("/").endswith(method.partition(".")[0]))
        return Knock(port, service + method.partition(".")[2], how)

    def judge_knock(self, knock: Knock) -> str:
        """The status of an empty request: a method that is there finds it malformed or answers."""
        reply = self._knock(knock)
        self.realm.check_alive()
        return {"MALFORMED": "answers", "NO_SUCH_EPOCH": "answers"}.get(reply.reason) or (
            "answers" if reply.code == "OK" else reply.code
        )

    def _knock(self, knock: Knock) -> Reply:
        door = self._door(knock.port)
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        if knock.how == "as another host":
            options.append(("grpc.ssl_target_name_override", "elsewhere.example"))
        if knock.how == "without TLS":
            channel = grpc.insecure_channel(door.address, options)
        else:
            roots = make_certificates().root if knock.how == "trusting somebody else" else door.roots
            certificate, key = door.pair or (None, None)
            credentials = grpc.ssl_channel_credentials(roots, key, certificate)
            channel = grpc.secure_channel(door.address, credentials, options)
        with channel:
            rpc: Any = channel.unary_stream(knock.path)
            try:
                next(iter(rpc(b"", timeout=DEADLINE_S)), None)
            except grpc.RpcError as error:
                return reply_of(error)
        return Reply("OK")

    def _door(self, port: str) -> Door:
        doors: Mapping[str, Callable[[], Door]] = {
            "public": self.realm.public,
            "verification": self.realm.verification,
            "push": lambda: self.realm.push("v4"),
            "verifier": lambda: self.realm.ratified_heads("v1"),
            "http": lambda: Door(f"{HOST}:{self.realm.ports.http}", self.realm.public().roots),
        }
        return doors[port]()

    # Bare connections

    def make_greeting(
        self, port: str = "public", version: str = "TLSv1_3", first: str = "", alpn: str = "h2"
    ) -> Greeting:
        """`version` is the newest that the caller speaks, empty for none; `first` (hexadecimal) the first
        bytes."""
        spoken = ssl.TLSVersion[version] if version else None
        return Greeting(port, spoken, (alpn,) if alpn else (), bytes.fromhex(first) or PREFACE)

    def judge_greeting(self, greeting: Greeting) -> str:
        """Whether the listener takes the caller for one that speaks HTTP/2."""
        host, _, port = self._door(greeting.port).address.rpartition(":")
        taken = False
        try:
            with socket.create_connection((host, int(port)), DEADLINE_S) as bare:
                bare.settimeout(DEADLINE_S)
                if greeting.version is None:
                    taken = _takes_http2(bare, greeting.first)
                else:
                    with _context(greeting).wrap_socket(bare) as shielded:
                        taken = _takes_http2(shielded, greeting.first)
        except (ssl.SSLError, ConnectionError):
            taken = False
        self.realm.check_alive()
        return "HTTP/2" if taken else "closed"

    # Impostors, from the client's side

    def make_impostor(self, certificate: str) -> tuple[Certificates, bytes]:
        """A server's certificates, and the root that the client trusts."""
        own = make_certificates()
        return own, {"of another authority": make_certificates().root, "of the realm's": own.root}[
            certificate
        ]

    def judge_client(self, meeting: tuple[Certificates, bytes]) -> str:
        certificates, root = meeting
        world = SimulatedRealm()
        world.close()
        with serving(world, certificates) as address:
            trusted = replace(REALM, addresses=(address,))
            with GrpcTransport([address], tls_roots_pem=[root.decode()], timeout_s=DEADLINE_S) as transport:
                client = Client(trusted, transport, MemoryPins(), clock=world.now_ms)
                return status_of(client.lookup(NOBODY))

    def make_address(self, of: str) -> str:
        """An address that the realm's file might name."""
        return self._door(of).address

    def judge_address(self, address: str) -> str:
        """A client of the realm, led to that address."""
        client, transport = connect(replace(self.known, addresses=(address,)))
        with transport:
            return status_of(client.lookup(NOBODY))


def _context(greeting: Greeting) -> ssl.SSLContext:
    """A caller that believes every certificate and speaks old versions if told to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are the point
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        assert greeting.version is not None
        context.maximum_version = greeting.version
    context.set_alpn_protocols(list(greeting.alpn))
    return context


def _takes_http2(connection: socket.socket, first: bytes) -> bool:
    """Whether the listener acknowledges our SETTINGS. It sends its own before it has read anything."""
    connection.sendall(first)
    received = b""
    while piece := connection.recv(4096):
        received += piece
        if SETTINGS_ACKNOWLEDGED in received:
            return True
    return False
