"""The crash points of a replica in a cluster: all are armed, and whoever reaches the point dies there, leader
or follower. Then all start again, and every promise is kept. And those of a replica alone: one dies there,
the others go on.

The last line of a failure names the point and the visit; `--seed N` repeats their order.
"""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from realm_processes.cluster import ClusterProcesses, cluster_under_load
from realm_processes.crashes import Trial, see_register

from keyserver.demo.processes import wait_until
from kv.crash_points import KEYSERVER, POINTS, VARIABLE

IN_A_CLUSTER = tuple(name for name, point in POINTS.items() if point.file.startswith("replication/raft/"))
OTHERS = tuple(
    name
    for name, point in POINTS.items()
    if KEYSERVER in point.processes and point.file != "keyserver/erasure.py" and name not in IN_A_CLUSTER
)
VISITS = {IN_A_CLUSTER: 40, OTHERS: 10}  # of a process: the leader sends many times in an epoch
# Of the life of an update and of a signature in one replica, while the others go on.
ALONE = ("P1", "P8", "P9", "P10", "P14", "S2", "S3", "S4")
MOMENT_S = 1.0


def die_at(trial: Trial, realm: ClusterProcesses, point: str, rng: random.Random) -> None:
    """Start everybody armed; when one has died, give the others a moment, and start all afresh."""
    visit = rng.randrange(1, VISITS[IN_A_CLUSTER if point in IN_A_CLUSTER else OTHERS])
    print(f"{point}, visit {visit}: {POINTS[point].what}")
    for name in realm.replicas:
        realm.kill(name)
    for name in realm.replicas:
        realm.spawn(name, {VARIABLE: f"{point}:{visit}"})
    running = {name: realm.processes.running[name] for name in realm.replicas}
    wait_until(lambda: any(process.poll() is not None for process in running.values()), f"a death at {point}")
    trial.load.pause(rng.uniform(0, MOMENT_S))
    for name, process in running.items():
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"{name} ended with status {process.returncode}"
        see_register(realm, name, trial.seen)
        realm.spawn(name)
    trial.wait_epoch()


@pytest.mark.slow
def test_a_cluster_whose_replicas_die_at_any_crash_point_has_kept_every_promise(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    assert len(IN_A_CLUSTER) >= 5
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        for turn in range(count(1)):
            points = IN_A_CLUSTER if turn == 0 else IN_A_CLUSTER + OTHERS
            for point in rng.sample(points, len(points)):
                die_at(trial, realm, point, rng)


@pytest.mark.slow
def test_a_cluster_goes_on_when_one_replica_dies_at_a_crash_point(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        name = rng.choice(realm.replicas)
        realm.kill(name)
        for _ in range(count(1)):
            for point in rng.sample(ALONE, len(ALONE)):
                visit = rng.randrange(1, VISITS[OTHERS])
                print(f"{name} at {point}, visit {visit}: {POINTS[point].what}")
                realm.spawn(name, {VARIABLE: f"{point}:{visit}"})
                trial.see_end(name)
                trial.wait_epoch()
        realm.spawn(name)
