"""A log that is another than before, or another than that of the other replicas, ends the replica."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import NEVER_TRIM, Place, until

from kv.interface import StorageError
from replication.chain import LINK_BYTES
from replication.etcd.keyspace import delete, every, put
from replication.etcd.operators import begin_anew
from replication.local import open_local_log
from replication.testing import numbered, propose_all, public_half, take
from replication.types import LogEntry, NoLeader, ReplicationError

SOME = [b"some %d" % number for number in range(12)]


members = running_members(1)


@pytest.fixture
def place(members: EtcdMembers, tmp_path: Path) -> Place:
    return Place(members, tmp_path, ("r1", "r2"))


async def fails(place: Place, name: str, why: str, lo: int = 1) -> None:
    async with place.running(name, lo, NEVER_TRIM) as log:  # who trims compares, too, with other words
        with pytest.raises(StorageError, match=why):
            await take(log, 10**6)
        with pytest.raises(StorageError, match=why):
            await log.propose(b"late")
        assert not log.leader_hint()


async def test_a_local_log_goes_on_over_etcd(place: Place) -> None:
    log = open_local_log(place.folder / "r1", public_half)
    await log.start(1)
    await propose_all(log, SOME)
    await log.stop()
    shutil.copytree(place.folder / "r1", place.folder / "r2")
    async with place.running("r1", lo=13) as first, place.running("r2") as second:
        await propose_all(first, [b"a"])
        await propose_all(second, [b"b"])
        assert await take(second, 14) == numbered([*SOME, b"a", b"b"])
        assert await take(first, 2) == numbered([b"a", b"b"], 13)
    await fails(place, "r3", "copy the log of another replica")


async def test_a_copy_without_a_position_is_compared_with_etcd(place: Place) -> None:
    """As after a restore from a backup, which knows entries alone."""
    async with place.running("r1", timing=NEVER_TRIM) as log:
        await propose_all(log, SOME)
        for name, tail in (("r2", SOME[8:]), ("wrong", [b"other"])):
            local = open_local_log(place.folder / name, public_half)
            await local.start(1)
            await propose_all(local, [*SOME[:8], *tail])
            await local.stop()
        async with place.running("r2", lo=13, timing=NEVER_TRIM) as other:
            await propose_all(log, [b"next"])
            assert await take(other, 1) == [LogEntry(13, b"next")]
        await fails(place, "wrong", "entry 9 here is not that of etcd")


async def test_a_copy_that_is_longer_than_etcd_is_refused(place: Place) -> None:
    async with place.running("r1", timing=NEVER_TRIM) as log:
        await propose_all(log, SOME)
        await take(log, 12)
    local = open_local_log(place.folder / "r1", public_half)
    await local.start(1)
    await propose_all(local, [b"alone"])
    await local.stop()
    await fails(place, "r1", "ends before entry 13")


async def test_another_order_elsewhere_ends_both(place: Place) -> None:
    async with place.running("r1", timing=NEVER_TRIM) as log:
        await propose_all(log, SOME)
        await take(log, 12)
        report = replace(log._copy.cursor, link=bytes(LINK_BYTES))
        with place.members.client() as client:
            client.txn(api.TxnRequest(success=[put(place.keys.report("r2"), report.encode())]))
        with pytest.raises(StorageError, match="replica r2 holds another order of the entries to 12"):
            await take(log, 13)
    await fails(place, "r1", "replica r2 holds another order")


async def test_an_etcd_that_lost_the_log_is_refused(place: Place) -> None:
    async with place.running("r1", timing=NEVER_TRIM) as log:
        await propose_all(log, SOME)
        await take(log, 12)
        with place.members.client() as client:
            client.txn(api.TxnRequest(success=[delete(place.keys.base)]))
        with pytest.raises(StorageError, match="the base row of the log was deleted"):
            await take(log, 13)
    await fails(place, "r1", "etcd has lost the log")


async def test_another_etcd_is_refused_and_so_is_one_with_a_lost_end(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path / "etcd", 1).running() as etcd:
        place = Place(etcd, tmp_path)
        async with place.running(timing=NEVER_TRIM) as log:
            await propose_all(log, SOME[:6])
        etcd.keep_copy("e1", tmp_path / "older")
        etcd.start()
        async with place.running(timing=NEVER_TRIM) as log:
            await propose_all(log, SOME[6:])
            await take(log, 12)
        etcd.put_back("e1", tmp_path / "older")
        etcd.start()
        await fails(place, "r1", "etcd has lost the end of the log")
    other = EtcdMembers(tmp_path / "other", 1)
    try:
        other.start()
        await fails(Place(other, tmp_path), "r1", "not the etcd cluster")
        begin_anew(tmp_path / "r1")
        shutil.copytree(tmp_path / "r1", tmp_path / "r2")
        anew = Place(other, tmp_path, ("r1", "r2"))
        async with anew.running("r1", lo=13) as log, anew.running("r2", lo=13) as copy:
            await propose_all(log, [b"after the loss"])
            assert await take(copy, 1) == [LogEntry(13, b"after the loss")]
    finally:
        other.stop_all()


async def test_damaged_rows_in_etcd_are_not_guessed_at(place: Place) -> None:
    for key, why in (
        (place.keys.entry("mallory", 1), "an entry in etcd is damaged"),
        (place.keys.report("r2"), "the report of a replica in etcd is damaged"),
        (place.keys.base, "the base row in etcd is damaged"),
    ):
        async with place.running("r1") as log:
            await propose_all(log, [b"well"])
            with place.members.client() as client:
                before = [row for row in client.range(every(key)).kvs if row.key == key]
                client.txn(api.TxnRequest(success=[put(key, b"\xff\xff")]))
                with pytest.raises(StorageError, match=why):
                    await take(log, 10**6)
                repair = put(key, before[0].value) if before else delete(key)
                client.txn(api.TxnRequest(success=[repair]))
        if b"mallory" in key:
            with place.members.client() as client:
                client.compact_history(client.range(every(key)).header.revision)


async def test_without_etcd_the_log_is_read_and_proposals_are_refused(place: Place) -> None:
    async with place.running("r1") as log:
        await propose_all(log, SOME)
        await take(log, 12)
    nowhere = EtcdMembers(place.folder / "nowhere", 1)
    lonely = Place(nowhere, place.folder)
    async with lonely.running("r1", timing=replace(NEVER_TRIM, send_s=0.5)) as log:
        assert await take(log, 12) == numbered(SOME)
        assert log.status().warnings
        assert log.status().leader_name == ""
        with pytest.raises(NoLeader):
            await log.propose(b"nobody hears")


async def test_strangers_reach_nothing(place: Place) -> None:
    """No certificate of etcd's authority, no log: not even the status."""
    honest = place.members.tls
    try:
        place.members.tls = place.members.stranger()
        async with place.running("r1", timing=replace(NEVER_TRIM, send_s=0.5)) as log:
            with pytest.raises(ReplicationError):
                await log.propose(b"let me in")
            assert log.status().warnings
    finally:
        place.members.tls = honest
    async with place.running("r1") as log:
        await propose_all(log, [b"first"])
        assert await take(log, 1) == [LogEntry(1, b"first")]


async def test_replicas_agree_on_the_order_of_proposals_made_at_once(
    place: Place, rng: random.Random, count: Callable[[int], int]
) -> None:
    async with place.running("r1") as one, place.running("r2") as two:
        logs = (one, two)
        async with trio.open_nursery() as nursery:
            for number in range(count(300)):
                nursery.start_soon(rng.choice(logs).propose, b"%d" % number)
                if rng.random() < 0.1:
                    await trio.lowlevel.checkpoint()
        orders = [await take(log, count(300)) for log in logs]
        assert orders[0] == orders[1]
        assert sorted(int(entry.payload) for entry in orders[0]) == list(range(count(300)))
        await until(lambda: one.status().members[0].match_index == count(300))
