"""A replica's listeners in this process, over real gRPC, TLS and HTTP: any bytes, any certificate, every
health question.
"""

import datetime as dt
import json
import random
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from e2eks.v1 import client_pb2, verification_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from keyserver.config import Config, Listen, load_config
from keyserver.installation import setup
from keyserver.run import Running, first_cause, now_ms, run_replica
from keyserver.testing import FAST, TTL_MS, Person, SmallRealm, first_epoch, seed
from keyserver.verifier_list import VerifierCertificate, VerifierInfo
from kv.interface import StorageInUse
from verifier import encoding, limits, proof_encoding
from verifier.crypto import hashing, signatures
from verifier.epoch import verifier_message
from verifier.errors import ConfigError, Reason
from verifier.lookup import Present, Trust, verify_lookup
from verifier.types import EpochStep, Ratification, Signature

PATIENCE = 60.0
ANY_PORT = Listen(public="127.0.0.1:0", verification="127.0.0.1:0", push="127.0.0.1:0", http="127.0.0.1:0")
KEYSERVER, VERIFICATION = "/e2eks.v1.Keyserver/", "/e2eks.v1.Verification/"


@dataclass
class TlsIdentity:
    """A self-signed certificate with its key, PEM."""

    certificate: bytes
    key: bytes


def tls_identity(name: str) -> TlsIdentity:
    now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsIdentity(certificate.public_bytes(Encoding.PEM), pem)


VERIFIERS = ("v1", "v2")
IDENTITIES = {name: tls_identity(name) for name in (*VERIFIERS, "stranger")}


def configured(folder: Path) -> Config:
    """A realm set up as operators do it, with two verifiers, on any free ports."""
    plan = setup.Plan(
        realm="example.org", epochs=FAST, epoch_ttl_ms=TTL_MS, insecure_skip_registration_proof=True
    )
    made = setup.init(folder / "realm", plan, dt.datetime.now(dt.UTC))
    infos = []
    for name in VERIFIERS:
        public_key = signatures.public_key(seed(name))
        pem = IDENTITIES[name].certificate.decode()
        certificate = VerifierCertificate(name, public_key, hashing.key_id(public_key), pem)
        infos.append(VerifierInfo(certificate, "127.0.0.1:4630"))
    setup.add_verifiers(load_config(made.configs[0]), infos)
    return replace(load_config(made.configs[0]), listen=ANY_PORT)


@dataclass
class Reached:
    """A running replica as its callers see it."""

    config: Config
    running: Running

    @property
    def small(self) -> SmallRealm:
        """What people need to draft entries."""
        vrf_seed = bytes.fromhex(self.config.vrf_key.read_text())
        return SmallRealm(self.config.realm, b"", vrf_seed, tuple(seed(name) for name in VERIFIERS))

    def channel(self, listener: str, identity: TlsIdentity | None = None) -> grpc.Channel:
        roots = "".join(self.config.realm.tls_roots_pem).encode()
        shown = (identity.key, identity.certificate) if identity else (None, None)
        credentials = grpc.ssl_channel_credentials(roots, *shown)
        return grpc.secure_channel(f"localhost:{self.running.ports[listener]}", credentials)

    def get(self, path: str) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.running.ports['http']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@asynccontextmanager
async def reached(folder: Path, config: Config | None = None) -> AsyncIterator[Reached]:
    used = config or configured(folder)
    async with trio.open_nursery() as nursery:
        running = await nursery.start(run_replica, used)
        with trio.fail_after(PATIENCE):
            await first_epoch(running.parts)
        yield Reached(used, running)
        nursery.cancel_scope.cancel()


@dataclass
class Answer:
    """How a call ended: its bytes, or status and reason."""

    data: bytes = b""
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""


def answered(ask: Callable[[], bytes]) -> Answer:
    try:
        return Answer(ask())
    except grpc.RpcError as error:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        info = error_details_pb2.ErrorInfo()
        for packed in status_pb2.Status.FromString(details).details:
            packed.Unpack(info)
            assert info.domain == "e2eks"
        return Answer(code=error.code(), reason=info.reason)


async def call(channel: grpc.Channel, method: str, request: bytes) -> Answer:
    ask = partial(channel.unary_unary(method), request, timeout=PATIENCE)
    return await trio.to_thread.run_sync(answered, ask)


async def first_message(channel: grpc.Channel, method: str, request: bytes) -> Answer:
    stream = channel.unary_stream(method)(request, timeout=PATIENCE)
    answer = await trio.to_thread.run_sync(answered, lambda: next(stream, b""))
    stream.cancel()
    return answer


