"""Private parts are erased where they lie in etcd, too, and the order stays."""

from pathlib import Path

import pytest
import trio
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import NEVER_TRIM, Place, until

from replication.etcd.client import Compacted
from replication.testing import HANGS_AFTER_S, numbered, propose_all, take
from replication.types import LogEntry

SECRET = b"where the treasure lies"
PAYLOADS = [b"a|first", b"b|" + SECRET, b"c|third"]
ERASED = [b"a|first", b"b|", b"c|third"]


members = running_members(1)


@pytest.fixture
def place(members: EtcdMembers, tmp_path: Path) -> Place:
    return Place(members, tmp_path, ("r1", "r2"))


async def test_a_private_part_leaves_etcd_and_its_history(place: Place) -> None:
    with place.members.client() as client:
        async with place.running("r1", timing=NEVER_TRIM) as log:
            async with trio.open_nursery() as nursery:  # some under one key
                for payload in PAYLOADS:
                    nursery.start_soon(log.propose, payload)
            entries = await take(log, 3)
            (index,) = [entry.index for entry in entries if SECRET in entry.payload]
            (made,) = {row.mod_revision for row in rows(place) if SECRET in row.value}
            await log.rewrite_private(index, b"b|")
            assert any(SECRET in value for value in place.entries(client))
            assert await log.compact([index])
            assert not any(SECRET in value for value in place.entries(client))
            with pytest.raises(Compacted):
                client.range(api.RangeRequest(key=place.keys.entries, revision=made))
            expected = [
                LogEntry(entry.index, b"b|" if entry.index == index else entry.payload) for entry in entries
            ]
            async with place.running("r2", timing=NEVER_TRIM) as other:  # reads what is there now
                assert await take(other, 3) == expected
                await propose_all(log, [b"d|"])
                assert await take(other, 4) == [*expected, LogEntry(4, b"d|")]
                other.verify_chain(1, 5)


async def test_who_reads_along_numbers_a_rewritten_entry_once(place: Place) -> None:
    async with (
        place.running("r1", timing=NEVER_TRIM) as log,
        place.running("r2", timing=NEVER_TRIM) as other,
    ):
        await propose_all(log, PAYLOADS)
        await take(other, 3)
        for each in (log, other):
            await take(each, 3)
            await each.rewrite_private(2, b"b|")
            assert await each.compact([2])
        await propose_all(log, [b"d|"])
        for each in (log, other):
            assert await take(each, 4) == numbered([*ERASED, b"d|"])


async def test_what_was_trimmed_needs_no_erasure_in_etcd(place: Place) -> None:
    with place.members.client() as client:
        async with place.running("r1") as log, place.running("r2"):
            await propose_all(log, PAYLOADS)
            await until(lambda: place.entries(client) == [])
            await log.rewrite_private(2, b"b|")
            assert await log.compact([2])
            assert await take(log, 3) == numbered(ERASED)


async def test_without_etcd_erasure_is_put_off(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path / "etcd", 1).running() as etcd:
        async with Place(etcd, tmp_path).running(timing=NEVER_TRIM) as log:
            await propose_all(log, PAYLOADS)
            await take(log, 3)
            etcd.kill("e1")
            await log.rewrite_private(2, b"b|")
            assert await take(log, 3) == numbered(ERASED)
            assert not await log.compact([2])
            etcd.start()
            with trio.fail_after(HANGS_AFTER_S):
                while not await log.compact([2]):
                    await trio.lowlevel.checkpoint()


def rows(place: Place) -> list[api.KeyValue]:
    with place.members.client() as client:
        request = api.RangeRequest(key=place.keys.entries, range_end=place.keys.entries + b"\xff")
        return list(client.range(request).kvs)
