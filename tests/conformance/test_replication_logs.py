"""Every engine of the replicated log passes the same checks."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kv.memory import MemoryDisk, MemoryStore
from replication.interface import ReplicatedLog
from replication.local import LocalLog, open_local_log
from replication.testing import CHECKS, OpenLog, public_half


def local(directory: Path) -> OpenLog:
    @asynccontextmanager
    async def open_log() -> AsyncIterator[ReplicatedLog]:
        log = open_local_log(directory / "log", public_half)
        try:
            yield log
        finally:
            await log.stop()

    return open_log


def local_in_memory(_directory: Path) -> OpenLog:
    disk = MemoryDisk()

    @asynccontextmanager
    async def open_log() -> AsyncIterator[ReplicatedLog]:
        log = LocalLog(MemoryStore(disk), public_half)
        try:
            yield log
        finally:
            await log.stop()

    return open_log


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [local, local_in_memory], ids=lambda make: make.__name__)
async def test_log_conforms(
    tmp_path: Path, make: Callable[[Path], OpenLog], check: Callable[[OpenLog], Awaitable[None]]
) -> None:
    await check(make(tmp_path))
