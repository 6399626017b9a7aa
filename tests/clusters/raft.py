"""A cluster of raft logs on loopback: mutual TLS, LevelDB, and a proxy on every link that can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from realm_processes.links import Link, Links

from clusters.certificates import PeersAuthority
from keyserver.demo.processes import free_port
from replication.interface import ReplicatedLog
from replication.raft.events import Timing
from replication.raft.log import RaftLog, open_raft_log
from replication.testing import public_half

HOST = "127.0.0.1"
SERVICE = "replication"
# Short, so that a test with many elections is. On a busy machine leaders are missed, and proposals lost.
TIMING = Timing(election_min_s=0.3, election_max_s=0.6, heartbeat_s=0.05, quorum_s=1.0, settle_s=3.0)
# For tests in which no leader is to be lost: all members are one process, which may stand still that long.
PATIENT = Timing(election_min_s=1.5, election_max_s=2.5, heartbeat_s=0.05, quorum_s=60.0, settle_s=60.0)


class RaftCluster:
    """See clusters.Cluster."""

    can_cut = True

    def __init__(self, folder: Path, ports: dict[str, int], links: Links, timing: Timing) -> None:
        self.names = tuple(ports)
        self._timing = timing
        self.configured = dict.fromkeys(
            ports, self.names
        )  # whom each member takes for members when it starts
        self._ports = ports
        self._links = links
        authority = PeersAuthority(folder / "peers")
        self._tls = {name: authority.member(name) for name in ports}
        self._folder = folder
        self.running: dict[str, RaftLog] = {}

    async def start(self, name: str, lo: int = 1) -> ReplicatedLog:
        log = self.running[name] = self.open(name)
        await log.start(lo)
        return log

    def open(self, name: str) -> RaftLog:
        """Open a member's log without starting it; whoever calls stops it."""
        return open_raft_log(
            self._folder / name,
            public_half,
            member=name,
            members={other: f"{HOST}:{self._port_for(name, other)}" for other in self.configured[name]},
            listen=f"{HOST}:{self._ports[name]}",
            tls=self._tls[name],
            timing=self._timing,
        )

    async def stop(self, name: str) -> None:
        await self.running.pop(name).stop()

    async def kill(self, name: str) -> None:
        """Stopping says nothing to the others, and everything that counts is synced: that is all of it."""
        await self.stop(name)

    async def cut(self, *groups: Collection[str]) -> None:
        await self.heal()
        await trio.to_thread.run_sync(partial(self._links.part, *groups))

    async def heal(self) -> None:
        await trio.to_thread.run_sync(self._links.heal)

    async def stop_all(self) -> None:
        for name in list(self.running):
            await self.stop(name)

    def _port_for(self, name: str, other: str) -> int:
        return self._ports[name] if other == name else self._links.ports[Link(name, other, SERVICE)]


def raft_clusters(
    folder: Path, timing: Timing = TIMING
) -> Callable[[int], AbstractAsyncContextManager[RaftCluster]]:
    """An OpenCluster below a folder."""
    opened = 0

    @asynccontextmanager
    async def open_cluster(members: int) -> AsyncIterator[RaftCluster]:
        nonlocal opened
        opened += 1
        ports = {f"r{number}": free_port() for number in range(1, members + 1)}
        links = Links({name: {SERVICE: port} for name, port in ports.items()})
        if members > 1:
            links.start()
        cluster = RaftCluster(folder / f"cluster-{opened}", ports, links, timing)
        try:
            yield cluster
        finally:
            with trio.CancelScope(shield=True):
                await cluster.stop_all()
            if members > 1:
                await trio.to_thread.run_sync(links.close)

    return open_cluster
