"""The operator's socket: who may open it, what it sends, and that it goes when the replica goes."""

import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from kept.replica import Kept, scripted, store_of

from keyserver.copies.backup import Copy, Origin
from keyserver.copies.check import check
from keyserver.exits import Unreachable
from keyserver.frontends import operator
from keyserver.machine import commands
from keyserver.operator_socket import MODE, SOCKET, running_replica, socket_address
from kv.interface import Store
from kv.memory import MemoryStore
from replication.local import LocalLog
from replication.rows import entry_key
from verifier.errors import ConfigError
from verifier.realm import realm_json

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def kept() -> Kept:
    return scripted(7, 60)


@asynccontextmanager
async def serving(folder: Path, kept: Kept, store: Store | None = None) -> AsyncIterator[None]:
    """The socket of a replica with these rows. Its log was opened when it was whole."""
    origin = Origin(kept.machine, realm_json(kept.machine.realm), "r1", 1)
    rows = store or store_of(kept.rows)
    log = LocalLog(store_of(kept.log), commands.public_part)
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(operator.serve, folder, rows, log, lambda: origin)
            yield
            nursery.cancel_scope.cancel()


async def ask(folder: Path, use: Callable[[Callable[[int], bytes]], object]) -> object:
    """What a client in another thread makes of the answer."""

    def run() -> object:
        with running_replica(folder) as read:
            assert read is not None
            return use(read)

    return await trio.to_thread.run_sync(run)


def is_sound(kept: Kept, read: Callable[[int], bytes]) -> bool:
    return check(kept.machine, Copy(read).subject(), MemoryStore()).sound


async def test_sends_a_copy_that_is_sound(kept: Kept, tmp_path: Path) -> None:
    async with serving(tmp_path, kept):
        for _ in range(3):
            assert await ask(tmp_path, partial(is_sound, kept))


async def test_only_the_owner_may_open_it_and_it_goes_with_the_replica(kept: Kept, tmp_path: Path) -> None:
    async with serving(tmp_path, kept):
        mode = (tmp_path / SOCKET).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == MODE
    assert names(tmp_path) == []


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_socket_left_behind_is_replaced(kept: Kept, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left, socket_address(tmp_path) as address:
        left.bind(address)
    assert names(tmp_path) == [SOCKET]
    with running_replica(tmp_path) as read:
        assert read is None  # nobody listens
    async with serving(tmp_path, kept):
        assert await ask(tmp_path, partial(is_sound, kept))


async def test_a_folder_may_have_any_long_name(kept: Kept, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    async with serving(folder, kept):
        assert await ask(folder, partial(is_sound, kept))


async def test_a_missing_folder_is_told(kept: Kept, tmp_path: Path) -> None:
    with pytest.RaisesGroup(ConfigError):
        async with serving(tmp_path / "missing", kept):
            raise AssertionError("it served")


async def test_one_copy_at_a_time_and_an_abandoned_one_ends(kept: Kept, tmp_path: Path) -> None:
    big = kept.copy()
    big.rows |= {b"l" + number.to_bytes(8, "big") + b"!": bytes(2**20) for number in range(64)}

    def begin(read: Callable[[int], bytes]) -> str:
        read(10)  # the answer has begun, and 64 MiB wait behind it
        with pytest.raises(Unreachable, match="another backup") as refused, running_replica(tmp_path):
            raise AssertionError("it sent two")
        return str(refused.value)

    async with serving(tmp_path, big):
        assert "Try again later" in str(await ask(tmp_path, begin))
        while True:  # the server learns of the closed connection when it sends the next piece
            try:
                assert not await ask(tmp_path, partial(is_sound, big))
            except Unreachable:
                continue
            break


async def test_a_break_in_the_chain_of_the_log_is_a_fault_of_the_log(kept: Kept, tmp_path: Path) -> None:
    early = entry_key(2)
    broken = scripted(7, 600)  # longer than what opening a log looks at
    row = broken.log[early]
    broken.log[early] = bytes((row[0] ^ 1,)) + row[1:]

    def faults(read: Callable[[int], bytes]) -> object:
        return check(kept.machine, Copy(read).subject(), MemoryStore()).record()["faults"]

    async with serving(tmp_path, broken):
        (fault,) = await ask(tmp_path, faults)  # type: ignore[misc]
    assert fault["table"] == "log"
    assert "entry 2 " in fault["reason"]
