"""The local log: shared syncs, the chain, erasure, and what a failing disk does to it."""

from pathlib import Path

import pytest
import trio
import trio.testing
from local_logs import GatedStore, change, filled, running, stored

import replication.local
from kv.interface import StorageError
from kv.memory import MemoryStore
from kv.tracing import TracingStore
from replication.chain import FIRST_LINK, next_link
from replication.local import LocalLog, open_local_log
from replication.rows import TAIL_CHECKED, entry_key
from replication.testing import (
    LETTERS,
    NO_LIMIT,
    numbered,
    propose_all,
    public_half,
    take,
    take_until,
)
from replication.types import LogEntry, LogOverloaded, PayloadTooLarge, PublicPartChanged

# Shared syncs


async def test_many_proposers_share_a_sync() -> None:
    store = TracingStore(MemoryStore())
    async with running(store) as log:
        store.batches.clear()
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(log.propose, b"%d" % number)
        assert len(store.batches) <= 3
        assert sum(len(batch) for batch in store.batches) == 1000
        assert log.status().committed_index == 1000


async def test_nothing_is_handed_out_or_acknowledged_before_it_is_stored() -> None:
    store = TracingStore(MemoryStore())
    async with running(store) as log:
        runs = log.committed()
        for number in range(20):
            await log.propose(b"%d" % number)
            assert entry_key(number + 1) in store.batches[-1]
            assert await anext(runs) == (LogEntry(number + 1, b"%d" % number),)


async def test_a_flood_of_proposals_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication.local, "WAITING_BYTES_MAX", 100)
    refused: list[int] = []

    async def propose(log: LocalLog, number: int) -> None:
        try:
            await log.propose(b"x" * 10)
        except LogOverloaded:
            refused.append(number)

    async with running(MemoryStore()) as log:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(propose, log, number)
        assert len(refused) == 20
        await log.propose(b"x" * 100)
        assert log.status().committed_index == 11


async def test_a_payload_without_public_part_harms_only_its_proposer() -> None:
    def strict(payload: bytes) -> bytes:
        return payload[: payload.index(b"|")]

    log = LocalLog(MemoryStore(), strict)
    await log.start(1)
    with pytest.raises(ValueError):
        await log.propose(b"no separator")
    await propose_all(log, [b"a|b"])
    assert await take(log, 1) == numbered([b"a|b"])
    await log.stop()


async def test_a_cancelled_proposer_takes_its_payload_back_and_no_other() -> None:
    store = GatedStore(MemoryStore())
    async with running(store) as log, trio.open_nursery() as nursery:
        store.open.clear()
        nursery.start_soon(log.propose, b"being written")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(log.propose, b"taken back")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.propose, b"behind it")
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        store.open.set()
        assert [entry.payload for entry in await take_until(log, b"behind it")] == [
            b"being written",
            b"behind it",
        ]


async def test_a_cancelled_writer_writes_for_the_others() -> None:
    store = GatedStore(MemoryStore())
    async with running(store) as log, trio.open_nursery() as nursery:
        await log.propose(b"a|alice")
        store.open.clear()
        nursery.start_soon(log.rewrite_private, 1, b"a|")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(log.propose, b"writer")  # waits for the store, with the run still to take
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.propose, b"other")
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
            store.open.set()
        entries = await take_until(log, b"other")
        assert [entry.payload for entry in entries] == [b"a|", b"writer", b"other"]
        assert log.leader_hint()


# The chain


async def test_the_chain_is_over_public_parts() -> None:
    disk = await filled([b"a|1", b"b|2"])
    link = FIRST_LINK
    for index, public in ((1, b"a"), (2, b"b")):
        link = next_link(link, index, public)
        assert stored(disk, index)[:32] == link


def test_a_link_is_a_tagged_hash() -> None:
    """A vector, so that the chain of released logs cannot change unnoticed."""
    assert next_link(FIRST_LINK, 1, b"public").hex() == (
        "c1ed72f890a811d01a2a11851c82c1570cd09e4e43385a4f3035ff279bdefb4e"
    )
    assert next_link(FIRST_LINK, 1, b"public") != next_link(FIRST_LINK, 2, b"public")


async def test_a_changed_public_part_at_the_end_is_refused_at_opening() -> None:
    disk = await filled(LETTERS)
    change(disk, {entry_key(12): stored(disk, 12)[:32] + b"other"})
    with pytest.raises(StorageError, match="entry 12"):
        LocalLog(MemoryStore(disk), public_half)


async def test_a_changed_private_part_fits_the_chain() -> None:
    disk = await filled([b"a|1", b"b|2", b"c|3"])
    change(disk, {entry_key(2): stored(disk, 2)[:32] + b"b|"})
    async with running(MemoryStore(disk)) as log:
        log.verify_chain(1, 4)
        assert [entry.payload for entry in await take(log, 3)] == [b"a|1", b"b|", b"c|3"]


async def test_damage_far_from_the_end_is_found_by_checking_the_chain() -> None:
    count = TAIL_CHECKED + 50
    disk = await filled([b"%d" % number for number in range(count)])
    change(disk, {entry_key(30): stored(disk, 30)[:32] + b"other"})
    async with running(MemoryStore(disk)) as log:
        log.verify_chain(1, 30)
        log.verify_chain(31, count + 1)
        with pytest.raises(StorageError, match="entry 30"):
            log.verify_chain(1, count + 1)
        with pytest.raises(ValueError):
            log.verify_chain(0, 3)