async def test_a_person_registers_updates_and_is_looked_up_over_tls(tmp_path: Path) -> None:
    async with reached(tmp_path) as at:
        realm = at.config.realm
        replica = realm.genesis_policy.quorum  # the verifiers do not run in this test
        trust = Trust(realm, replica, realm.genesis_policy)
        alice = Person.named("alice", at.small)
        with at.channel("public") as channel:
            for version in (b"1", b"2"):
                request = alice.draft({"ssh": version})
                request.lookup_parameters.quorum_requirement.CopyFrom(encoding.quorum_message(replica))
                alice.entry = encoding.decode_entry(request.update.entry)
                answer = await call(channel, KEYSERVER + "Update", request.SerializeToString())
                result = verify_lookup(trust, alice.user_id, answer.data, now_ms=now_ms())
                assert isinstance(result, Present)
                assert dict(result.profile.keys) == {"ssh": version}
            asked = alice.lookup(quorum_requirement=encoding.quorum_message(replica))
            found = await call(channel, KEYSERVER + "Lookup", asked)
            assert verify_lookup(trust, alice.user_id, found.data, now_ms=now_ms()).proof.entry == alice.entry
            skipping = alice.draft({"ssh": b"3"}, previous_entry_hash=bytes(32)).SerializeToString()
            refused = await call(channel, KEYSERVER + "Update", skipping)
            assert refused.reason == Reason.VERSION_MISMATCH
            assert refused.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_any_bytes_to_any_call_end_in_an_answer_or_a_typed_refusal(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    outcomes: Counter[str] = Counter()
    impatient = replace(configured(tmp_path), update_timeout_ms=100)  # no verifier runs: nothing is ratified
    async with reached(tmp_path, impatient) as at:
        alice = Person.named("alice", at.small)
        seeds = {
            KEYSERVER + "Lookup": alice.lookup(epoch=1),
            KEYSERVER + "Update": alice.draft({"ssh": b"1"}).SerializeToString(),
            KEYSERVER + "GetRealm": b"",
            KEYSERVER + "Consistency": client_pb2.ConsistencyRequest(old_epoch=1).SerializeToString(),
            VERIFICATION + "PushRatification": bytes(40),
        }
        with at.channel("public") as public, at.channel("push", IDENTITIES["v1"]) as push:
            for _ in range(count(40)):
                for method, good in seeds.items():
                    data = mutated(good, rng)
                    channel = push if method.startswith(VERIFICATION) else public
                    answer = await call(channel, method, data)
                    assert answer.code is grpc.StatusCode.OK or answer.reason in set(Reason)
                    outcomes[answer.reason or "OK"] += 1
        assert (await trio.to_thread.run_sync(at.get, "/livez"))[0] == 200
    assert outcomes["MALFORMED"] > 20
    assert "INTERNAL" not in outcomes


def mutated(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(data))
        data[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
    return bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.2 else data)


@pytest.mark.parametrize("method", ["Lookup", "Update", "Consistency", "GetRealm"])
async def test_an_empty_message_is_answered_and_crashes_nothing(method: str, tmp_path: Path) -> None:
    async with reached(tmp_path) as at:
        with at.channel("public") as channel:
            answer = await call(channel, KEYSERVER + method, b"")
            assert answer.reason == ("" if method == "GetRealm" else Reason.MALFORMED)
            unknown = await call(channel, KEYSERVER + "Nothing", b"")
            assert unknown.code is grpc.StatusCode.UNIMPLEMENTED


async def test_too_much_is_refused_with_a_reason_and_far_too_much_unread(
    tmp_path: Path,
) -> None:
    async with reached(tmp_path) as at:
        with at.channel("public") as channel:
            above = await call(channel, KEYSERVER + "Update", bytes(limits.REQUEST_BYTES + 1))
            assert (above.code, above.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.TOO_LARGE)
            far_above = await call(channel, KEYSERVER + "Update", bytes(4 * limits.REQUEST_BYTES))
            assert (far_above.code, far_above.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")


async def test_the_verifier_log_is_paged_and_followed(tmp_path: Path) -> None:
    async with reached(tmp_path) as at:
        with at.channel("verification") as channel:
            page = verification_pb2.VerifierStreamRequest(start=1, page_size=1).SerializeToString()
            answer = await first_message(channel, VERIFICATION + "VerifierStream", page)
            (step,) = proof_encoding.decode_steps(answer.data)
            assert isinstance(step, EpochStep)
            follow = verification_pb2.VerifierStreamRequest(start=2).SerializeToString()
            stream = channel.unary_stream(VERIFICATION + "VerifierStream")(follow, timeout=PATIENCE)
            with at.channel("public") as public:
                asked = Person.named("bob", at.small).draft({"ssh": b"1"})
                quorum = encoding.quorum_message(at.config.realm.genesis_policy.quorum)
                asked.lookup_parameters.quorum_requirement.CopyFrom(quorum)
                await call(public, KEYSERVER + "Update", asked.SerializeToString())
            live = proof_encoding.decode_steps(await trio.to_thread.run_sync(next, stream))
            assert live[0].index == 2
            stream.cancel()
            refused = await first_message(channel, VERIFICATION + "VerifierStream", b"")
            assert refused.reason == Reason.MALFORMED
            not_here = await call(channel, VERIFICATION + "PushRatification", b"")
            assert not_here.code is grpc.StatusCode.UNIMPLEMENTED


async def ratification(at: Reached, by: str) -> bytes:
    with at.channel("verification") as channel:
        page = verification_pb2.VerifierStreamRequest(start=1, page_size=1).SerializeToString()
        answer = await first_message(channel, VERIFICATION + "VerifierStream", page)
    (step,) = proof_encoding.decode_steps(answer.data)
    assert isinstance(step, EpochStep)
    head, time_ms = step.head.head.encoded, now_ms()
    made = signatures.sign(seed(by), verifier_message(head, time_ms))
    key_id = hashing.key_id(signatures.public_key(seed(by)))
    return encoding.encode_signed_head(head, [Ratification(time_ms, (Signature(key_id, made),))])


async def test_only_the_certificate_of_a_listed_verifier_pushes_and_only_its_own(tmp_path: Path) -> None:
    method = VERIFICATION + "PushRatification"
    async with reached(tmp_path) as at:
        pushed = await ratification(at, "v1")
        with at.channel("push", IDENTITIES["v2"]) as channel:
            other = await call(channel, method, pushed)
            assert (other.code, other.reason) == (grpc.StatusCode.PERMISSION_DENIED, Reason.NOT_AUTHORIZED)
        for stranger in (IDENTITIES["stranger"], None):
            with at.channel("push", stranger) as channel:
                assert (await call(channel, method, pushed)).code is grpc.StatusCode.UNAVAILABLE
        with at.channel("push", IDENTITIES["v1"]) as channel:
            with trio.fail_after(PATIENCE):
                while (first := await call(channel, method, pushed)).reason == Reason.NOT_READY:
                    await trio.lowlevel.checkpoint()  # its approval is still on its way into the log
            assert first.code is grpc.StatusCode.OK
            assert (await call(channel, method, pushed)).code is grpc.StatusCode.OK
        v1 = hashing.key_id(signatures.public_key(seed("v1")))
        assert v1 in at.running.parts.replica.published.signers(1).signers


async def test_without_tls_nobody_is_answered(tmp_path: Path) -> None:
    async with reached(tmp_path) as at:
        for listener in ("public", "verification", "push"):
            with grpc.insecure_channel(f"127.0.0.1:{at.running.ports[listener]}") as channel:
                answer = await call(channel, KEYSERVER + "GetRealm", b"")
                assert answer.code is grpc.StatusCode.UNAVAILABLE


async def test_health_is_told_in_every_way(tmp_path: Path) -> None:
    async with reached(tmp_path) as at:
        get = partial(trio.to_thread.run_sync, at.get)
        assert await get("/livez") == (200, b"alive\n")
        assert await get("/readyz") == (200, b"ready\n")
        code, metrics = await get("/metrics")
        assert code == 200
        assert b"e2eks_epoch_signed 1.0" in metrics
        code, status = await get("/status")
        record = json.loads(status)
        assert (code, record["schema"], record["ready"], record["epoch"]) == (200, "e2eks.status/1", True, 1)
        assert [verifier["name"] for verifier in record["head"]["verifiers"]] == list(VERIFIERS)
        assert record["listening"] == at.running.ports
        assert (await get("/nothing"))[0] == 404
        with at.channel("public") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            check = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE)

            def serving() -> bool:
                return any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in check)

            assert await trio.to_thread.run_sync(serving)
            at.running.parts.signer.quarantine("for the test")

            def not_serving() -> bool:
                return any(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING for answer in check)

            assert await trio.to_thread.run_sync(not_serving)
            check.cancel()
        assert await get("/readyz") == (503, b"in quarantine, this replica only reads: for the test\n")
        assert (await get("/status"))[0] == 503


