"""Every store passes the same checks: the one on disk, the one in memory, and what wraps them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kv.interface import Store
from kv.leveldb import LevelDBStore
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import CHECKS, Fault, FaultyStore, OpenStore
from kv.tracing import TracingStore

NEVER = 10**9


def leveldb(directory: Path) -> OpenStore:
    return partial(LevelDBStore, directory / "not" / "yet" / "there")


def memory(_directory: Path) -> OpenStore:
    return partial(MemoryStore, MemoryDisk())


def traced(directory: Path) -> OpenStore:
    open_store = leveldb(directory)
    return lambda: TracingStore(open_store())


def never_failing(directory: Path) -> OpenStore:
    open_store = memory(directory)
    return lambda: FaultyStore(open_store(), Fault.READ_ERROR, after=NEVER)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", [leveldb, memory, traced, never_failing], ids=lambda make: make.__name__)
def test_store_conforms(
    tmp_path: Path, make: Callable[[Path], OpenStore], check: Callable[[OpenStore], None]
) -> None:
    opened: list[Store] = []
    open_store = make(tmp_path)

    def open_and_remember() -> Store:
        store = open_store()
        opened.append(store)
        return store

    try:
        check(open_and_remember)
    finally:
        for store in opened:
            store.close()
