"""The raft engine passes what every engine passes, and what every cluster passes."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from clusters.checks import CLUSTER_CHECKS, PARTITION_CHECKS, Check
from clusters.raft import RaftCluster, raft_clusters

from replication.interface import ReplicatedLog
from replication.testing import CHECKS, OpenLog


def first_of(cluster: RaftCluster) -> OpenLog:
    @asynccontextmanager
    async def open_log() -> AsyncIterator[ReplicatedLog]:
        log = cluster.open("r1")
        try:
            yield log
        finally:
            await log.stop()

    return open_log


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("members", [1, 3])
async def test_a_raft_log_conforms(
    tmp_path: Path, members: int, check: Callable[[OpenLog], Awaitable[None]]
) -> None:
    async with raft_clusters(tmp_path)(members) as cluster:
        for other in cluster.names[1:]:
            await cluster.start(other)
        await check(first_of(cluster))


@pytest.mark.parametrize("check", [*CLUSTER_CHECKS, *PARTITION_CHECKS], ids=lambda check: check.__name__)
async def test_raft_clusters_conform(tmp_path: Path, rng: random.Random, check: Check) -> None:
    await check(raft_clusters(tmp_path), rng)
