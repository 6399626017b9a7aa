"""What an operator does to a running verifier: stops it, asks for its metrics, renews its certificate."""

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from socket import create_connection

import pytest
from streams.build import Stream
from streams.fake_keyserver import DEADLINE_S, FakeKeyserver, OnPush
from streams.folder import VerifierFolder

from keyserver.demo.processes import free_port, wait_until
from verifier.daemon.setup import make_certificate

NEVER_AGAIN = "\n[times]\nretry_min_ms = 3600000\nretry_max_ms = 3600000\n"
TWICE_PERHAPS = 3  # an epoch that comes while its first push is being prepared is offered again at once


@contextmanager
def running(
    folder: VerifierFolder, keyserver: FakeKeyserver, *lines: str, extra: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    folder.connect(keyserver.verification, keyserver.push, keyserver.certificate, extra=extra)
    text = folder.config_file.read_text()
    folder.config_file.write_text("\n".join((*lines, text)))
    command = [sys.executable, "-c", "from verifier.daemon.cli import main; main()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (folder.path / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "run", "-c", str(folder.config_file)], stderr=log, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def log_of(folder: VerifierFolder) -> str:
    return (folder.path / "log").read_text()


def test_sigterm_offers_what_is_owed_once_more(tmp_path: Path) -> None:
    stream = Stream().grow(1)
    folder = VerifierFolder.make(tmp_path / "v", stream.realm)
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        keyserver.on_push.extend(TWICE_PERHAPS * [OnPush.REFUSE])
        with running(folder, keyserver, extra=NEVER_AGAIN) as process:
            wait_until(lambda: "ratification refused" in log_of(folder), "the refusal", process)
            assert keyserver.pushed == []
            keyserver.on_push.clear()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        assert keyserver.ratified_epochs() == {1}
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["owed"], status["stopped"]) == (0, "asked to")


def test_a_second_signal_ends_a_verifier_that_cannot_deliver(tmp_path: Path) -> None:
    stream = Stream().grow(1)
    folder = VerifierFolder.make(tmp_path / "v", stream.realm)
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        keyserver.on_push.extend(TWICE_PERHAPS * [OnPush.REFUSE])
        with running(folder, keyserver, "stop_grace_ms = 3600000", extra=NEVER_AGAIN) as process:
            wait_until(lambda: "ratification refused" in log_of(folder), "the refusal", process)
            keyserver.on_push.extendleft(TWICE_PERHAPS * [OnPush.HANG])
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: "stopping" in log_of(folder), "the first signal to arrive")
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 128 + signal.SIGTERM


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_tell_where_a_verifier_stands(tmp_path: Path) -> None:
    stream = Stream().grow(3)
    folder = VerifierFolder.make(tmp_path / "v", stream.realm)
    port = free_port()
    with (
        FakeKeyserver(stream, folder.certificate) as keyserver,
        running(folder, keyserver, f'metrics = "127.0.0.1:{port}"') as process,
    ):
        keyserver.wait_until(lambda: keyserver.ratified_epochs() == {1, 2, 3})
        wait_until(lambda: metrics(port)["e2eks_verifier_outbox"] == 0, "the last answer", process)
        found = metrics(port)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE_S)
        with refused.value as error:
            assert error.code == 404
        with create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as silent:
            assert metrics(port).keys() == found.keys()  # somebody who never asks is in nobody's way
            silent.sendall(b"x" * 10_000)
            assert silent.recv(100).startswith(b"HTTP/1.1 404")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    expected = {"epoch": 3, "ratified_epoch": 3, "lag_epochs": 0, "outbox": 0, "following": 1}
    assert {name: found[f"e2eks_verifier_{name}"] for name in expected} == expected
    assert found["e2eks_verifier_issue_time_seconds"] == stream.chain.issue_time_ms / 1000
    assert found["e2eks_tls_certificate_not_after_seconds"] > 1.8e9


def test_metrics_at_a_port_in_use_are_a_configuration_error(tmp_path: Path) -> None:
    stream = Stream().grow(1)
    folder = VerifierFolder.make(tmp_path / "v", stream.realm)
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        line = f'metrics = "{keyserver.push}"'
        with running(folder, keyserver, line) as process:
            assert process.wait(DEADLINE_S) == 2
    assert "cannot be bound" in log_of(folder)


def test_sighup_renews_the_certificate_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    stream = Stream().grow(1)
    folder = VerifierFolder.make(tmp_path / "v", stream.realm)
    with FakeKeyserver(stream, folder.certificate) as keyserver, running(folder, keyserver) as process:
        wait_until(lambda: '"event": "ratified"' in log_of(folder), "a ratification", process)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: '"event": "certificate renewed"' in log_of(folder), "the renewal", process)
        other, _ = make_certificate("v0", "127.0.0.1", datetime.now(UTC))
        (folder.path / "tls.pem").write_bytes(other)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the former stays in use" in log_of(folder), "the refusal", process)
        assert "is for another key than" in log_of(folder)
        keyserver.grow(lambda s: s.grow(1))
        keyserver.wait_until(lambda: keyserver.ratified_epochs() == {1, 2})
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.slow
def test_many_handshakes_at_once_end_no_verifier(tmp_path: Path) -> None:
    """gRPC frees a certificate that is configured anew while another thread begins a handshake with it."""
    stream = Stream().grow(1)
    folder, port = VerifierFolder.make(tmp_path / "v", stream.realm), free_port()
    text = folder.config_file.read_text()
    folder.config_file.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])

    def shake_hands(_: object) -> int:
        address = "127.0.0.1", port
        with suppress(OSError), create_connection(address, DEADLINE_S) as plain, context.wrap_socket(plain):
            return 1
        return 0

    with (
        FakeKeyserver(stream, folder.certificate) as keyserver,
        running(folder, keyserver) as process,
        ThreadPoolExecutor(16) as callers,
    ):
        wait_until(lambda: bool(shake_hands(None)), "the listener", process)
        made = sum(callers.map(shake_hands, range(16_000)))
        assert process.poll() is None
        assert made == 16_000
