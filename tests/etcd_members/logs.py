"""Replicas' logs over running members, each with a directory of its own, all below one prefix."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from etcd_members import EtcdMembers
from keyserver.demo.processes import wait_until
from replication.etcd.client import EtcdClient
from replication.etcd.keyspace import Base, Keyspace, every
from replication.etcd.log import EtcdLog, open_etcd_log
from replication.etcd.view import Timing
from replication.testing import public_half

# What is done again and again is done often; what is waited for may take its time on a busy machine.
QUICK = Timing(
    tick_s=0.1, lease_s=20, report_s=0.05, trim_s=0.1, trim_entries=20, survey_s=0.3, send_s=60, retry_s=0.05
)
NEVER_TRIM = replace(QUICK, trim_s=3600, trim_entries=10**9)


class Place:
    """Where the logs of some replicas lie, on the disk and in etcd."""

    def __init__(self, members: EtcdMembers, folder: Path, replicas: Sequence[str] = ("r1",)) -> None:
        self.members = members
        self.folder = folder
        self.replicas = tuple(replicas)
        self.prefix = f"/test/{folder.name}/"
        self.keys = Keyspace(self.prefix)

    def open(self, name: str = "r1", timing: Timing = QUICK, **options: int) -> EtcdLog:
        """Open a replica's log; whoever calls stops it."""
        return open_etcd_log(
            self.folder / name,
            public_half,
            member=name,
            replicas=self.replicas,
            endpoints=self.members.endpoints(),
            tls=self.members.tls,
            prefix=self.prefix,
            timing=timing,
            **options,
        )

    @asynccontextmanager
    async def running(
        self, name: str = "r1", lo: int = 1, timing: Timing = QUICK, **options: int
    ) -> AsyncIterator[EtcdLog]:
        """A started log."""
        log = self.open(name, timing, **options)
        try:
            await log.start(lo)
            yield log
        finally:
            await log.stop()

    def base(self, client: EtcdClient) -> Base:
        """The base row as it is in etcd."""
        (row,) = client.range(every(self.keys.base)).kvs
        return Base.decode(row.value)

    def entries(self, client: EtcdClient) -> list[bytes]:
        """The values of all entries in etcd."""
        return [row.value for row in client.range(every(self.keys.entries)).kvs]


async def until(true: Callable[[], bool]) -> None:
    """Ask again and again, in a thread, until something is true. Raises DemoFailed in the end."""
    await trio.to_thread.run_sync(wait_until, true, "what the test waits for")
