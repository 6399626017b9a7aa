"""The etcd engine passes the checks of clusters: three members of etcd, mutual TLS, killed and cut off."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from clusters import OpenCluster
from clusters.checks import CLUSTER_CHECKS, PARTITION_CHECKS
from etcd_members.cluster import etcd_clusters

Check = Callable[[OpenCluster, random.Random], Awaitable[None]]


@pytest.mark.slow
@pytest.mark.parametrize("check", [*CLUSTER_CHECKS, *PARTITION_CHECKS], ids=lambda check: check.__name__)
async def test_cluster_conforms(tmp_path: Path, check: Check, rng: random.Random) -> None:
    await check(etcd_clusters(tmp_path), rng)
