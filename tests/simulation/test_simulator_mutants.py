"""The seeded bugs: each still applies to the code as it is, and is still found where it was found before."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from simulator.mutants import ROOT, Bug, bugs, mutated

CAUGHT_MIN = 24
NEAR = 40  # schedules
OFTEN = 8  # a bug found by so early a schedule is found by most samples of that many more


def caught(bug: Bug) -> str:
    """By what invariant schedules from the recorded one on find the bug, in a fresh process; "" if none."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("tests", "proto", "."))
    given = ["--mutant", bug.name, "--seed", str(bug.seed), "--schedules", str(NEAR), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tools" / "simulate.py"), *given],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert json.loads(done.stdout.splitlines()[-1])["violations"] in (0, 1), done.stderr[-2000:]
    first = next((line for line in done.stderr.splitlines() if line.startswith("VIOLATION of ")), "")
    return first.removeprefix("VIOLATION of ").partition(" by seed ")[0]


def test_every_bug_applies_to_the_code_as_it_is() -> None:
    for bug in bugs().values():
        compile(mutated(bug), bug.file, "exec")


def test_enough_bugs_are_caught_and_the_list_says_where() -> None:
    known = bugs().values()
    found = [bug for bug in known if bug.seed >= 0]
    assert len(known) >= CAUGHT_MIN + 1
    assert len(found) >= max(CAUGHT_MIN, len(known) - 1)
    text = (Path(__file__).parent.parent / "simulator" / "mutants" / "README.md").read_text(encoding="utf-8")
    rows = [f"| `{bug.name}` | {bug.what} | {bug.invariant or '-'} | {bug.seed} |" for bug in known]
    assert [row for row in rows if row not in text] == []


@pytest.mark.slow
def test_recorded_schedules_find_their_bugs_again(rng: Random, count: Callable[[int], int]) -> None:
    """A sample of those found often; every change moves schedules, so some after the seed run too."""
    known = [bug for bug in bugs().values() if 0 <= bug.seed <= OFTEN]
    chosen = rng.sample(known, min(len(known), count(6)))
    with ThreadPoolExecutor(2) as pool:
        missed = [bug.name for bug, by in zip(chosen, pool.map(caught, chosen), strict=True) if not by]
    assert missed == []
