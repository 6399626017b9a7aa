"""`keyserver demo`: what it promises to a script, what it leaves behind, and that it goes on serving."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keyserver.demo.stage import listening
from verifier.realm import fingerprint, parse_realm_json

DEADLINE_S = 600
PROOFS = [
    "alice", "bob", "carol", "alice-updated", "alice-old-epoch", "absent", "tampered", "one-signer", "fork",
]  # fmt: skip
DEMO = [sys.executable, "-I", "-m", "keyserver", "demo", "--script"]
EXITS = {"tampered": 3, "absent": 4, "one-signer": 7, "fork": 8}
PROVEN = {0, 4}


def clean_environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home), "E2EKS_HOME": str(home), "NO_COLOR": "1"}


@dataclass(frozen=True)
class Demo:
    folder: Path
    result: Mapping[str, Any]
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        addresses = parse_realm_json((self.folder / "realm.json").read_bytes()).addresses
        return int(addresses[0].rpartition(":")[2])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that played its steps and goes on serving."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    home = tmp_path_factory.mktemp("home")
    errors = tmp_path_factory.mktemp("log") / "stderr"
    arguments = [
        sys.executable,
        "-I",
        "-m",
        "keyserver",
        "demo",
        "--script",
        "--serve",
        "--keep",
        str(folder),
    ]
    with errors.open("w") as log:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_environment(home)
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, errors.read_text()
        yield Demo(folder, json.loads(line), process)
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def e2eks(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "verifier.client", *arguments],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_the_result_is_one_object_of_the_promised_form(demo: Demo) -> None:
    assert demo.result["schema"] == "e2eks.demo/1"
    assert demo.result["ok"] is True, demo.result["steps"][-1]
    assert len(demo.result["steps"]) >= 13
    assert "kill-leader" in [step["name"] for step in demo.result["steps"]]
    for step in demo.result["steps"]:
        assert step["ok"] is True, step
        assert step["name"]
        assert step["seconds"] >= 0
    assert demo.result["epochs"] >= 3
    assert set(PROOFS) <= demo.result["proofs"].keys()
    for name, proof in demo.result["proofs"].items():
        assert proof["user"].endswith("@example.test")
        assert proof["expect_exit"] == EXITS.get(name, 0)


def test_every_kept_proof_has_its_verdict_in_one_home(demo: Demo, tmp_path: Path) -> None:
    for name, proof in demo.result["proofs"].items():
        done = e2eks(
            tmp_path, "verify", str(demo.folder / "proofs" / f"{name}.bin"),
            "--realm-file", str(demo.folder / "realm.json"),
            "--user", proof["user"], "--at", str(proof["at_ms"]), "-o", "json",
        )  # fmt: skip
        assert done.returncode == proof["expect_exit"], (name, done.stderr)
        schema = json.loads(done.stdout)["schema"]
        assert schema == ("e2eks.lookup/1" if proof["expect_exit"] in PROVEN else "e2eks.error/1")


def test_without_the_history_a_fork_looks_genuine(demo: Demo, tmp_path: Path) -> None:
    """It is signed with the realm's own keys: only who has seen the other head can tell."""
    at = str(demo.result["proofs"]["fork"]["at_ms"])
    file, realm = demo.folder / "proofs" / "fork.bin", demo.folder / "realm.json"
    done = e2eks(tmp_path, "verify", str(file), "--realm-file", str(realm), "--at", at)
    assert done.returncode == 0


def test_a_proof_is_stale_later(demo: Demo, tmp_path: Path) -> None:
    at = str(demo.result["proofs"]["alice"]["at_ms"] + 24 * 3600 * 1000)
    file, realm = demo.folder / "proofs" / "alice.bin", demo.folder / "realm.json"
    done = e2eks(tmp_path, "verify", str(file), "--realm-file", str(realm), "--at", at)
    assert done.returncode == 7


def test_the_kept_folder_holds_the_realm_and_everybody_in_it(demo: Demo) -> None:
    replicas, verifiers = [f"replicas/r{n}" for n in (1, 2, 3)], [f"verifiers/v{n}" for n in (1, 2)]
    for name in ("realm.json", "proofs", "identities", *replicas, *verifiers):
        assert (demo.folder / name).exists()
    for name in PROOFS:
        assert (demo.folder / "proofs" / f"{name}.bin").stat().st_size > 0
    secrets = [p for p in demo.folder.rglob("*.key") if p.is_file()]
    assert len(secrets) >= 14
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)


def test_replicas_that_were_shown_another_head_keep_it_as_evidence(demo: Demo) -> None:
    kept = {
        name: list((demo.folder / "replicas" / name).rglob("heads-differ-*.json")) for name in ("r1", "r2")
    }
    assert all(kept.values())
    done = subprocess.run(
        [
            sys.executable, "-I", "-m", "verifier.daemon", "evidence", "verify", str(kept["r1"][0]),
            "--realm-file", str(demo.folder / "realm.json"),
        ],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert "testimony" in (done.stdout + done.stderr).lower()


def test_no_process_of_it_logged_an_exception_or_a_name(demo: Demo) -> None:
    for log in (demo.folder / "logs").glob("*.log"):
        text = log.read_text()
        assert "Traceback" not in text, log.name
        for person in ("alice@", "bob@", "carol@", "nobody@"):
            assert person not in text, log.name


def test_it_serves_a_stranger_who_has_the_realms_file(demo: Demo, tmp_path: Path) -> None:
    file = demo.folder / "realm.json"
    told = fingerprint(parse_realm_json(file.read_bytes()))
    added = e2eks(tmp_path, "context", "add", str(file), "--fingerprint", told)
    assert added.returncode == 0, added.stderr
    found = e2eks(tmp_path, "lookup", "alice@example.test", "--app", "ssh", "--raw")
    assert found.returncode == 0, found.stderr
    new = demo.folder / "identities" / "keys" / "alice-new" / "ssh.pub"
    assert found.stdout.encode() == new.read_bytes()
    assert e2eks(tmp_path, "lookup", "nobody@example.test").returncode == 4


def test_it_serves_until_it_is_told_to_stop(demo: Demo) -> None:
    """Last: it ends the demo of this module."""
    port = demo.port
    assert demo.process.poll() is None
    assert listening(port)
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(DEADLINE_S) == 0
    assert not listening(port)


def play(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A demo that ends by itself."""
    done = subprocess.run(
        [*DEMO, *arguments],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_one_replica_is_killed_and_comes_back(tmp_path: Path) -> None:
    done = play(tmp_path, "--replicas", "1", "--verifiers", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert "kill" in [step["name"] for step in result["steps"]]


@pytest.mark.slow
def test_told_to_end_in_the_middle_it_ends_after_the_step(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    arguments = [*DEMO, "--keep", str(folder), "--replicas", "1", "--verifiers", "1"]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(tmp_path),
    ) as process:
        assert process.stderr is not None
        while "1. " not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    result = json.loads(out)
    assert result["ok"] is False
    assert [step["name"] for step in result["steps"]] == ["set-up"]
    assert not any((folder / "logs").glob("*"))  # nothing was started


def test_an_even_number_of_replicas_is_refused(tmp_path: Path) -> None:
    assert play(tmp_path, "--replicas", "2").returncode == 2


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    assert play(tmp_path, "--keep", str(folder)).returncode == 2
    assert [path.name for path in folder.iterdir()] == ["precious"]
