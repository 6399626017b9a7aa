"""A replica whose disk fills up: it stops writing while there is room, answers lookups whatever happens,
loses nothing it promised, and goes on when there is room again.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from realm_processes.crashes import Trial, see_register, under_load
from realm_processes.people import KEYS, connect
from realm_processes.small_disk import Counted, SmallDisk, SmallDiskRealm

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import REPLICA
from kv.free_space import BALLAST
from verifier.crypto.signatures import SigningKey
from verifier.errors import Reason, Refused

VERIFIERS = ("v1",)
PEOPLE = 2
FAILED = 1  # the exit code of a process whose disk is full
ENOUGH_TO_STOP = 40_000  # bytes: an epoch or a few under load


class CountedRealm(SmallDiskRealm):
    """The one for machines where nothing may be mounted."""

    def new_disk(self) -> SmallDisk:
        return Counted(self.replica)


@contextmanager
def on_small_disk(
    folder: Path, rng: random.Random, kind: type[SmallDiskRealm]
) -> Iterator[tuple[Trial, SmallDiskRealm, SmallDisk]]:
    disk: SmallDisk | None = None
    try:
        with under_load(folder, VERIFIERS, PEOPLE, rng, kind) as trial:
            realm = trial.realm
            assert isinstance(realm, SmallDiskRealm)
            disk = realm.disk
            assert disk is not None
            yield trial, realm, disk
            disk.give_back()
    finally:
        if disk is not None:
            disk.close()


def only_reads(realm: SmallDiskRealm) -> bool:
    return "its disk has" in str(realm.standing().get("reason", ""))


def check_that_it_only_reads(realm: SmallDiskRealm) -> None:
    """Lookups are answered, updates refused with the reason."""
    client, transport = connect(realm.realm())
    name = f"nobody@{realm.realm().domains[0]}"
    with transport:
        client.lookup(name)
        with pytest.raises(Refused) as caught:
            client.register(name, KEYS, [SigningKey(bytes(32))])
    assert caught.value.reason is Reason.NOT_READY
    assert "this replica only reads" in caught.value.what


def go_on(trial: Trial, disk: SmallDisk) -> None:
    """With room again the realm writes, and keeps a ballast."""
    disk.give_back()
    trial.wait_epoch()
    ballast = trial.realm.replica / "data" / BALLAST
    wait_until(ballast.exists, "a new ballast")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SmallDiskRealm, CountedRealm])
def test_a_disk_that_fills_up_stops_updates_and_nothing_else(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int], kind: type[SmallDiskRealm]
) -> None:
    with on_small_disk(tmp_path, rng, kind) as (trial, realm, disk):
        for _ in range(count(1)):
            disk.leave(rng.randrange(1_000_000, realm.storage.min_free_bytes - 100_000))
            wait_until(lambda: only_reads(realm), "the replica to stop writing")
            check_that_it_only_reads(realm)
            before = realm.standing()
            trial.load.pause(1.5 * realm.epochs_plan.max_interval_ms / 1000)
            assert realm.standing()["epoch"] == before["epoch"], "an epoch was proposed"
            go_on(trial, disk)


@pytest.mark.slow
def test_a_full_disk_ends_a_replica_at_most_and_it_starts_again(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with on_small_disk(tmp_path, rng, SmallDiskRealm) as (trial, realm, disk):
        for _ in range(count(3)):
            level = rng.randrange(ENOUGH_TO_STOP)
            print(f"{level} bytes are left")
            disk.leave(level)
            process = realm.processes.running[REPLICA]
            ends = wait_ended_or_reading(trial, realm)
            if ends:
                trial.see_end(REPLICA, FAILED)
                assert "Make room on the disk" in realm.log_of(REPLICA)
            else:
                process.kill()
                process.wait()
                del realm.processes.running[REPLICA]
                see_register(realm, REPLICA, trial.seen)
            disk.leave(0)
            realm.spawn(REPLICA)
            wait_until(lambda: only_reads(realm), "a start on a full disk", realm.processes.running[REPLICA])
            check_that_it_only_reads(realm)
            go_on(trial, disk)


def wait_ended_or_reading(trial: Trial, realm: SmallDiskRealm) -> bool:
    """Whether it ended; otherwise it stopped writing in time."""
    process = realm.processes.running[REPLICA]
    wait_until(lambda: process.poll() is not None or only_reads(realm), "the disk to be full")
    return process.poll() is not None
