"""Power failures and disks that fail to sync, in real processes under load: nothing acknowledged is lost,
nobody signs twice, and a new ratified epoch follows. `--seed N` repeats the moments.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from preload import ForgetfulDisk, failing
from realm_processes.crashes import Trial, see_register, under_load

from keyserver.demo.stage import REPLICA

VERIFIER = "v1"
PEOPLE = 2
MOMENT_S = 0.3
SYNCS_AT_START = 12
SYNCS = 200  # of some seconds under load
SOON = 60  # a second or two
FAILED = 1  # the exit code of a process whose disk failed


def folder_of(trial: Trial, name: str) -> Path:
    return trial.realm.replica if name == REPLICA else trial.realm.verifier(name)


def disks(folder: Path, name: str, root: Path) -> Iterator[ForgetfulDisk]:
    """The same folder, with a new memory of what is synced for each life of a process."""
    number = 0
    while True:
        number += 1
        kept = folder / f"kept-{name}-{number}"
        kept.mkdir()
        yield ForgetfulDisk(root, kept)


def lose_power(trial: Trial, name: str, disk: ForgetfulDisk, rng: random.Random) -> None:
    print(f"{name} {disk.lose_power(rng)}")
    see_register(trial.realm, name, trial.seen)


def lose_power_twice(trial: Trial, name: str, disk: Iterator[ForgetfulDisk], rng: random.Random) -> None:
    """At a random moment, then in a sync, perhaps one of the start. The process does not run afterwards."""
    at_random, in_a_sync = next(disk), next(disk)
    trial.realm.spawn(name, at_random.environment())
    trial.wait_epoch()
    trial.load.pause(rng.uniform(0, MOMENT_S))
    trial.realm.kill(name)
    lose_power(trial, name, at_random, rng)
    number = rng.randrange(1, rng.choice((SYNCS_AT_START, SOON)))
    print(f"killed in sync {number}")
    trial.realm.spawn(name, in_a_sync.environment(kill_at=number))
    trial.realm.wait_end(name)
    lose_power(trial, name, in_a_sync, rng)


@pytest.mark.slow
def test_what_was_not_synced_when_the_power_failed_was_promised_to_nobody(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with under_load(tmp_path, (VERIFIER,), PEOPLE, rng) as trial:
        for name, times in ((REPLICA, count(6)), (VERIFIER, count(2))):
            trial.realm.kill(name)
            disk = disks(tmp_path, name, folder_of(trial, name))
            for _ in range(times):
                lose_power_twice(trial, name, disk, rng)
            trial.realm.spawn(name)


@pytest.mark.slow
def test_a_process_whose_disk_fails_to_sync_halts_and_starts_again(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    numbers = range(1, SYNCS + 1 if count(10) >= SYNCS else SOON)  # a soak fails every one of them
    victims = [(REPLICA, number) for number in rng.sample(numbers, min(count(10), len(numbers)))]
    victims += [(VERIFIER, rng.randrange(1, SOON)) for _ in range(count(2))]
    with under_load(tmp_path, (VERIFIER,), PEOPLE, rng) as trial:
        for turn, (name, number) in enumerate(victims):
            print(f"sync {number} of {name} fails")
            struck = tmp_path / f"struck-{turn}"
            trial.realm.kill(name)
            trial.realm.spawn(name, failing(folder_of(trial, name), number, struck))
            trial.see_end(name, FAILED)
            assert struck.exists()
            trial.realm.spawn(name)
            trial.wait_epoch()
