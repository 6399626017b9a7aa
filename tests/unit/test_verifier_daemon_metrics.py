"""What a verifier shows of itself: metrics while its database fails, status before it ever ran."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from kv.interface import StorageError
from verifier.daemon import metrics
from verifier.daemon.status import ALIVE_MS, StatusFile, read_status
from verifier.errors import ConfigError

NOW_MS = 1_800_000_000_000


async def asked(port: int) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        return b"".join([part async for part in stream])


async def test_a_database_that_cannot_be_read_is_said_and_ends_no_listener() -> None:
    readable = True

    def standing() -> Mapping[str, Any]:
        if not readable:
            raise StorageError("a row cannot be read")
        return {"epoch": 7}

    ports: list[int] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            serving = trio.Event()

            def listening(port: int) -> None:
                ports.append(port)
                serving.set()

            nursery.start_soon(partial(metrics.serve, "127.0.0.1:0", standing, listening))
            await serving.wait()
            assert b"e2eks_verifier_epoch 7.0\n" in await asked(*ports)
            readable = False
            assert (await asked(*ports)).startswith(b"HTTP/1.1 503 ")
            readable = True
            assert (await asked(*ports)).startswith(b"HTTP/1.1 200 ")
            nursery.cancel_scope.cancel()


async def test_an_address_that_is_not_here_is_named_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:9 cannot be bound: \w"):
        await metrics.serve("192.0.2.1:9", dict, lambda port: None)


def test_a_verifier_that_never_ran_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert read_status(path, NOW_MS) | {"running": False} == read_status(path, NOW_MS)
    assert read_status(path, NOW_MS)["stopped"]
    StatusFile(path, "v1").write({"epoch": 7}, NOW_MS)
    assert read_status(path, NOW_MS + ALIVE_MS - 1)["running"]
    assert not read_status(path, NOW_MS + ALIVE_MS)["running"]


def test_a_clock_that_was_set_back_does_not_make_a_verifier_look_dead(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    file, hour_ago_ms = StatusFile(path, "v1"), NOW_MS - 3_600_000
    file.write({"epoch": 7}, NOW_MS)
    file.write({"epoch": 7}, hour_ago_ms)
    assert read_status(path, hour_ago_ms)["running"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema": "e2eks.verifier-status/1"}',
        b'{"schema": "e2eks.verifier-status/1", "updated_ms": null}',
        b"[" * 60_000,
    ],
    ids=["empty", "list", "object", "fields", "number", "depth"],
)
def test_a_file_that_is_no_status_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"status\.json is not a status file"):
        read_status(path, NOW_MS)
