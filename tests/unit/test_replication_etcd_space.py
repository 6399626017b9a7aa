"""Etcd's quota is met before it stops the cluster; a cluster that it stopped goes on when there is room."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.logs import Place, until

from replication.etcd.client import EtcdError, NoSpace
from replication.etcd.keyspace import put
from replication.etcd.operators import forget_replica
from replication.etcd.space import advise
from replication.etcd.view import Surveyed
from replication.testing import HANGS_AFTER_S, propose_all, take
from replication.types import LogOverloaded

MIB = 1024 * 1024
QUOTA = 32 * MIB
GOOD = Surveyed("a:1", version="3.5.14", size=MIB, size_in_use=MIB, quota=100 * MIB)


def test_a_healthy_etcd_needs_nothing() -> None:
    advice = advise([GOOD, replace(GOOD, endpoint="b:1", version="3.6.0-rc.1")], no_space=False)
    assert (advice.warnings, advice.full, advice.defragment, advice.disarm) == ((), "", "", False)


@pytest.mark.parametrize("version", ["3.4.23", "3.5.13", "2.0", ""])
def test_versions_with_a_known_inconsistency_are_named(version: str) -> None:
    (warning,) = advise([replace(GOOD, version=version), GOOD], no_space=False).warnings
    assert "issue 14211" in warning
    assert version in warning
    assert "3.5.14" in warning


def test_a_member_that_does_not_answer_is_named() -> None:
    advice = advise([GOOD, Surveyed("b:1", problem="b:1: refused")], no_space=True)
    assert any("b:1: refused" in warning for warning in advice.warnings)
    assert not advice.disarm


@pytest.mark.parametrize(
    ("size", "in_use", "warned", "full", "defragment"),
    [
        (60, 60, False, False, False),
        (61, 61, True, False, False),
        (61, 30, True, False, True),
        (95, 81, True, True, False),
        (94, 40, True, False, True),
        (96, 40, True, True, True),
    ],
)
def test_room_is_made_or_asked_for_in_time(
    size: int, in_use: int, warned: bool, full: bool, defragment: bool
) -> None:
    member = replace(GOOD, size=size * MIB, size_in_use=in_use * MIB)
    advice = advise([GOOD, replace(member, endpoint="b:1")], no_space=False)
    assert bool(advice.warnings) == warned
    assert bool(advice.full) == full
    assert advice.defragment == ("b:1" if defragment else "")
    assert not advice.disarm
    old = advise([replace(member, version="3.4.23")], no_space=False)
    assert not old.defragment


@pytest.mark.parametrize(("size", "disarmed"), [(89, True), (91, False)])
def test_an_alarm_is_taken_back_when_all_members_have_room(size: int, disarmed: bool) -> None:
    advice = advise([GOOD, replace(GOOD, size=size * MIB)], no_space=True)
    assert advice.disarm == disarmed
    assert "NOSPACE" in advice.full


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with EtcdMembers(tmp_path / "etcd", 1, f"--quota-backend-bytes={QUOTA}").running() as etcd:
        yield Place(etcd, tmp_path, ("r1", "r2"))


async def test_a_dead_replica_fills_etcd_until_proposals_are_refused_and_no_further(place: Place) -> None:
    with place.members.client() as client:
        async with place.running("r1", quota_bytes=QUOTA) as log:
            accepted = 0
            with pytest.raises(LogOverloaded, match="MiB"), trio.fail_after(HANGS_AFTER_S):
                while True:
                    await log.propose(b"x" * (MIB // 32))
                    accepted += 1
                    if accepted % 64 == 0:  # no disk may be so fast that the quota is met between two looks
                        await until(lambda last=accepted: log._copy.last == last and log._view.arrived < MIB)
            assert accepted > 500
            assert any("MiB" in warning for warning in log.status().warnings)
            assert not client.alarms()
            forget_replica(place.members.endpoints(), place.members.tls, place.prefix, "r2")
            await until(lambda: place.entries(client) == [])
            # Its file may have come near the quota between two looks; we shrink no etcd as old as this.
            await trio.to_thread.run_sync(place.members.etcdctl, "defrag")
            await until(lambda: not log._view.full)
            await propose_all(log, [b"there is room again"])
            assert (await take(log, accepted + 1))[-1].payload == b"there is room again"


async def test_an_etcd_that_others_filled_is_read_and_recovers(place: Place) -> None:
    filling = b"/others/"
    with place.members.client() as client:
        async with place.running("r1") as log, place.running("r2"):
            await propose_all(log, [b"before"])
            with pytest.raises(NoSpace):
                fill(place, filling)
            await until(lambda: bool(log._view.full))
            assert any("NOSPACE" in warning for warning in log.status().warnings)
            with pytest.raises(LogOverloaded):
                await log.propose(b"no room")
            assert len(await take(log, 1)) == 1
            request = api.DeleteRangeRequest(key=filling, range_end=b"/others0")
            client.txn(api.TxnRequest(success=[api.RequestOp(request_delete_range=request)]))
            client.compact_history(client.range(api.RangeRequest(key=filling)).header.revision)
            await trio.to_thread.run_sync(place.members.etcdctl, "defrag")
            await until(lambda: not log._view.full)
            assert not client.alarms()
            await propose_all(log, [b"after"])
            assert len(await take(log, 2)) == 2


def fill(place: Place, prefix: bytes) -> None:
    with place.members.client() as client:
        for number in range(1000):
            try:
                client.txn(api.TxnRequest(success=[put(b"%b%d" % (prefix, number), b"y" * MIB)]))
            except NoSpace:
                raise
            except EtcdError:
                continue
