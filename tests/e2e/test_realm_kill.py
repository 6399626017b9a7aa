"""SIGKILL at random moments under load: nothing acknowledged is lost, nobody signs an epoch twice, and a new
ratified epoch follows.

`--seed N` repeats the victims and the moments; what the processes were at when it struck is the machine's.
"""

import random
from collections.abc import Callable
from pathlib import Path

from realm_processes.crashes import strike, under_load

from keyserver.demo.stage import REPLICA

VERIFIERS = ("v1", "v2")
VICTIMS = (
    (REPLICA,),
    (REPLICA,),
    (REPLICA,),
    ("v1",),
    ("v2",),
    (REPLICA, "v1"),
    VERIFIERS,
    (REPLICA, *VERIFIERS),
)
PEOPLE = 3
MOMENT_S = 0.3  # an epoch and its ratifications fit in, and so does a part of a start
IMPATIENCE = 0.2  # how often the next blow falls before everything is up again


def test_killed_at_random_moments_under_load_nothing_is_lost_and_nothing_signed_twice(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with under_load(tmp_path, VERIFIERS, PEOPLE, rng) as trial:
        for _ in range(count(50)):
            victims = rng.choice(VICTIMS)
            trial.load.pause(rng.uniform(0, MOMENT_S))
            strike(trial, victims)
            if rng.random() >= IMPATIENCE:
                trial.wait_epoch()
    assert len({promise.user_id for promise in trial.promises()}) > PEOPLE
