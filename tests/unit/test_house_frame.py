"""The frame of the house: where rooms are imported from, what make offers, what may be called what."""

import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
ROOMS = ("keyserver", "replication", "kv", "verifier")
TARGETS = {"demo", "test", "check", "bench", "sim", "soak", "lock", "proto", "fmt", "wheel", "clean"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_imported_from_this_house(room: str) -> None:
    """kv and replication are also names of strangers' packages, which would win if they were installed."""
    found = importlib.import_module(room).__file__
    assert found is not None
    assert Path(found).parent == HOUSE / room


def test_no_tool_or_folder_of_tests_is_named_like_a_room() -> None:
    names = {path.stem for path in (HOUSE / "tools").iterdir()} | {
        path.name for path in (HOUSE / "tests").iterdir()
    }
    assert not names & {*ROOMS, "e2eks", "google"}


def test_make_offers_every_target() -> None:
    makefile = (HOUSE / "Makefile").read_text()
    assert set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)) >= TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) >= TARGETS


@pytest.mark.slow
def test_sim_prints_its_sum_last() -> None:
    command = ["make", "--no-print-directory", "sim", "ARGS=--schedules 2 --seed 1"]
    result = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    total = json.loads(result.stdout.splitlines()[-1])
    assert (total["schema"], total["schedules"], total["violations"]) == ("e2eks.sim/1", 2, 0)


def test_ci_is_one_executable_that_ends_with_the_tests() -> None:
    script = HOUSE / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"
    assert commands[-3:] == ["make check", 'make sim ARGS="--seconds 420 --at-least 3000"', "make test"]


def test_every_decision_is_numbered_and_names_the_losers_case() -> None:
    records = sorted(path.name for path in (HOUSE / "docs" / "adr").glob("[0-9]*.md"))
    assert [name[:5] for name in records] == [f"{number:04}-" for number in range(1, len(records) + 1)]
    headings = ("## Context", "## Decision", "## The loser's case", "## Consequences")
    for name in records:
        text = (HOUSE / "docs" / "adr" / name).read_text()
        assert [heading for heading in headings if heading not in text] == [], name
