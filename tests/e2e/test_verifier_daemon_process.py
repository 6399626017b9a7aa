"""The command `verifier` as a process: init, run, kill, status, audit, evidence; and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from streams.build import START_MS, Stream
from streams.fake_keyserver import DEADLINE_S, SOON, FakeKeyserver
from streams.folder import VerifierFolder

from verifier import realm as realms

COMMAND = [sys.executable, "-c", "from verifier.daemon.cli import main; main()"]
FAST = "\n[times]\nretry_min_ms = 5\nretry_max_ms = 50\n"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def verifier(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment(),
        cwd=cwd,
        check=False,
    )


@contextmanager
def watched(tmp_path: Path, epochs: int) -> Iterator[tuple[FakeKeyserver, VerifierFolder]]:
    stream = Stream().grow(epochs)
    folder = VerifierFolder.make(tmp_path / "verifier", stream.realm)
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        folder.connect(keyserver.verification, keyserver.push, keyserver.certificate, extra=FAST)
        yield keyserver, folder


@contextmanager
def started(folder: VerifierFolder) -> Iterator[subprocess.Popen[bytes]]:
    errors = folder.path / "log"
    with errors.open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "run", "-c", str(folder.config_file)], stderr=log, env=environment()
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_init_prints_the_info_that_the_operator_adds(tmp_path: Path) -> None:
    realm_file = tmp_path / "realm.json"
    realm = replace(Stream().realm, addresses=("127.0.0.1:4625", "127.0.0.1:4635"))
    realm_file.write_bytes(realms.realm_json(realm))
    folder = tmp_path / "v1"
    arguments = ("--realm-file", str(realm_file), "--name", "v1", "--address", "v1.example.net:4630")
    made = verifier("init", str(folder), *arguments)
    assert made.returncode == 0, made.stderr
    info = json.loads(made.stdout)
    assert info == json.loads((folder / "verifier-info.json").read_text())
    assert set(info) == {"schema", "name", "public_key", "address", "tls_certificate_pem"}
    assert info["schema"] == "e2eks.verifier-info/1"
    config = (folder / "verifier.toml").read_text()
    assert 'verification = ["127.0.0.1:4626"]' in config
    assert 'push = ["127.0.0.1:4628"]' in config
    assert f"if they listen elsewhere,\n  correct [keyserver] in {folder / 'verifier.toml'}" in made.stderr
    again = verifier("init", str(folder), *arguments)
    assert again.returncode == 2
    assert "Nothing was changed" in again.stderr


def test_sigterm_ends_a_run_cleanly_and_status_tells(tmp_path: Path) -> None:
    with watched(tmp_path, 2) as (keyserver, folder):
        with started(folder) as process:
            keyserver.wait_until(lambda: keyserver.ratified_epochs() == {1, 2})
            running = verifier("status", "-c", str(folder.config_file), "-o", "json")
            assert running.returncode == 0, running.stderr
            assert json.loads(running.stdout)["running"] is True
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_S) == 0
        stopped = verifier("status", "-c", str(folder.config_file), "-o", "json")
        assert (stopped.returncode, "does not run" in stopped.stderr) == (5, True)
        status = json.loads(stopped.stdout)
        assert status["schema"] == "e2eks.verifier-status/1"
        assert (status["running"], status["epoch"], status["ratified_epoch"]) == (False, 2, 2)


@pytest.mark.slow
def test_killed_at_random_moments_it_signs_each_epoch_once_and_loses_none(
    tmp_path: Path, rng: Random, count: Callable[[int], int]
) -> None:
    kills = count(50)
    with watched(tmp_path, 1) as (keyserver, folder):
        keyserver.steps_per_message = 1
        for _ in range(kills):
            keyserver.on_push.append(rng.choice(SOON))
            with started(folder) as process:
                seen, pushes = len(keyserver.starts), len(keyserver.pushed)
                keyserver.wait_until(lambda seen=seen: len(keyserver.starts) > seen)  # type: ignore[misc]
                keyserver.grow(lambda s: s.grow(rng.randrange(1, 4)))
                if rng.random() < 0.5:
                    keyserver.wait_until(lambda n=pushes: len(keyserver.pushed) > n)  # type: ignore[misc]
                busy_until = time.perf_counter() + rng.random() / 20
                while time.perf_counter() < busy_until:
                    pass
                process.kill()
        last = keyserver.stream.chain.epoch
        with started(folder):
            keyserver.wait_until(lambda: keyserver.ratified_epochs() == set(range(1, last + 1)))
        for number in range(1, last + 1):
            assert len(set(keyserver.pushes_of(number))) == 1, f"two signatures on epoch {number}"


@pytest.mark.parametrize(
    ("changes", "exit_code", "proven"),
    [({"root_hash": bytes(31) + b"x"}, 3, 3), ({"previous_head_hash": bytes(32)}, 8, 0)],
    ids=["wrong root", "contradiction"],
)
def test_misbehaviour_ends_the_process_with_evidence_that_anybody_can_verify(
    tmp_path: Path, changes: dict[str, bytes], exit_code: int, proven: int
) -> None:
    with watched(tmp_path, 1) as (keyserver, folder):
        s = keyserver.stream
        s.append(epoch=s.sign_head(s.compose(**changes)))
        stopped = verifier("run", "-c", str(folder.config_file))
        assert stopped.returncode == exit_code, stopped.stderr
        (kept,) = (folder.path / "evidence").iterdir()
        assert str(kept) in stopped.stderr
        again = verifier("run", "-c", str(folder.config_file))
        assert again.returncode == exit_code
        assert "stopped before" in again.stderr
        realm_file = str(folder.path / "realm.json")
        judged = verifier("evidence", "verify", str(kept), "--realm-file", realm_file, "-o", "json")
        assert judged.returncode == proven
        assert json.loads(judged.stdout)["standing"] == ("testimony" if proven else "proven")


def test_an_audit_replays_everything_without_a_configuration(tmp_path: Path) -> None:
    with watched(tmp_path, 4) as (keyserver, folder):
        realm_file = str(folder.path / "realm.json")
        arguments = ("audit", "--from", "1", "--realm-file", realm_file, "--address", keyserver.verification)
        audited = verifier("-q", *arguments, "-o", "json", cwd=tmp_path)
        assert audited.returncode == 0, audited.stderr
        assert audited.stderr == ""
        verdict = json.loads(audited.stdout)
        assert verdict["lawful"] is True
        assert verdict["epoch"] == 4
        assert verdict["head_hash"] == keyserver.stream.chain.head_hash.hex()
        assert verdict["issue_time_ms"] == START_MS + 4_000
        s = keyserver.stream
        s.append(epoch=s.sign_head(s.compose(history_root=bytes(32))))
        refused = verifier(*arguments, cwd=tmp_path)
        assert refused.returncode == 8
        (kept,) = (tmp_path / "evidence").iterdir()
        assert str(kept.name) in refused.stderr
        assert "this verifier" not in refused.stderr  # who audits need not be one


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f.path / "sign-once.register").unlink(), "must not sign again"),
        (lambda f: (f.path / "verifier.key").chmod(0o644), "chmod 600"),
        (lambda f: f.config_file.write_text("schema = 1"), "verifier.toml"),
        (lambda f: (f.path / "realm.json").write_text("{}"), "realm"),
        (lambda f: (f.path / "verifier.toml").unlink(), "cannot be read"),
    ],
    ids=["register", "secret", "configuration", "realm", "missing"],
)
def test_what_cannot_start_says_why_and_ends_with_2(
    tmp_path: Path, damage: Callable[[VerifierFolder], object], words: str
) -> None:
    folder = VerifierFolder.make(tmp_path / "verifier", Stream().realm)
    damage(folder)
    refused = verifier("run", "-c", str(folder.config_file))
    assert refused.returncode == 2, refused.stderr
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_audit_of_nobody_is_unreachable(tmp_path: Path) -> None:
    folder = VerifierFolder.make(tmp_path / "verifier", Stream().realm)
    gone = verifier("audit", "-c", str(folder.config_file))
    assert gone.returncode == 5


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    check = (
        "import sys; from verifier.daemon.cli import main; "
        "main(['--help'], standalone_mode=False); "
        "heavy = {'grpc', 'trio', 'nacl', 'plyvel', 'msgspec', 'google.protobuf'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
