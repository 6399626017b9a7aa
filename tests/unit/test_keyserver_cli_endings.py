"""How `keyserver` ends: exit codes of contract section 4, help, and never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from operators import Keyserver, keyserver_command

from keyserver import exits
from keyserver.cli import commands, realm, replicas
from keyserver.machine.codes import Halt
from kv.interface import StorageError, StorageInUse
from verifier.errors import (
    ConfigError,
    HistoryConflict,
    Malformed,
    NotRatified,
    Reason,
    Refused,
    VerificationError,
)


@pytest.fixture
def keyserver(capsys: pytest.CaptureFixture[str], empty_home: Path) -> Keyserver:
    return keyserver_command(capsys)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("alice@example.org"), 1),
        (StorageError("the store failed"), 1),
        (ConfigError("x"), 2),
        (StorageInUse("x"), 2),
        (VerificationError("vrf", "x"), 3),
        (exits.Unreachable("x"), 5),
        (Refused(Reason.RATE_LIMITED, "x"), 6),
        (Malformed("x"), 6),
        (NotRatified("stale", "x"), 7),
        (HistoryConflict("x", b"", b""), 8),
        (ExceptionGroup("g", [ValueError("v"), ExceptionGroup("h", [ConfigError("inner")])]), 2),
        (ExceptionGroup("g", [ValueError("v")]), 1),
        (KeyboardInterrupt(), 130),
        (click.UsageError("x"), 2),
        (click.FileError("x"), 2),
    ],
    ids=repr,
)
def test_every_error_ends_with_its_code_and_no_traceback(
    keyserver: Keyserver, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("keyserver.config.load_config", fail)
    ended = keyserver("serve")
    assert (ended.code, ended.out) == (code, "")
    assert "alice" not in ended.err


def test_the_trace_of_a_bug_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("E2EKS_DEBUG", "1")
    monkeypatch.setattr("keyserver.config.load_config", lambda _: 1 / 0)
    assert commands.run(["serve"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_why_a_replica_halted_is_shown(keyserver: Keyserver, monkeypatch: pytest.MonkeyPatch) -> None:
    def halt(_: object) -> None:
        raise ExceptionGroup("nursery", [Halt("the store is damaged at entry 7")])

    monkeypatch.setattr("keyserver.config.load_config", halt)
    ended = keyserver("serve")
    assert (ended.code, ended.err) == (1, "keyserver: error: the store is damaged at entry 7\n")


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("serve", "--nonsense"), ("realm",), ("completion",)]
)
def test_wrong_usage_ends_with_2(keyserver: Keyserver, arguments: tuple[str, ...]) -> None:
    assert keyserver(*arguments).code == 2


@pytest.mark.parametrize(
    "command",
    [
        "",
        *commands.keyserver.commands,
        *(f"realm {name}" for name in realm.realm.commands),
        *(f"replicas {name}" for name in replicas.replicas.commands),
    ],
)
def test_help_says_how_to_use_a_command(keyserver: Keyserver, command: str) -> None:
    ended = keyserver(*command.split(), "--help")
    assert ended.code == 0
    if command not in ("", "realm"):
        assert "Examples:" in ended.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(keyserver: Keyserver, shell: str) -> None:
    assert "_KEYSERVER_COMPLETE" in keyserver("completion", shell).out


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with this process's import path: nothing need be installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)


def test_help_imports_nothing_but_click() -> None:
    heavy = ("cryptography", "e2eks", "google", "grpc", "msgspec", "nacl", "plyvel", "structlog", "trio")
    script = (
        "import sys\nfrom keyserver.cli.commands import run\ncode = run(['serve', '--help'])\n"
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    done = run_python("-c", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = run_python("-m", "keyserver", "status", "-c", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("keyserver: error: ")
