"""What a log refuses in each part of its life, whichever engine keeps it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from clusters.raft import raft_clusters
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import Place

from kv.interface import StorageError
from replication.etcd.log import EtcdLog
from replication.local import LocalLog, open_local_log
from replication.raft.log import RaftLog
from replication.standing import Standing
from replication.testing import propose_all, public_half, take
from replication.types import LogNotRunning

Log = LocalLog | EtcdLog | RaftLog


members = running_members(1)


async def who_waits_to_erase_is_refused(log: Log) -> None:
    await propose_all(log, [b"a|alice"])
    await take(log, 1)
    refused = []

    async def ask(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(LogNotRunning):
            await call()
        refused.append(call)

    async with trio.open_nursery() as nursery, log._rewriting:
        nursery.start_soon(ask, lambda: log.rewrite_private(1, b"a|"))
        nursery.start_soon(ask, lambda: log.compact([1]))
        await trio.testing.wait_all_tasks_blocked()
        await log.stop()
    assert len(refused) == 2


async def test_who_waits_to_erase_in_a_local_log_hears_that_it_stops(tmp_path: Path) -> None:
    log = open_local_log(tmp_path / "log", public_half)
    await log.start(1)
    await who_waits_to_erase_is_refused(log)


async def test_who_waits_to_erase_in_an_etcd_log_hears_that_it_stops(
    members: EtcdMembers, tmp_path: Path
) -> None:
    async with Place(members, tmp_path).running() as log:
        await who_waits_to_erase_is_refused(log)


async def test_who_waits_to_erase_in_a_raft_log_hears_that_it_stops(tmp_path: Path) -> None:
    async with raft_clusters(tmp_path)(1) as cluster:
        log = cluster.open("r1")
        assert isinstance(log, RaftLog)
        await log.start(1)
        await who_waits_to_erase_is_refused(log)


async def test_a_failure_is_said_before_all_else_and_the_first_one_for_ever() -> None:
    standing = Standing()
    woken = trio.Event()

    async def wait() -> None:
        await standing.changed()
        woken.set()

    with pytest.raises(LogNotRunning, match="not running"):
        standing.require_running()
    standing.lo = 1
    standing.require_running()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        standing.fail(ExceptionGroup("several", [MemoryError(), OSError("later")]))
    assert woken.is_set()
    standing.fail(OSError("last"))
    standing.stopping = True
    for require in (standing.require_sound, standing.require_running):
        with pytest.raises(StorageError, match=r"^the log failed: MemoryError$"):
            require()
    assert not standing.is_running