async def test_a_second_process_on_the_same_data_is_refused(tmp_path: Path) -> None:
    async with reached(tmp_path) as at:
        with pytest.raises(StorageInUse):
            await run_replica(at.config)


@pytest.mark.parametrize("listener", ["public", "http"])
async def test_a_taken_port_is_named(listener: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with reached(tmp_path) as at:
        taken = f"127.0.0.1:{at.running.ports[listener]}"
        listen = Listen(**{"public": "", "verification": "", "push": "", "http": "", listener: taken})
        other = replace(configured(tmp_path / "other"), listen=listen)
        with pytest.raises((ConfigError, BaseExceptionGroup)) as caught:
            await run_replica(other)
        error = caught.value
        cause = first_cause(error) if isinstance(error, BaseExceptionGroup) else error
        assert isinstance(cause, ConfigError)
        assert f"listen.{listener}" in str(cause)


async def test_a_listener_turned_off_is_not_there(tmp_path: Path) -> None:
    listen = Listen(public="127.0.0.1:0", verification="", push="", http="")
    config = replace(configured(tmp_path), listen=listen)
    async with reached(tmp_path, config) as at:
        assert list(at.running.ports) == ["public"]


async def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with reached(tmp_path, config) as at:
        position = at.running.parts.replica.position
    async with reached(tmp_path, config) as at:
        assert at.running.parts.replica.position.index >= position.index
        assert at.running.parts.replica.state.signed_epoch >= 1
