"""A rolling upgrade to a version with another rules level, under load: nobody waits for it, the level begins
when all replicas know it, and an older version stops there with a clear word.
"""

import random
from pathlib import Path

import pytest
from realm_processes.changes import restart, restart_verifier
from realm_processes.cluster import cluster_under_load
from realm_processes.crashes import Trial
from realm_processes.people import connect
from realm_processes.upgrades import UpgradedCluster

from keyserver.demo.processes import wait_until
from verifier import limits

SIGNATURES = 3  # of a replica in the log after its start: what it had to announce came before


def change_version(trial: Trial, realm: UpgradedCluster, name: str, *, newer: bool) -> None:
    """Restart a replica in the other version, and wait until all that it owes at its start is in the log."""
    realm.newer = realm.newer | {name} if newer else realm.newer - {name}
    restart(trial, realm, name)
    key, witness = realm.key_id_of(name).hex(), realm.others(name)[0]
    before = realm.log_of(witness).count(key)
    wait_until(lambda: realm.log_of(witness).count(key) >= before + SIGNATURES, f"{name} to take part")


def level(realm: UpgradedCluster) -> int:
    """Of the newest head that people believe."""
    known = realm.realm()
    client, transport = connect(known)
    with transport:
        return client.lookup(f"nobody@{known.domains[0]}").head.head.rules


@pytest.mark.slow
def test_a_realm_moves_to_the_next_rules_level_once_all_replicas_know_it(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RULES", 2)  # people and verifiers are upgraded before the last replica is
    with cluster_under_load(tmp_path, rng, kind=UpgradedCluster) as (trial, realm):
        assert isinstance(realm, UpgradedCluster)
        realm.newer |= {"v1"}
        restart_verifier(trial, realm, "v1")
        regretted, *others = rng.sample(realm.replicas, len(realm.replicas))
        change_version(trial, realm, regretted, newer=True)
        change_version(trial, realm, regretted, newer=False)  # it has announced the level by then
        trial.load.longest_wait_s = 0.0
        change_version(trial, realm, others[0], newer=True)
        assert level(realm) == 1
        realm.newer |= {others[1]}
        restart(trial, realm, others[1])
        trial.see_end(regretted, 1)
        assert "rules level 2, this version knows up to 1: upgrade" in realm.log_of(regretted)
        trial.wait_epoch()
        assert level(realm) == 2
        realm.newer |= {regretted}
        realm.spawn(regretted)
        realm.wait_ready(regretted)
        trial.wait_epoch()
        print(f"nobody waited longer than {trial.load.longest_wait_s:.2f} s")
