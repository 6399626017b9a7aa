"""A realm of several replicas whose links a test may cut and whose processes it may kill and freeze."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyserver.demo.processes import wait_until
from realm_processes.crashes import CrashingRealm, Trial, under_load
from realm_processes.links import Links
from verifier.signonce import read_rows

THREE = ("r1", "r2", "r3")
SERVICES = ("replication", "peers")  # where replicas reach each other; names of ports and of settings


class ClusterProcesses(CrashingRealm):
    """Every replica reaches every other through `links`, which are there once it is set up."""

    links: Links

    def set_up(self) -> None:
        super().set_up()
        ports = {
            name: {service: getattr(ports, service) for service in SERVICES}
            for name, ports in self.ports_of.items()
        }
        self.links = Links(ports)
        for link, port in self.links.ports.items():
            dial(self.config_of(link.dialer), link.target, link.service, port)
        self.links.start()

    def stop_all(self) -> None:
        for name in self.frozen:
            self.thaw(name)
        super().stop_all()

    def close(self) -> None:
        super().close()
        self.links.close()

    # What happens to processes

    frozen: frozenset[str] = frozenset()

    def freeze(self, name: str) -> None:
        """SIGSTOP: the process keeps its connections and answers nothing."""
        self.processes.running[name].send_signal(signal.SIGSTOP)
        self.frozen |= {name}

    def thaw(self, name: str) -> None:
        self.processes.running[name].send_signal(signal.SIGCONT)
        self.frozen -= {name}

    # What they say

    def others(self, *names: str) -> tuple[str, ...]:
        """The replicas but these."""
        return tuple(name for name in self.replicas if name not in names)

    def wait_agreement(self) -> None:
        """Wait until all replicas have applied the same log to the same state."""
        wait_until(lambda: len(set(map(self._state, self.replicas))) == 1, "the replicas agree")

    def newest_signed(self, name: str) -> int:
        """The newest epoch in a replica's sign-once register, which it may have open."""
        _, rows = read_rows(self.register_of(name), key_id=self.key_id_of(name))
        return max(rows, default=0)

    def check_at_rest(self) -> None:
        super().check_at_rest()
        self.wait_agreement()

    def _state(self, name: str) -> tuple[object, object]:
        said = self.standing(name)
        return said.get("applied_index", name), said.get("state_digest")


@contextmanager
def cluster_under_load(
    folder: Path,
    rng: random.Random,
    *,
    people: int = 3,
    kind: type[ClusterProcesses] = ClusterProcesses,
    verifiers: tuple[str, ...] = ("v1",),
) -> Iterator[tuple[Trial, ClusterProcesses]]:
    """Three replicas and some verifiers under load. At the end all links are whole, all promises checked."""
    with under_load(folder, verifiers, people, rng, kind, THREE) as trial:
        realm = trial.realm
        assert isinstance(realm, ClusterProcesses)
        yield trial, realm
        realm.links.heal()


def dial(config: Path, target: str, service: str, port: int) -> None:
    """Let a replica reach a service of another at this port."""
    member = rf'(\[cluster\.members\.{target}\][^\[]*?^{service} = "[^"]*:)\d+"'
    text, changed = re.subn(member, rf'\g<1>{port}"', config.read_text(), flags=re.MULTILINE)
    assert changed == 1
    config.write_text(text)
