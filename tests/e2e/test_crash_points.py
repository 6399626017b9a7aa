"""Every crash point of the shipped code, reached by a real process under load: it dies there by SIGKILL,
starts again from the same directory, and the realm has kept every promise.

The last line of a failure names the point and the visit; `--seed N` repeats their order.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from realm_processes.crashes import Trial, see_register, under_load

from keyserver.demo.stage import REPLICA
from kv.crash_points import KEYSERVER, POINTS, VARIABLE

VERIFIERS = ("v1",)
PEOPLE = 2
PROCESS = {KEYSERVER: REPLICA, "verifier": "v1"}
ELSEWHERE = ("replication/raft/", "keyserver/erasure.py")  # reached in a cluster; by erasures
VICTIMS = tuple(
    (name, PROCESS[process])
    for name, point in POINTS.items()
    if not point.file.startswith(ELSEWHERE)
    for process in point.processes
)
IMPATIENCE = 0.2  # how often a process dies while it is still starting, or soon after
VISITS = 8  # of a patient one: some epochs pass before


def crash_at(trial: Trial, point: str, victim: str, rng: random.Random) -> None:
    """Kill the victim, start it armed, let it die at the point. The next start is the next crash's."""
    patient = rng.random() >= IMPATIENCE
    visit = rng.randrange(3, VISITS) if patient else 1
    print(f"{victim} at {point}, visit {visit}: {POINTS[point].what}")
    trial.realm.kill(victim)
    see_register(trial.realm, victim, trial.seen)
    trial.realm.spawn(victim, {VARIABLE: f"{point}:{visit}"})
    trial.see_end(victim)
    trial.realm.spawn(victim)
    if patient:
        trial.wait_epoch()


@pytest.mark.slow
def test_a_process_that_dies_at_any_crash_point_starts_again_and_has_kept_every_promise(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with under_load(tmp_path, VERIFIERS, PEOPLE, rng) as trial:
        for _ in range(count(1)):
            for point, victim in rng.sample(VICTIMS, len(VICTIMS)):
                crash_at(trial, point, victim, rng)
