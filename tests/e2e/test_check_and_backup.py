"""Check and backup of real processes: a replica under load, killed, restored; a verifier that was stopped."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from realm_processes.crashes import Trial, under_load

from keyserver.demo.processes import command
from keyserver.demo.stage import REPLICA

PEOPLE = 3
TIMEOUT_S = 120.0


def run(module: str, *arguments: object) -> tuple[int, Any]:
    """Exit code of a command, and what it printed as JSON."""
    line = command(module, *(str(argument) for argument in arguments), "-o", "json")
    ended = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert "Traceback" not in ended.stderr
    print(ended.stderr, file=sys.stderr)  # beside a failure
    return ended.returncode, json.loads(ended.stdout or "null")


def check(trial: Trial) -> Any:
    """The report on the replica, which must be sound."""
    code, report = run("keyserver", "check", "-c", config_of(trial))
    assert report["faults"] == []
    assert code == 0
    return report


def config_of(trial: Trial) -> Path:
    return trial.realm.replica / "keyserver.toml"


@pytest.mark.slow
def test_a_realm_is_checked_under_load_after_a_kill_and_at_rest_backed_up_and_restored(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    backup = tmp_path / "r1.backup"
    with under_load(tmp_path, ("v1",), PEOPLE, rng) as trial:
        checked_while_it_runs(trial, count(3))
        code, made = run("keyserver", "backup", "create", "-c", config_of(trial), backup)
        assert code == 0
        trial.wait_epoch()
        trial.realm.kill(REPLICA)
        report = check(trial)
        assert report["running"] is False
        assert report["applied_index"] > made["applied_index"]
        trial.realm.spawn(REPLICA)
        trial.wait_epoch()
    at_rest(trial)
    restored(trial, backup, made)


def checked_while_it_runs(trial: Trial, times: int) -> None:
    applied = []
    for _ in range(times):
        report = check(trial)
        assert report["running"] is True
        applied.append(report["applied_index"])
        trial.wait_epoch()
    assert applied == sorted(set(applied))


def at_rest(trial: Trial) -> None:
    """Everybody has stopped: perhaps between composing the newest head and signing it."""
    report = check(trial)
    assert report["running"] is False
    assert 0 < report["register_rows"] <= report["epoch"] <= report["register_rows"] + 1
    code, again = run("keyserver", "verify-db", "-c", config_of(trial))
    assert (code, again) == (0, report)
    code, report = run("verifier.daemon", "check", "-c", trial.realm.verifier("v1") / "verifier.toml")
    assert report["faults"] == []
    assert (code, report["sound"]) == (0, True)


def restored(trial: Trial, backup: Path, made: Any) -> None:
    """The backup is sound, and gives what it was made of; the register still knows what came after it."""
    realm_file = trial.realm.folder / "realm.json"
    code, verified = run("keyserver", "backup", "verify", backup, "--realm-file", realm_file)
    assert (code, verified["state_digest"]) == (0, made["state_digest"])
    code, _ = run("keyserver", "backup", "restore", backup, "-c", config_of(trial))
    assert code == 2  # there is something in the data directory
    shutil.move(trial.realm.replica / "data", backup.with_name("old-data"))
    code, put_back = run("keyserver", "backup", "restore", backup, "-c", config_of(trial))
    assert (code, put_back["state_digest"]) == (0, made["state_digest"])
    code, report = run("keyserver", "check", "-c", config_of(trial))
    assert code == 1
    assert {fault["table"] for fault in report["faults"]} == {"sign-once register"}
