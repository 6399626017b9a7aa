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

VERIFIERS = ("v1",)
PEOPLE = 2
MOMENT_S = 0.3
SYNCS_AT_START = 12
SYNCS = 200  # of some seconds under load
SOON = 60  # a second or two
FAILED = 1  # the exit code of a process whose disk failed


def disks(folder: Path, root: Path) -> Iterator[ForgetfulDisk]:
    """The same folder, with a new memory of what is synced for each life of a process."""
    number = 0
    while True:
        number += 1
        kept = folder / f"kept-{number}"
        kept.mkdir()
        yield ForgetfulDisk(root, kept)


def lose_power(trial: Trial, disk: ForgetfulDisk, rng: random.Random) -> None:
    print(disk.lose_power(rng))
    see_register(trial.realm, REPLICA, trial.seen)


@pytest.mark.slow
def test_what_was_not_synced_when_the_power_failed_was_promised_to_nobody(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with under_load(tmp_path, VERIFIERS, PEOPLE, rng) as trial:
        realm = trial.realm
        disk = disks(tmp_path, realm.replica)
        realm.kill(REPLICA)
        for _ in range(count(8)):
            at_random = next(disk)
            realm.spawn(REPLICA, at_random.environment())
            trial.wait_epoch()
            trial.load.pause(rng.uniform(0, MOMENT_S))
            realm.kill(REPLICA)
            lose_power(trial, at_random, rng)
            in_a_sync = next(disk)
            number = rng.randrange(1, rng.choice((SYNCS_AT_START, SYNCS // 2)))
            print(f"killed in sync {number}")
            realm.spawn(REPLICA, in_a_sync.environment(kill_at=number))
            realm.wait_end(REPLICA)
            lose_power(trial, in_a_sync, rng)
        realm.spawn(REPLICA)


@pytest.mark.slow
def test_a_replica_whose_disk_fails_to_sync_halts_and_starts_again(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with under_load(tmp_path, VERIFIERS, PEOPLE, rng) as trial:
        realm = trial.realm
        for number in rng.sample(range(1, SYNCS + 1 if count(10) >= SYNCS else SOON), min(count(10), SYNCS)):
            print(f"sync {number} fails")
            struck = tmp_path / f"struck-{number}"
            realm.kill(REPLICA)
            realm.spawn(REPLICA, failing(realm.replica, number, struck))
            trial.see_end(REPLICA, FAILED)
            assert struck.exists()
            realm.spawn(REPLICA)
            trial.wait_epoch()
