"""Three replicas under load, killed at random moments: nothing acknowledged is lost, nobody signs an epoch
twice, all agree, and a majority goes on without whoever is dead.

`--seed N` repeats the victims and the moments; what the processes were at when it struck is the machine's.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from realm_processes.cluster import THREE, cluster_under_load
from realm_processes.crashes import see_register, strike

ONE = tuple((name,) for name in THREE)
TWO = tuple(tuple(name for name in THREE if name != spared) for spared in THREE)
VICTIMS = (*ONE, *ONE, *TWO, THREE, ("r1", "v1"), (*THREE, "v1"))
MOMENT_S = 1.0  # an election and an epoch fit in, and so does a part of a start
IMPATIENCE = 0.3  # how often the next blow falls before everything is up again
LEAD_S = 60.0  # enough on any machine; how long it takes is printed, and measured by `make bench`


@pytest.mark.slow
def test_replicas_killed_at_random_moments_lose_nothing_and_sign_nothing_twice(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with cluster_under_load(tmp_path, rng) as (trial, _):
        for _ in range(count(8)):
            victims = rng.choice(VICTIMS)
            trial.load.pause(rng.uniform(0, MOMENT_S))
            print(f"kill {' '.join(victims)}")
            strike(trial, victims)
            if rng.random() >= IMPATIENCE:
                trial.wait_epoch()


@pytest.mark.slow
def test_the_others_go_on_when_the_leader_is_killed(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    seconds = []
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        for _ in range(count(3)):
            leader = realm.wait_leader()
            realm.kill(leader)
            seconds.append(trial.load.wait_issued_from_now(LEAD_S))
            realm.wait_leader(other_than=leader)
            see_register(realm, leader, trial.seen)
            realm.spawn(leader)
            realm.wait_ready(leader)
    print(f"next ratified update after {', '.join(f'{s:.2f} s' for s in sorted(seconds))}")
