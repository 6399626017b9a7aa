"""The promises of tests/conftest.py, kept by a small suite that runs in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
SUITE = """
import os, pytest
from pathlib import Path

@pytest.mark.skip(reason="no gpg here")
def test_skipped(): pass

@pytest.mark.xfail(strict=True)
def test_expected_to_fail(): assert False

def test_numbers(rng): print("rng", rng.random())

def test_home(empty_home):
    assert os.environ["HOME"] == str(empty_home) and not list(empty_home.iterdir())
    assert Path(os.environ["XDG_STATE_HOME"]).is_relative_to(empty_home)
    assert "E2EKS_CONFIG" not in os.environ

def test_count(count): print("count", count(3))
"""
DRAWING = """
from hypothesis import given, strategies

@given(strategies.integers())
def test_drawn(number): print("drawn", number)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    shutil.copy(CONFTEST, tmp_path)
    shutil.copytree(CONFTEST.parent / "log_leaks", tmp_path / "log_leaks")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    (tmp_path / "test_small.py").write_text(SUITE)
    return tmp_path


def run(suite: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("E2EKS_", "PYTEST_"))}
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # starts in a fraction of the time
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "_hypothesis_pytestplugin", *arguments]
    return subprocess.run(
        command, cwd=suite, env=kept | settings, capture_output=True, text=True, timeout=300
    )


def printed(result: subprocess.CompletedProcess[str], word: str) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith(f"{word} ")]


def test_skips_pass_by_default_and_settings_of_the_machine_do_not_reach_the_tests(suite: Path) -> None:
    result = run(suite, E2EKS_CONFIG="of the machine")
    assert "1 skipped" in result.stdout
    assert result.returncode == 0
    assert printed(result, "count") == ["count 3"]


def test_skips_fail_where_they_are_forbidden_and_expected_failures_do_not(suite: Path) -> None:
    (suite / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    result = run(suite, E2EKS_NO_SKIP="1")
    assert "skipping is forbidden here: Skipped: could not import 'no_such_module'" in result.stdout
    assert result.returncode != 0
    result = run(suite, "test_small.py", E2EKS_NO_SKIP="1")
    assert "skipping is forbidden here: Skipped: no gpg here" in result.stdout
    assert "3 passed, 1 xfailed, 1 error" in result.stdout


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_seed_repeats_a_run_here_and_in_ci(suite: Path, ci: str) -> None:
    (suite / "test_drawing.py").write_text(DRAWING)
    first, again, other = (run(suite, "--seed", seed, CI=ci) for seed in ("7", "7", "8"))
    for word in ("rng", "drawn"):
        assert printed(first, word) == printed(again, word) != printed(other, word)


def test_the_seed_is_named_beside_a_failure(suite: Path) -> None:
    (suite / "test_small.py").write_text("def test_fails(): assert False\n")
    failed = run(suite)
    (header,) = [line for line in failed.stdout.splitlines() if line.startswith("seed: ")]
    assert f"--seed {header.split()[1]}" in failed.stdout.split("FAILURES")[1]


def test_soaking_multiplies_counts_and_examples(suite: Path) -> None:
    (suite / "test_drawing.py").write_text(DRAWING)
    result = run(suite, E2EKS_SOAK="20")
    assert printed(result, "count") == ["count 60"]
    assert len(printed(result, "drawn")) == 2000


LEAKING = """
import secrets

def test_file(tmp_path): (tmp_path / "log").write_text("x " + secrets.token_bytes(32).hex())

def test_event(): print('{"event": "asked", "who": "alice@example.org"}')

def test_print(): print("alice@example.org is looked up")
"""


def test_a_run_that_logged_a_user_id_or_a_secret_fails_and_says_where(suite: Path) -> None:
    (suite / "test_leaking.py").write_text(LEAKING)
    result = run(suite, "test_leaking.py")
    assert "3 passed" in result.stdout
    assert result.returncode == 1
    assert "test_leaking.py::test_event logged: a user id\n" in result.stdout
    assert "/log: a nonce or seed\n" in result.stdout
    assert "test_print logged" not in result.stdout
