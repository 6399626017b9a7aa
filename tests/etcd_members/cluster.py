"""A cluster of logs over etcd on this machine: each replica has a member of etcd that lives and dies with it.

Between replicas and etcd lie proxies that can be cut. The links among etcd's members are etcd's own affair:
who is cut off is cut off from all of etcd.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import product
from pathlib import Path

import trio
from realm_processes.links import Link, Links

from etcd_members import HOST, EtcdMembers
from replication.etcd.log import EtcdLog, open_etcd_log
from replication.etcd.view import Timing
from replication.interface import ReplicatedLog
from replication.testing import public_half

SERVICE = "client"
ETCD_MEMBERS_MAX = 3  # the processes of a machine with two processors
QUICK_ELECTIONS = ("--heartbeat-interval=50", "--election-timeout=500")
# Everything happens often, so that a short test sees it.
TIMING = Timing(
    tick_s=0.2, lease_s=2, report_s=0.1, trim_s=0.5, trim_entries=50, survey_s=2, send_s=5, retry_s=0.05
)


class EtcdCluster:
    """See clusters.Cluster."""

    can_cut = True

    def __init__(self, folder: Path, names: tuple[str, ...], etcd: EtcdMembers, links: Links) -> None:
        self.names = names
        self._folder = folder
        self._etcd = etcd
        self._links = links
        self._running: dict[str, EtcdLog] = {}

    async def start(self, name: str, lo: int = 1) -> ReplicatedLog:
        if self._own(name) in self._etcd.names:
            await trio.to_thread.run_sync(self._etcd.start, self._own(name))
        log = self._running[name] = self.open(name)
        await log.start(lo)
        return log

    def open(self, name: str) -> EtcdLog:
        """Open a replica's log without starting it; whoever calls stops it."""
        nearest_first = sorted(self._etcd.names, key=lambda other: other != self._own(name))
        return open_etcd_log(
            self._folder / name,
            public_half,
            member=name,
            replicas=self.names,
            endpoints=[
                f"https://{HOST}:{self._links.ports[Link(name, other, SERVICE)]}" for other in nearest_first
            ],
            tls=self._etcd.tls,
            prefix="/cluster/",
            timing=TIMING,
        )

    async def stop(self, name: str) -> None:
        await self._running.pop(name).stop()
        await trio.to_thread.run_sync(self._etcd.kill, self._own(name))

    async def kill(self, name: str) -> None:
        log = self._running.pop(name)
        log._keeper._held = False  # who is killed gives nothing up
        await trio.to_thread.run_sync(self._etcd.kill, self._own(name))
        await log.stop()

    async def cut(self, *groups: Collection[str]) -> None:
        await self.heal()
        together = next((group for group in groups if 2 * len(group) > len(self.names)), ())
        alone = [name for name in self.names if name not in together]
        pairs = [
            pair
            for name, other in product(alone, self._etcd.names)
            for pair in ((name, other), (other, name))
        ]
        await trio.to_thread.run_sync(self._links.cut, pairs)

    async def heal(self) -> None:
        await trio.to_thread.run_sync(self._links.heal)

    async def stop_all(self) -> None:
        for name in list(self._running):
            await self.stop(name)
        await trio.to_thread.run_sync(self._etcd.stop_all)

    def _own(self, name: str) -> str:
        return name.replace("r", "e")


def etcd_clusters(folder: Path) -> Callable[[int], AbstractAsyncContextManager[EtcdCluster]]:
    """An OpenCluster below a folder."""
    opened = 0

    @asynccontextmanager
    async def open_cluster(members: int) -> AsyncIterator[EtcdCluster]:
        nonlocal opened
        opened += 1
        place = folder / f"cluster-{opened}"
        names = tuple(f"r{number}" for number in range(1, members + 1))
        etcd = EtcdMembers(place, min(members, ETCD_MEMBERS_MAX), *QUICK_ELECTIONS)
        links = Links(
            {**{name: {} for name in names}, **{name: {SERVICE: port} for name, port in etcd.ports.items()}}
        )
        links.start()
        cluster = EtcdCluster(place, names, etcd, links)
        try:
            yield cluster
        finally:
            with trio.CancelScope(shield=True):
                await cluster.heal()
                await cluster.stop_all()
                await trio.to_thread.run_sync(links.close)

    return open_cluster
