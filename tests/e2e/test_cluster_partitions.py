"""Three replicas whose links are cut, or that are frozen, under load: a majority goes on, a minority says it
cannot and goes on answering lookups, and afterwards everybody takes part again.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from realm_processes.cluster import ClusterProcesses, cluster_under_load
from realm_processes.crashes import Trial, see_register
from realm_processes.people import KEYS, connect

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import HOST
from verifier.client.client import Client
from verifier.client.outcome import Unreachable
from verifier.crypto.signatures import SigningKey
from verifier.errors import Refused
from verifier.lookup import Absent

HEAL_S = 60.0  # enough on any machine; how long it takes is printed
Fault = Callable[[ClusterProcesses, str, str], None]  # realm, leader, somebody else


def follower_alone(realm: ClusterProcesses, leader: str, other: str) -> None:
    realm.links.isolate(other)


def leader_alone(realm: ClusterProcesses, leader: str, other: str) -> None:
    realm.links.isolate(leader)


def leader_mute(realm: ClusterProcesses, leader: str, other: str) -> None:
    """Everything reaches it, nothing of it arrives."""
    realm.links.cut([(leader, name) for name in realm.others(leader)])


def leader_deaf(realm: ClusterProcesses, leader: str, other: str) -> None:
    """It goes on sending heartbeats that nobody's answers reach."""
    realm.links.cut([(name, leader) for name in realm.others(leader)])


def connections_lost(realm: ClusterProcesses, leader: str, other: str) -> None:
    realm.links.sever()


def one_link_cut(realm: ClusterProcesses, leader: str, other: str) -> None:
    """Each of the two still hears from the third, and the one that follows must not unseat the leader."""
    realm.links.cut([(leader, other), (other, leader)])


def leader_frozen(realm: ClusterProcesses, leader: str, other: str) -> None:
    realm.freeze(leader)


def follower_frozen(realm: ClusterProcesses, leader: str, other: str) -> None:
    realm.freeze(other)


FAULTS: tuple[Fault, ...] = (
    follower_alone,
    leader_alone,
    leader_mute,
    leader_deaf,
    connections_lost,
    one_link_cut,
    leader_frozen,
    follower_frozen,
)


def heal(realm: ClusterProcesses) -> None:
    for name in realm.frozen:
        realm.thaw(name)
    realm.links.heal()


def wait_signatures(trial: Trial, realm: ClusterProcesses) -> None:
    """Wait until every replica has signed an epoch newer than any that was seen signed."""
    before = trial.seen.newest
    wait_until(lambda: min(map(realm.newest_signed, realm.replicas)) > before, "a signature of every replica")


@pytest.mark.slow
def test_a_majority_goes_on_without_the_third_which_takes_part_again_afterwards(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        for _ in range(count(1)):
            for fault in rng.sample(FAULTS, len(FAULTS)):
                leader = realm.wait_leader()
                print(f"{leader} leads: {fault.__name__}")
                fault(realm, leader, rng.choice(realm.others(leader)))
                during = trial.load.wait_issued_from_now(HEAL_S)
                trial.wait_epoch()
                heal(realm)
                after = trial.load.wait_issued_from_now(HEAL_S)
                wait_signatures(trial, realm)
                print(f"a new epoch {during:.2f} s later, {after:.2f} s after healing")


@contextmanager
def client_of(realm: ClusterProcesses, name: str) -> Iterator[Client]:
    """A client that knows no other replica."""
    address = f"{HOST}:{realm.ports_of[name].public}"
    client, transport = connect(replace(realm.realm(), addresses=(address,)), timeout_s=20)
    with transport:
        yield client


def says_it_is_alone(realm: ClusterProcesses, name: str) -> bool:
    said = realm.standing(name)
    return said.get("ready") is False and "majority" in said["reason"]


@pytest.mark.slow
def test_a_replica_without_a_majority_says_so_and_answers_lookups_with_their_age(
    tmp_path: Path, rng: random.Random
) -> None:
    with cluster_under_load(tmp_path, rng) as (trial, realm):
        alone = rng.choice(realm.replicas)
        for name in realm.others(alone):
            realm.kill(name)
            see_register(realm, name, trial.seen)
        wait_until(lambda: says_it_is_alone(realm, alone), f"{alone} to say that it has no majority")
        newest = realm.standing(alone)["head"]
        name = f"nobody@{realm.realm().domains[0]}"
        with client_of(realm, alone) as client:
            result = client.lookup(name)
            assert isinstance(result, Absent)
            assert result.head.head.issue_time_ms <= newest["issue_time_ms"]
            with pytest.raises((Refused, Unreachable)):
                client.register(name, KEYS, [SigningKey(bytes(32))])
        assert realm.standing(alone)["head"]["epoch"] == newest["epoch"]
        for name in realm.others(alone):
            realm.spawn(name)
        print(f"a new ratified epoch {trial.load.wait_issued_from_now(HEAL_S):.2f} s after two came back")
        wait_signatures(trial, realm)
