"""One replica of three with a bad disk: full, failing or losing power. The others go on, it ends rather than
promise what it cannot keep, and with a good disk it takes part again.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from preload import ForgetfulDisk, failing
from realm_processes.cluster import ClusterProcesses, cluster_under_load
from realm_processes.crashes import see_register
from realm_processes.small_disk import SmallDiskRealm

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import REPLICA

FAILED = 1  # the exit code of a process whose disk failed
SYNCS = 300  # of some seconds under load; the first of them are of the start
MOMENT_S = 1.0


class SmallDiskCluster(SmallDiskRealm, ClusterProcesses):
    """Where the first replica's disk is small."""

    def close(self) -> None:
        super().close()
        if self.disk is not None:
            self.disk.close()


@pytest.mark.slow
def test_a_replica_whose_disk_fails_to_sync_ends_and_the_others_go_on(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        for turn in range(count(3)):
            name = rng.choice(realm.replicas)
            number = rng.randrange(1, rng.choice((20, SYNCS)))
            struck = tmp_path / f"struck-{turn}"
            print(f"sync {number} of {name} fails")
            realm.kill(name)
            realm.spawn(name, failing(realm.folder_of(name), number, struck))
            trial.see_end(name, FAILED)
            assert struck.exists()
            trial.wait_epoch()
            realm.spawn(name)
            realm.wait_ready(name)


@pytest.mark.slow
def test_what_replicas_had_not_synced_when_the_power_failed_was_promised_to_nobody(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    """One of them, then all at once."""
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        for turn in range(count(1)):
            for names in ((rng.choice(realm.replicas),), realm.replicas):
                disks = {}
                for name in names:
                    kept = tmp_path / f"kept-{turn}-{len(names)}-{name}"
                    kept.mkdir()
                    realm.kill(name)
                    disks[name] = ForgetfulDisk(realm.folder_of(name), kept)
                for name, disk in disks.items():
                    realm.spawn(name, disk.environment())
                trial.wait_epoch()
                trial.load.pause(rng.uniform(0, MOMENT_S))
                for name in names:
                    realm.kill(name)
                for name, disk in disks.items():
                    print(f"{name} {disk.lose_power(rng)}")
                    see_register(realm, name, trial.seen)
                    realm.spawn(name)
                trial.wait_epoch()


@pytest.mark.slow
def test_a_full_disk_of_one_replica_stops_nobody_else(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with cluster_under_load(tmp_path, rng, kind=SmallDiskCluster) as (trial, realm):
        assert isinstance(realm, SmallDiskCluster)
        assert realm.disk is not None
        for _ in range(count(1)):
            process = realm.processes.running[REPLICA]
            realm.disk.leave(0)
            wait_until(lambda: process.poll() is not None, "the disk to be full")  # noqa: B023 - now
            trial.see_end(REPLICA, FAILED)
            assert "Make room on the disk" in realm.log_of(REPLICA)
            trial.load.wait_issued_from_now()
            realm.disk.give_back()
            realm.spawn(REPLICA)
            realm.wait_ready(REPLICA)
