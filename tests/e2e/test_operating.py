"""What an operator does to a running realm of processes: stops it, renews its certificates, lets it crash."""

import signal
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection, create_server

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from e2eks.v1 import verification_pb2
from realm_processes.people import Authority, Person, connect, new_person, register
from realm_processes.realm import VERIFICATION, RealmProcesses

from keyserver.crash_counter import CRASHES_MAX
from keyserver.demo.processes import wait_until
from keyserver.demo.stage import HOST, REPLICA
from keyserver.installation import certificates
from keyserver.installation.certificates import Certified
from keyserver.tls_files import OWN
from verifier.errors import E2eksError, Refused
from verifier.files import replace_file
from verifier.lookup import LookupResult

PATIENCE = 60.0
VERIFIERS = ("v1", "v2")


class OperatedRealm(RealmProcesses):
    authority = Authority()

    def configure(self, line: str) -> None:
        """Put a line at the top of the replica's configuration."""
        file = self.replica / "keyserver.toml"
        file.write_text(f"{line}\n{file.read_text()}")

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes.running[name].send_signal(number)

    def answers(self, path: str) -> tuple[int, str]:
        """Status and text of the HTTP listener, also when it is not 200."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.ports.http}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The value of a metric, given with its labels."""
        lines = (line.rpartition(" ") for line in self.answers("/metrics")[1].splitlines())
        return next(float(value) for key, _, value in lines if key == name)

    def shown(self) -> int:
        """Serial number of the certificate that a new connection to the public port is shown."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "ca" / "realm-ca.pem"))
        with (
            create_connection((HOST, self.ports.public), timeout=PATIENCE) as plain,
            trusted.wrap_socket(plain, server_hostname=HOST) as stream,
        ):
            der = stream.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number

    def issue(self, days: int = certificates.REPLICA_DAYS) -> Certified:
        """A new certificate of the replica, which ends in `days`."""
        folder = self.folder / "ca"
        key = load_pem_private_key((folder / "realm-ca.key").read_bytes(), None)
        issuer = x509.load_pem_x509_certificate((folder / "realm-ca.pem").read_bytes())
        now = datetime.now(UTC)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certificates, "REPLICA_DAYS", days)
            return certificates.issue_replica(Certified(issuer, key), REPLICA, [HOST], now)  # type: ignore[arg-type]

    def install(self, made: Certified) -> None:
        replace_file(self.replica / "tls.key", made.key_pem(), 0o600)
        replace_file(self.replica / "tls.pem", made.certificate_pem())


@contextmanager
def opened(folder: Path, *lines: str, verifiers: tuple[str, ...] = VERIFIERS) -> Iterator[OperatedRealm]:
    realm = OperatedRealm(folder / "realm", verifiers)
    set_up = realm.set_up

    def configured() -> None:
        set_up()
        for line in lines:
            realm.configure(line)

    realm.set_up = configured  # type: ignore[method-assign]
    try:
        realm.open()
        yield realm
    finally:
        for process in realm.processes.running.values():
            process.send_signal(signal.SIGCONT)
        realm.processes.stop_all()


@dataclass
class Registration:
    """Somebody registers in a thread; what came of it."""

    realm: OperatedRealm
    person: Person
    result: LookupResult | None = None
    error: E2eksError | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._register)
        self.thread.start()

    def _register(self) -> None:
        client, transport = connect(self.realm.realm())
        with transport:
            try:
                self.result = register(client, self.person)
            except E2eksError as error:
                self.error = error

    def end(self) -> None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def begin(realm: OperatedRealm) -> Registration:
    """A registration that is accepted, and that no verifier has ratified: they stand still."""
    for name in realm.running_verifiers:
        realm.signal(name, signal.SIGSTOP)
    before = realm.status()["verifier_log_size"]
    assert realm.authority is not None
    begun = Registration(realm, new_person(realm.realm(), realm.authority))

    def accepted() -> bool:
        """Whether the verifier log has an update since: it does once the epoch that contains it is signed."""
        wanted = verification_pb2.VerifierStreamRequest(start=before + 1, page_size=1_000)
        messages, _ = realm.verification().stream(VERIFICATION + "VerifierStream", wanted.SerializeToString())
        steps = [step for data in messages for step in verification_pb2.VerifierSteps.FromString(data).steps]
        return any(step.HasField("update") for step in steps)

    wait_until(accepted, "an accepted update")
    return begun


@pytest.mark.slow
def test_sigterm_answers_the_updates_that_wait_and_turns_new_callers_away(tmp_path: Path) -> None:
    with opened(tmp_path, "stop_grace_ms = 60000") as realm:
        begun = begin(realm)
        realm.signal(REPLICA, signal.SIGTERM)
        wait_until(lambda: realm.answers("/readyz") == (503, "the replica is stopping\n"), "the stop")
        assert realm.authority is not None
        refused = Registration(realm, new_person(realm.realm(), realm.authority))
        refused.end()
        assert isinstance(refused.error, E2eksError)
        assert begun.thread.is_alive()
        for name in VERIFIERS:
            realm.signal(name, signal.SIGCONT)
        begun.end()
        assert begun.error is None
        assert begun.result is not None
        assert realm.processes.running.pop(REPLICA).wait(PATIENCE) == 0
        assert '"in_time": true' in realm.log_of(REPLICA)


@pytest.mark.slow
def test_an_update_that_nobody_ratifies_in_the_grace_period_is_answered_not_ready(tmp_path: Path) -> None:
    with opened(tmp_path, "stop_grace_ms = 300") as realm:
        begun = begin(realm)
        assert realm.processes.stop(REPLICA) == 0
        begun.end()
        assert isinstance(begun.error, Refused | E2eksError)
        assert "stopping" in str(begun.error)
        assert '"in_time": false' in realm.log_of(REPLICA)


@pytest.mark.slow
def test_a_second_signal_ends_a_stopping_replica_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, "stop_grace_ms = 60000") as realm:
        begun = begin(realm)
        realm.signal(REPLICA, signal.SIGTERM)
        wait_until(lambda: "stopping" in realm.log_of(REPLICA), "the first signal to arrive")
        realm.signal(REPLICA, signal.SIGTERM)
        assert realm.processes.running.pop(REPLICA).wait(PATIENCE) == 128 + signal.SIGTERM
        begun.end()
        realm.start_replica()  # nothing was harmed


def test_sighup_renews_certificates_and_ends_no_connection(tmp_path: Path) -> None:
    with opened(tmp_path) as realm:
        before = realm.shown()
        with realm.verification().channel() as channel:
            rpc = channel.unary_stream(VERIFICATION + "VerifierStream")
            stream = rpc(
                verification_pb2.VerifierStreamRequest(start=1).SerializeToString(), timeout=PATIENCE
            )
            next(stream)
            made = realm.issue(days=20)
            realm.install(made)
            realm.signal(REPLICA, signal.SIGHUP)
            wait_until(lambda: "certificates renewed" in realm.log_of(REPLICA), "the renewal")
            assert realm.shown() == made.certificate.serial_number != before
            next(stream)  # the next epoch, over the connection that began before
        assert realm.status()["certificates"][OWN]["days_left"] == 19
        assert "the TLS certificate of replica ends in 19 days. Renew it" in realm.log_of(REPLICA)
        end_s = made.certificate.not_valid_after_utc.timestamp()
        metric = realm.metric(f'e2eks_tls_certificate_not_after_seconds{{holder="{OWN}"}}')
        assert metric == end_s
        checked = realm.run("keyserver", "serve", "--check", "-c", str(realm.replica / "keyserver.toml"))
        assert checked.returncode == 0
        assert "! the TLS certificate of replica ends in 19 days" in checked.stderr

        (realm.replica / "tls.pem").write_bytes(realm.issue().certificate_pem())  # without its key
        realm.signal(REPLICA, signal.SIGHUP)
        wait_until(lambda: "the former stay in use" in realm.log_of(REPLICA), "the refusal")
        assert realm.shown() == made.certificate.serial_number


def test_verifiers_push_on_after_a_renewal_and_with_new_certificates(tmp_path: Path) -> None:
    with opened(tmp_path, verifiers=("v1",)) as realm:
        realm.signal(REPLICA, signal.SIGHUP)
        realm.signal("v1", signal.SIGHUP)
        wait_until(lambda: "certificates renewed" in realm.log_of(REPLICA), "the renewal")
        wait_until(lambda: "certificate renewed" in realm.log_of("v1"), "the verifier's renewal")
        now = realm.epochs()
        wait_until(lambda: _ratified(realm, "v1") > now, "a newer ratified epoch")


def _ratified(realm: OperatedRealm, name: str) -> int:
    verifiers = (realm.status().get("head") or {}).get("verifiers", [])
    return next((int(v["ratified_epoch"]) for v in verifiers if v["name"] == name), 0)


@pytest.mark.slow
def test_after_repeated_crashes_a_replica_only_reads_until_somebody_has_looked(tmp_path: Path) -> None:
    with opened(tmp_path, verifiers=("v1",)) as realm:
        assert realm.authority is not None
        client, transport = connect(realm.realm())
        with transport:
            known = new_person(realm.realm(), realm.authority)
            register(client, known)
        assert realm.processes.stop(REPLICA) == 0  # a clean end counts for nothing
        config = str(realm.replica / "keyserver.toml")
        for _ in range(CRASHES_MAX):
            realm.spawn_replica(counting_crashes=True)
            wait_until(realm.replica_ready, REPLICA, realm.processes.running[REPLICA])
            realm.kill(REPLICA)

        realm.spawn_replica(counting_crashes=True)
        wait_until(lambda: bool(realm.standing().get("listening")), REPLICA, realm.processes.running[REPLICA])
        epoch = realm.standing()["signed_epoch"]
        code, why = realm.answers("/readyz")
        assert (code, why[:15]) == (503, "diagnostic mode")
        assert realm.standing()["diagnostic"] is True
        assert "e2eks_diagnostic 1.0" in realm.answers("/metrics")[1]
        assert '"event": "diagnostic"' in realm.log_of(REPLICA)
        client, transport = connect(realm.realm())
        with closing(transport):
            assert client.lookup(known.user_id).user_id == known.user_id
            with pytest.raises(Refused) as refused:
                register(client, new_person(realm.realm(), realm.authority))
            assert refused.value.reason == "NOT_READY"
        dumped = realm.run("keyserver", "log-dump", "-c", config, "--limit", "1")
        assert (dumped.returncode, dumped.stderr) == (0, "")
        assert realm.standing()["signed_epoch"] == epoch
        assert realm.processes.stop(REPLICA) == 0

        with create_server((HOST, realm.ports.http)):
            assert realm.run("keyserver", "serve", "-c", config).returncode == 2
        realm.spawn_replica(counting_crashes=True)  # neither stopping it nor a refused start is looking
        wait_until(lambda: realm.standing().get("diagnostic", False), REPLICA)
        assert realm.processes.stop(REPLICA) == 0
        realm.spawn_replica()
        wait_until(realm.replica_ready, REPLICA, realm.processes.running[REPLICA])
        wait_until(lambda: _ratified(realm, "v1") > epoch, "a newer ratified epoch")