@pytest.mark.parametrize("lost", [1, 12])
async def test_a_lost_entry_is_refused_at_opening(lost: int) -> None:
    disk = await filled(LETTERS)
    change(disk, {entry_key(lost): None})
    with pytest.raises(StorageError, match=f"entry {lost}"):
        LocalLog(MemoryStore(disk), public_half)


async def test_a_lost_first_entry_of_a_long_log_is_refused_at_opening() -> None:
    disk = await filled([b"%d" % number for number in range(TAIL_CHECKED + 50)])
    change(disk, {entry_key(1): None})
    with pytest.raises(StorageError, match="entry 1"):
        LocalLog(MemoryStore(disk), public_half)


async def test_a_lost_entry_in_the_middle_halts_whoever_reads_it() -> None:
    disk = await filled([b"%d" % number for number in range(TAIL_CHECKED + 50)])
    change(disk, {entry_key(7): None})
    async with running(MemoryStore(disk)) as log:
        with pytest.raises(StorageError, match="entry 7"):
            log.read(5, 9, NO_LIMIT)
        with pytest.raises(StorageError, match="entry 7"):
            await take(log, 20)
        with pytest.raises(StorageError):
            await log.propose(b"late")


async def test_a_lost_end_is_refused_when_entries_were_applied() -> None:
    disk = await filled(LETTERS)
    change(disk, {entry_key(13): None, entry_key(12): None})
    log = LocalLog(MemoryStore(disk), public_half)
    with pytest.raises(StorageError, match="ends at 11"):
        await log.start(14)
    await log.stop()


@pytest.mark.parametrize("rows", [{b"x": b"y"}, {b"f": b"another format"}, {entry_key(1): b"x" * 40}])
def test_a_store_of_something_else_is_refused(rows: dict[bytes, bytes | None]) -> None:
    store = MemoryStore()
    store.write(rows)
    with pytest.raises(StorageError):
        LocalLog(store, public_half)


async def test_a_row_that_is_no_entry_is_refused() -> None:
    disk = await filled(LETTERS)
    change(disk, {entry_key(13) + b"x": b"y"})
    with pytest.raises(StorageError):
        LocalLog(MemoryStore(disk), public_half)


# Erasure


async def test_a_private_part_can_be_blanked_for_good() -> None:
    disk = await filled([b"a|alice", b"b|bob", b"c|carol"])
    async with running(MemoryStore(disk)) as log:
        await log.rewrite_private(2, b"b|")
        assert log.read(2, 3, NO_LIMIT) == (LogEntry(2, b"b|"),)
        await log.propose(b"d|dave")
        log.verify_chain(1, 5)
    async with running(MemoryStore(disk)) as log:
        assert [entry.payload for entry in await take(log, 4)] == [b"a|alice", b"b|", b"c|carol", b"d|dave"]


async def test_a_blanked_entry_is_not_remembered() -> None:
    async with running(MemoryStore()) as log:
        await log.propose(b"a|alice")
        await log.rewrite_private(1, b"a|")
        assert await take(log, 1) == numbered([b"a|"])


async def test_a_public_part_cannot_be_replaced() -> None:
    async with running(MemoryStore()) as log:
        await propose_all(log, [b"a|alice"])
        with pytest.raises(PublicPartChanged):
            await log.rewrite_private(1, b"b|alice")
        with pytest.raises(PayloadTooLarge):
            await log.rewrite_private(1, b"a|" + b"x" * 2**20)
        for index in (0, 2):
            with pytest.raises(ValueError):
                await log.rewrite_private(index, b"a|")
        assert await take(log, 1) == numbered([b"a|alice"])
        await log.propose(b"b|bob")
        assert log.leader_hint()


async def test_blanking_and_proposing_take_turns() -> None:
    async with running(MemoryStore()) as log:
        await propose_all(log, [b"%d|x" % number for number in range(50)])
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(log.rewrite_private, number + 1, b"%d|" % number)
                nursery.start_soon(log.propose, b"later %d|" % number)
        log.verify_chain(1, 101)
        assert [entry.payload for entry in log.read(1, 51, NO_LIMIT)] == [
            b"%d|" % number for number in range(50)
        ]
        assert log.status().committed_index == 100


async def test_a_blanked_part_leaves_the_files(tmp_path: Path) -> None:
    log = open_local_log(tmp_path / "log", public_half)
    await log.start(1)
    secret = b"nobody should find this"
    await propose_all(log, [b"a|" + secret, b"b|bob"])
    await log.rewrite_private(1, b"a|")
    assert any(secret in path.read_bytes() for path in (tmp_path / "log").iterdir())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(propose_all, log, [b"%d|" % number for number in range(20)])
        assert await log.compact([1])
    await log.stop()
    assert not any(secret in path.read_bytes() for path in (tmp_path / "log").iterdir())
    log = open_local_log(tmp_path / "log", public_half)
    log.verify_chain(1, 23)
    await log.stop()
