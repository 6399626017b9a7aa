"""Every engine of the replicated log passes the same checks."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from clusters import stopping

from kv.memory import MemoryDisk, MemoryStore
from replication.local import LocalLog, open_local_log
from replication.testing import CHECKS, OpenLog, public_half


def local(directory: Path) -> OpenLog:
    return stopping(lambda: open_local_log(directory / "log", public_half))


def local_in_memory(_directory: Path) -> OpenLog:
    disk = MemoryDisk()
    return stopping(lambda: LocalLog(MemoryStore(disk), public_half))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [local, local_in_memory], ids=lambda make: make.__name__)
async def test_log_conforms(
    tmp_path: Path, make: Callable[[Path], OpenLog], check: Callable[[OpenLog], Awaitable[None]]
) -> None:
    await check(make(tmp_path))
