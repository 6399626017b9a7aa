"""What leaves etcd, and when; what happens to a replica that was away for longer."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import NEVER_TRIM, QUICK, Place, until

from kv.interface import StorageError
from replication.etcd.client import Compacted
from replication.etcd.keyspace import every
from replication.etcd.operators import NoSuchReplica, forget_replica, replicas_in_etcd
from replication.testing import NO_LIMIT, numbered, propose_all, take
from replication.types import LogEntry

FIRST = [b"first %d" % number for number in range(30)]
SECOND = [b"second %d" % number for number in range(30)]


members = running_members(1)


@pytest.fixture
def place(members: EtcdMembers, tmp_path: Path) -> Place:
    return Place(members, tmp_path, ("r1", "r2"))


async def test_entries_leave_etcd_when_all_have_them(place: Place) -> None:
    with place.members.client() as client:
        async with place.running("r1") as log:
            await propose_all(log, FIRST)
            await until(lambda: place.entries(client) != [])
            assert place.base(client).index == 0
            async with place.running("r2") as other:
                assert await take(other, 30) == numbered(FIRST)
                await until(lambda: place.base(client).index == 30 and place.entries(client) == [])
                await propose_all(other, SECOND)
                assert await take(log, 60) == numbered([*FIRST, *SECOND])
                assert await take(other, 60) == numbered([*FIRST, *SECOND])
        async with place.running("r1", lo=61) as log:
            await propose_all(log, [b"third"])
            assert await take(log, 1) == [LogEntry(61, b"third")]


async def test_trimming_waits_for_the_slowest_and_goes_on_without_the_dead(place: Place) -> None:
    reach = place.members.endpoints(), place.members.tls, place.prefix
    with place.members.client() as client:
        async with place.running("r1") as log, place.running("r2") as other:
            await propose_all(log, FIRST)
            await take(other, 30)
            await until(lambda: place.base(client).index == 30)
            await other.stop()
            await propose_all(log, SECOND)
            await take(log, 60)
            await until(lambda: replicas_in_etcd(*reach) == {"r1": 60, "r2": 30})
            assert place.base(client).index == 30
            await trio.to_thread.run_sync(forget_replica, *reach, "r2")
            assert replicas_in_etcd(*reach) == {"r1": 60}
            await until(lambda: place.base(client).index == 60)
        with pytest.raises(NoSuchReplica):
            forget_replica(*reach, "r2")


async def test_who_came_too_late_needs_the_copy_of_another(place: Place) -> None:
    with place.members.client() as client:
        async with place.running("r1") as log, place.running("r2"):
            await propose_all(log, FIRST)
            await until(lambda: place.base(client).index == 30)
        late = Place(place.members, place.folder, ("r1", "r2", "r3"))
        async with late.running("r3") as log:
            with pytest.raises(StorageError, match="copy the log of another"):
                await take(log, 1)
            assert not log.status().running
        shutil.rmtree(place.folder / "r3")
        shutil.copytree(place.folder / "r1", place.folder / "r3")
        async with late.running("r3") as log:
            await propose_all(log, SECOND)
            assert await take(log, 60) == numbered([*FIRST, *SECOND])
            assert place.base(client).replicas == ("r1", "r2", "r3")


async def test_a_forgotten_replica_stops_and_may_come_back(place: Place) -> None:
    both = place.running("r1", timing=NEVER_TRIM), place.running("r2", timing=NEVER_TRIM)
    async with both[0] as log, both[1] as other:
        await propose_all(log, FIRST)
        await take(other, 30)
        forget_replica(place.members.endpoints(), place.members.tls, place.prefix, "r2")
        with pytest.raises(StorageError, match="an operator has removed this replica"):
            await take(other, 31)
        await propose_all(log, SECOND[:3])
    async with place.running("r2", lo=31) as other:
        assert await take(other, 3) == numbered(SECOND[:3], 31)


async def test_a_stranger_to_the_configuration_joins_what_is_kept(place: Place) -> None:
    async with place.running("r1", timing=NEVER_TRIM) as log:
        await propose_all(log, FIRST)
        async with place.running("r9", timing=NEVER_TRIM) as log:
            assert await take(log, 30) == numbered(FIRST)


async def test_history_compacted_by_others_is_made_up_for(place: Place) -> None:
    with place.members.client() as client:
        async with place.running("r1", timing=NEVER_TRIM) as log:
            async with place.running("r2", timing=NEVER_TRIM) as other:
                await propose_all(log, FIRST)
                await take(other, 30)
            await propose_all(log, SECOND)
            await take(log, 60)
            now = client.range(every(place.keys.entries)).header.revision
            client.compact_history(now)
            with pytest.raises(Compacted):
                client.compact_history(now)
            async with place.running("r2", lo=31, timing=NEVER_TRIM) as other:
                assert await take(other, 30) == numbered(SECOND, 31)
                await propose_all(log, [b"live again"])
                assert (await take(other, 31))[-1] == LogEntry(61, b"live again")
                other.verify_chain(1, 62)
                assert list(other.read(1, 61, NO_LIMIT)) == numbered([*FIRST, *SECOND])


async def test_an_older_copy_takes_its_report_back(place: Place) -> None:
    """Restored, a replica is behind what it once reported: nothing may be trimmed on that word."""
    slow = replace(QUICK, trim_s=0.5, trim_entries=10**9)
    with place.members.client() as client:
        async with place.running("r1", timing=NEVER_TRIM) as log:
            async with place.running("r2", timing=NEVER_TRIM) as other:
                await propose_all(log, FIRST)
                await take(other, 30)
            shutil.copytree(place.folder / "r2", place.folder / "older")
            async with place.running("r2", timing=NEVER_TRIM) as other:
                await propose_all(log, SECOND)
                await take(other, 60)
                await until(lambda: other._view.reports["r2"][0].index == 60)
            shutil.rmtree(place.folder / "r2")
            shutil.copytree(place.folder / "older", place.folder / "r2")
        async with place.running("r2", timing=slow) as other:
            await until(other._view.attached.is_set)
            async with place.running("r1", timing=slow):
                assert await take(other, 60) == numbered([*FIRST, *SECOND])
                await until(lambda: place.base(client).index == 60)
