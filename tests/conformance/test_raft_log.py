"""The raft engine passes what every engine passes, and what every cluster passes."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from clusters import stopping
from clusters.checks import CLUSTER_CHECKS, PARTITION_CHECKS, Check, agree, payloads, say, say_all
from clusters.raft import PATIENT, raft_clusters

import replication.raft.log as log_module
from replication.testing import CHECKS, HANGS_AFTER_S, OpenLog


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("members", [1, 3])
async def test_a_raft_log_conforms(
    tmp_path: Path,
    members: int,
    check: Callable[[OpenLog], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_module, "LEADERLESS_S", HANGS_AFTER_S)  # an election may take long, once
    async with raft_clusters(tmp_path, PATIENT)(members) as cluster:
        for other in cluster.names[1:]:
            await cluster.start(other)
        await check(stopping(lambda: cluster.open("r1")))


@pytest.mark.parametrize("check", [*CLUSTER_CHECKS, *PARTITION_CHECKS], ids=lambda check: check.__name__)
async def test_raft_clusters_conform(tmp_path: Path, rng: random.Random, check: Check) -> None:
    await check(raft_clusters(tmp_path), rng)


async def test_a_member_is_added_and_another_removed_by_rolling_restart(tmp_path: Path) -> None:
    """One change at a time: the majorities of what was and of what is have a member in common."""
    async with raft_clusters(tmp_path)(4) as cluster:
        three, four, last = ("r1", "r2", "r3"), cluster.names, ("r2", "r3", "r4")
        cluster.configured = dict.fromkeys(four, three)
        logs = {name: await cluster.start(name) for name in three}
        await say_all(logs["r1"], payloads("three", 3))

        async def restart(name: str, members: tuple[str, ...]) -> None:
            cluster.configured[name] = members
            if name in logs:
                await cluster.stop(name)
            logs[name] = await cluster.start(name)
            await say(logs[name], b"with " + name.encode())

        for name in (*three, "r4"):
            await restart(name, four)
        await say_all(logs["r4"], payloads("r4", 3))
        await agree(logs, b"all four")
        await cluster.stop("r1")
        del logs["r1"]
        for name in last:
            await restart(name, last)
        agreed = list(dict.fromkeys(await agree(logs, b"end")))
        assert payloads("three", 3) == agreed[:3]
        assert set(payloads("r4", 3)) < set(agreed)
