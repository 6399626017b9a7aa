"""Local logs on stores that tests hold back, damage and read behind the log's back."""

import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio
import trio.testing

from kv.interface import Store
from kv.memory import MemoryDisk, MemoryStore
from kv.tracing import TracingStore
from replication.local import LocalLog
from replication.rows import PublicPart, entry_key
from replication.testing import HANGS_AFTER_S, public_half


class GatedStore(TracingStore):
    """Writes only while the gate is open."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.open = threading.Event()
        self.open.set()

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        self.open.wait(HANGS_AFTER_S)
        super().write(puts)


@asynccontextmanager
async def running(
    store: Store, lo: int = 1, public_part: PublicPart = public_half
) -> AsyncIterator[LocalLog]:
    log = LocalLog(store, public_part)
    try:
        await log.start(lo)
        yield log
    finally:
        await log.stop()


async def filled(payloads: list[bytes]) -> MemoryDisk:
    disk = MemoryDisk()
    async with running(MemoryStore(disk)) as log, trio.open_nursery() as nursery:
        for payload in payloads:
            nursery.start_soon(log.propose, payload)
            await trio.testing.wait_all_tasks_blocked()
    return disk


async def payloads_on(disk: MemoryDisk, public_part: PublicPart) -> list[bytes]:
    async with running(MemoryStore(disk), public_part=public_part) as log:
        return [entry.payload for entry in log.read(1, 10**9, 10**9)]


def change(disk: MemoryDisk, rows: dict[bytes, bytes | None]) -> None:
    disk.view = disk.view.changed(rows)


def stored(disk: MemoryDisk, index: int) -> bytes:
    row = disk.view.get(entry_key(index))
    assert row is not None
    return row
