"""The local log when disk or directory fail."""

from pathlib import Path

import pytest
import trio
import trio.testing
from local_logs import filled, running, stored

from kv.interface import StorageError, StorageInUse
from kv.leveldb import LevelDBStore
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from kv.tracing import TracingStore
from replication.local import LocalLog, open_local_log
from replication.rows import entry_key
from replication.testing import (
    LETTERS,
    NO_LIMIT,
    public_half,
    take,
)
from replication.types import LogEntry, LogNotRunning

# A failing disk


@pytest.mark.parametrize(
    ("fault", "survives"), [(Fault.WRITE_ERROR_AND_APPLIED, True), (Fault.WRITE_ERROR_AND_NOT_APPLIED, False)]
)
async def test_a_failed_write_halts_everybody(fault: Fault, survives: bool) -> None:
    disk = MemoryDisk()
    halted: list[str] = []

    async def propose(log: LocalLog, payload: bytes) -> None:
        try:
            await log.propose(payload)
        except StorageError:
            halted.append("propose")

    async def follow(log: LocalLog) -> None:
        try:
            async for _ in log.committed():
                pass
        except StorageError:
            halted.append("committed")

    async with running(FaultyStore(MemoryStore(disk), fault, after=2)) as log:
        await log.propose(b"before")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, log)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(5):
                nursery.start_soon(propose, log, b"%d" % number)
        assert sorted(halted) == ["committed"] + ["propose"] * 5
        assert not log.leader_hint()
        assert not log.status().running
        with pytest.raises(StorageError):
            log.read(1, 2, NO_LIMIT)
        with pytest.raises(StorageError):
            await log.rewrite_private(1, b"before|")
    async with running(MemoryStore(disk)) as log:
        entries = await take(log, 1)
        assert entries[0] == LogEntry(1, b"before")
        assert (len(entries) > 1) is survives
        assert log.status().committed_index == len(entries)


async def test_a_failed_read_halts_everybody() -> None:
    disk = await filled(LETTERS)
    opening = FaultyStore(MemoryStore(disk), Fault.READ_ERROR, after=10**9)
    LocalLog(opening, public_half)
    reads_of_opening = 10**9 - opening._remaining
    opening.close()
    async with running(FaultyStore(MemoryStore(disk), Fault.READ_ERROR, after=reads_of_opening)) as log:
        with pytest.raises(StorageError):
            await take(log, 13)
        with pytest.raises(StorageError):
            await log.propose(b"late")


@pytest.mark.parametrize("after", range(5))
async def test_a_failed_read_at_opening_is_no_empty_log(after: int) -> None:
    disk = await filled(LETTERS)
    store = FaultyStore(MemoryStore(disk), Fault.READ_ERROR, after=after)
    try:
        LocalLog(store, public_half)
    except StorageError:
        assert store.struck
    else:
        assert not store.struck
    store.close()
    assert len(stored(disk, 13)) == 32 + 9


async def test_an_unexpected_error_while_writing_halts() -> None:
    class Broken(TracingStore):
        def write(self, puts: object) -> None:
            if self.batches:
                raise MemoryError
            super().write(puts)  # type: ignore[arg-type]

    async with running(Broken(MemoryStore())) as log:
        with pytest.raises(StorageError, match="MemoryError"):
            await log.propose(b"lost")
        with pytest.raises(StorageError):
            await log.propose(b"late")


# Directories


async def test_a_log_directory_has_one_owner_and_is_given_free(tmp_path: Path) -> None:
    log = open_local_log(tmp_path, public_half)
    with pytest.raises(StorageInUse):
        open_local_log(tmp_path, public_half)
    await log.stop()
    log = open_local_log(tmp_path, public_half)
    await log.stop()


async def test_a_refused_store_is_given_free(tmp_path: Path) -> None:
    store = LevelDBStore(tmp_path)
    store.write({b"x": b"something else"})
    store.close()
    with pytest.raises(StorageError):
        open_local_log(tmp_path, public_half)
    LevelDBStore(tmp_path).close()


async def test_stopping_waits_for_the_write_under_way() -> None:
    accepted: list[bytes] = []

    async def propose(log: LocalLog, payload: bytes) -> None:
        try:
            await log.propose(payload)
            accepted.append(payload)
        except LogNotRunning:
            pass

    disk = MemoryDisk()
    log = LocalLog(MemoryStore(disk), public_half)
    await log.start(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(propose, log, b"first")
        await trio.lowlevel.checkpoint()
        nursery.start_soon(log.stop)
    assert accepted in ([], [b"first"])
    assert (disk.view.get(entry_key(1)) is not None) is bool(accepted)
