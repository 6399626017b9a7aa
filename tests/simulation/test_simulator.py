"""The simulator judges shipped code: some schedules in every run; the same seed is the same schedule; what
it should catch it catches.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from simulator import faults, schedule, seams
from simulator.disk import Crash, Disk, Files, Trouble
from simulator.stock import stock_engine

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def remembered() -> Iterator[None]:
    with seams.remembered(), seams.quiet():
        yield


def simulate(*arguments: str) -> list[dict[str, Any]]:
    """What tools/simulate.py prints."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("tests", "proto", "."))
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tools" / "simulate.py"), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_fresh_schedules_break_no_promise(rng: Random, count: Any) -> None:
    for _ in range(count(12)):
        result = schedule.run(rng.randrange(2**48))
        assert result.violation is None, (result.seed, result.violation, *result.tail[-20:])


def test_a_seed_gives_the_same_trace_in_every_process(rng: Random) -> None:
    seed = rng.randrange(2**48)
    here = schedule.run(seed)
    assert here.trace == schedule.run(seed).trace != schedule.run(seed + 1).trace
    [line] = simulate("--seed", str(seed))
    assert line["trace"] == here.trace
    assert (line["schema"], line["violations"]) == ("e2eks.sim/1", 0)


@pytest.mark.parametrize(("before", "after"), [(b"", b"abcdef"), (b"abc", b"abcdef"), (b"abcdef", b"abc")])
def test_a_torn_write_leaves_a_length_between_both(rng: Random, before: bytes, after: bytes) -> None:
    disk = Disk("d0", rng)
    files = Files({"d0": disk})
    held = files.open("/sim/d0/file", Files.O_RDWR | Files.O_CREAT)
    files.pwrite(held, before, 0)
    files.fsync(held)
    files.pwrite(held, after, 0)
    files.ftruncate(held, len(after))
    disk.arm(Trouble.TORN)
    with pytest.raises(Crash):
        files.fsync(held)
    lengths = sorted((len(before), len(after)))
    kept = disk.files["/sim/d0/file"].synced
    assert lengths[0] <= len(kept) <= lengths[1]
    assert b"abcdef".startswith(kept)


def test_every_kind_of_fault_is_drawn_often_enough() -> None:
    drawn: Counter[str] = Counter()
    for seed in range(2_000):
        drawn.update({fault.kind for fault in schedule.plan_of(seed).faults})
    assert drawn.keys() == faults.KINDS.keys()
    assert min(drawn.values()) >= 0.06 * 2_000


def test_a_plan_has_what_a_schedule_must_have() -> None:
    for seed in range(500):
        plan = schedule.plan_of(seed)
        assert plan.replicas >= 3
        assert plan.verifiers >= 2
        assert len(plan.faults) >= 4


@pytest.mark.slow
def test_schedules_run_most_of_the_files_they_judge() -> None:
    [line] = simulate("--schedules", "60", "--seed", "1", "--coverage")
    assert line["coverage_low"] == [], line["coverage"]


@pytest.mark.slow
def test_stock_pysyncobj_is_caught() -> None:
    with stock_engine():
        for seed in range(2_000):
            result = schedule.run(seed)
            if result.violation is not None:
                assert result.violation.invariant != "traceback"
                return
    pytest.fail("2,000 schedules found nothing wrong with stock pysyncobj")
