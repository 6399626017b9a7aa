"""Three replicas over three members of etcd, under load: `replication = "etcd"` is all that is different."""

import random
import shutil
from pathlib import Path

import pytest
from etcd_members import EtcdMembers
from realm_processes.cluster import ClusterProcesses, cluster_under_load
from realm_processes.crashes import see_register

LEAD_S = 60.0  # a lease has to end, on any machine

TABLE = """
[etcd]
endpoints = [{endpoints}]
certificate = "tls/etcd.pem"
key = "tls/etcd.key"
authority = "tls/etcd-ca.pem"
"""


class EtcdProcesses(ClusterProcesses):
    """Replicas whose log is in etcd; each reaches the member of its own number first."""

    etcd: EtcdMembers

    def set_up(self) -> None:
        super().set_up()
        self.etcd = EtcdMembers(self.folder / "etcd", 3)
        self.etcd.start()
        for name in self.replicas:
            self._use_etcd(name)

    def _use_etcd(self, name: str) -> None:
        config, tls = self.config_of(name), self.folder_of(name) / "tls"
        text = config.read_text()
        assert text.count('replication = "raft"') == 1
        endpoints = ", ".join(f'"{endpoint}"' for endpoint in self.etcd.endpoints(name.replace("r", "e")))
        config.write_text(
            text.replace('replication = "raft"', 'replication = "etcd"') + TABLE.format(endpoints=endpoints)
        )
        for file, place in zip(
            (self.etcd.tls.certificate, self.etcd.tls.key, self.etcd.tls.authority),
            ("etcd.pem", "etcd.key", "etcd-ca.pem"),
            strict=True,
        ):
            shutil.copyfile(file, tls / place)
        (tls / "etcd.key").chmod(0o600)

    def close(self) -> None:
        super().close()
        self.etcd.stop_all()


@pytest.mark.slow
def test_a_realm_over_etcd_survives_its_leader_and_a_member_of_etcd(
    tmp_path: Path, rng: random.Random
) -> None:
    with cluster_under_load(tmp_path, rng, kind=EtcdProcesses) as (trial, realm):
        assert isinstance(realm, EtcdProcesses)
        trial.wait_epoch()
        leader = realm.wait_leader()
        realm.kill(leader)
        print(f"next ratified update after {trial.load.wait_issued_from_now(LEAD_S):.2f} s: a replica killed")
        assert realm.wait_leader() != leader
        see_register(realm, leader, trial.seen)
        realm.spawn(leader)
        realm.wait_ready(leader)
        member = rng.choice(realm.etcd.names)
        realm.etcd.kill(member)
        print(f"next ratified update after {trial.load.wait_issued_from_now(LEAD_S):.2f} s: an etcd killed")
        realm.etcd.start(member)
        trial.wait_epoch()
