"""What operators do to a running cluster, done under load: nobody is told anything wrong, nobody signs twice,
and who had seen the realm before believes it afterwards.

How long people waited for the next acknowledged update is printed.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from realm_processes.changes import (
    renew_certificates,
    replace_dead,
    replace_replica,
    roll,
    roll_key,
    roll_verifier_key,
)
from realm_processes.cluster import ClusterProcesses, cluster_under_load
from realm_processes.crashes import Trial, see_register
from realm_processes.people import all_of, connect

Drill = Callable[[Trial, ClusterProcesses, str], None]


def rolling_restart(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """As for an upgrade."""
    roll(trial, realm)


def back_up(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """While it runs."""
    file = realm.folder / f"{name}-{trial.seen.newest}.backup"
    realm.ok("keyserver", "backup", "create", "-c", realm.config_of(name), file)
    realm.ok("keyserver", "backup", "verify", file)


def new_certificates(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """The links made anew show them: they are severed."""
    renew_certificates(realm, name)
    realm.links.sever()


def replace_lost_disk(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """A replica without its data never comes back under its name."""
    realm.kill(name)
    see_register(realm, name, trial.seen)
    shutil.rmtree(realm.folder_of(name) / "data")
    replace_dead(trial, realm, name)


DRILLS: tuple[Drill, ...] = (rolling_restart, back_up, new_certificates, roll_key)
VERIFIERS = ("v1", "v2", "v3")  # two of which go on while one restarts
REPLACEMENTS: tuple[Drill, ...] = (replace_replica, replace_lost_disk)


def exercise(trial: Trial, realm: ClusterProcesses, drill: Drill, name: str) -> None:
    """One drill, and how long people waited meanwhile."""
    print(f"{drill.__name__} {name}")
    trial.load.longest_wait_s = 0.0
    drill(trial, realm, name)
    trial.wait_epoch()
    print(f"nobody waited longer than {trial.load.longest_wait_s:.2f} s")


@pytest.mark.slow
def test_a_cluster_is_operated_under_load(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with cluster_under_load(tmp_path, rng, verifiers=VERIFIERS) as (trial, realm):
        for _ in range(count(1)):
            drills = (*DRILLS, rng.choice(REPLACEMENTS))
            for drill in rng.sample(drills, len(drills)):
                exercise(trial, realm, drill, rng.choice(realm.replicas))


@pytest.mark.slow
def test_verifiers_get_new_keys_under_load(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    """People go on with the realm.json of before; with the new one the new key can be asked for."""
    with cluster_under_load(tmp_path, rng, verifiers=VERIFIERS) as (trial, realm):
        for _ in range(count(1)):
            name = rng.choice(realm.verifiers)
            exercise(trial, realm, roll_verifier_key, name)
            known = realm.realm()
            client, transport = connect(known, quorum=all_of(realm.key_id_of(name)))
            with transport:
                client.lookup(f"nobody@{known.domains[0]}")
