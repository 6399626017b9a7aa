"""The runbooks for clusters, executed: one operator on each replica's host."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from realm_processes.cluster import THREE, ClusterProcesses
from realm_processes.people import KEYS, connect
from realm_processes.realm import QUICK_RETRIES
from runbooks import Operator

from keyserver.demo.processes import wait_until
from verifier.crypto.signatures import SigningKey

UNIT = "e2eks-keyserver"


class OperatedCluster(ClusterProcesses):
    """Whose replicas are units of operators, by name."""

    operators: dict[str, Operator]

    def begin(self) -> None:
        self.set_up()
        self.operators = {}
        for name in self.replicas:
            config = str(self.config_of(name))
            operator = Operator(self.folder / f"host-of-{name}", {"KEYSERVER": config})
            operator.unit(UNIT, "keyserver", "serve", "-c", config, "--leave-diagnostic")
            operator.run(f"systemctl start {UNIT}")
            self.operators[name] = operator
        with (self.verifier("v1") / "verifier.toml").open("a") as file:
            file.write(QUICK_RETRIES)
        self.start_verifier("v1")
        wait_until(self.is_ratified, "the first ratified epoch")

    def register_somebody(self, name: str) -> None:
        client, transport = connect(self.realm())
        with transport:
            client.register(f"{name}@{self.realm().domains[0]}", KEYS, [SigningKey(name.encode().ljust(32))])


@contextmanager
def operated(folder: Path) -> Iterator[OperatedCluster]:
    realm = OperatedCluster(folder / "realm", ("v1",), THREE)
    try:
        realm.begin()
        yield realm
    finally:
        for operator in realm.operators.values():
            operator.close()
        realm.close()


@pytest.mark.slow
def test_no_majority(tmp_path: Path, rng: random.Random) -> None:
    with operated(tmp_path) as realm:
        realm.register_somebody("before")
        left = rng.choice(realm.replicas)
        for name in realm.others(left):
            realm.operators[name].run(f"systemctl stop {UNIT}")
        wait_until(
            lambda: "no majority" in realm.standing(left).get("reason", ""), f"{left} to say that it is alone"
        )
        realm.operators[left].follow("no-majority", "Look")
        realm.operators[rng.choice(realm.others(left))].follow("no-majority", "Bring a majority back")
        wait_until(lambda: realm.replica_ready(left), "the other one to see it")
        realm.register_somebody("after")
