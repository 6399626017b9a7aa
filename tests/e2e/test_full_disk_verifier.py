"""A verifier whose disk fills up: it stops following while there is room, says so, starts on a full disk, and
goes on when there is room again, with nothing lost and nothing signed twice.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from realm_processes.small_disk import Counted, SmallDisk, Tmpfs
from streams.build import Stream
from streams.fake_keyserver import DEADLINE_S, FakeKeyserver
from streams.folder import OpenVerifier, VerifierFolder, verifier_of

from keyserver.demo.processes import wait_until
from kv.free_space import Ballast, Watermark
from verifier.daemon import evidence_files
from verifier.daemon.failures import Halted
from verifier.daemon.watch import Daemon
from verifier.errors import ConfigError
from verifier.files import write_new

COMMAND = [sys.executable, "-c", "from verifier.daemon.cli import main; main()"]
MIN_FREE, BALLAST_SIZE = 3_000_000, 2_000_000
QUICK = f"""
[times]
retry_min_ms = 5
retry_max_ms = 50
[storage]
min_free_bytes = {MIN_FREE}
ballast_bytes = {BALLAST_SIZE}
"""


class Process:
    """A verifier on a small disk. `disk` may be taken and given back while it runs."""

    def __init__(self, folder: VerifierFolder, disk: SmallDisk) -> None:
        self.folder = folder
        self.disk = disk
        self.ballast = Ballast(folder.path / "data", BALLAST_SIZE)
        self.log = folder.path.with_name("log")
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [*COMMAND, "run", "-c", str(self.folder.config_file)]
        with self.log.open("ab") as log:
            environment = os.environ | paths | self.disk.environment
            self._running = subprocess.Popen(command, stderr=log, env=environment)

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def ended(self) -> bool:
        return self._running is not None and self._running.poll() is not None

    def status(self) -> dict[str, Any]:
        """Empty before the first was written, and in the middle of writing: on a full disk that is done in
        place.
        """
        try:
            found: dict[str, Any] = json.loads((self.folder.path / "status.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def updated_ms(self) -> int:
        return int(self.status().get("updated_ms", 0))

    def only_delivers(self) -> bool:
        status = self.status()
        return "stopped" not in status and "its disk has" in status.get("not_following_because", "")


@contextmanager
def on_small_disk(tmp_path: Path, kind: type[Tmpfs | Counted]) -> Iterator[tuple[FakeKeyserver, Process]]:
    stream = Stream().grow(2)
    folder = verifier_of(stream, tmp_path / "verifier")
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        folder.connect(keyserver.verification, keyserver.push, keyserver.certificate, extra=QUICK)
        try:
            disk: SmallDisk = kind(folder.path)
        except OSError:
            pytest.skip("nothing may be mounted here")
        process = Process(folder, disk)
        try:
            process.start()
            keyserver.wait_until(lambda: keyserver.ratified_epochs() == {1, 2})
            yield keyserver, process
        finally:
            process.kill()
            disk.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Tmpfs, Counted])
def test_below_the_watermark_nothing_is_followed_until_there_is_room(
    tmp_path: Path, rng: Random, count: Callable[[int], int], kind: type[Tmpfs | Counted]
) -> None:
    with on_small_disk(tmp_path, kind) as (keyserver, process):
        for last in range(3, 3 + count(1)):
            process.disk.leave(rng.randrange(1_000_000, MIN_FREE - 100_000))
            wait_until(process.only_delivers, "the verifier to stop following")
            streams = len(keyserver.starts)
            keyserver.grow(lambda s: s.grow(1))
            assert process.status()["epoch"] == last - 1
            process.disk.give_back()
            keyserver.wait_until(lambda last=last: last in keyserver.ratified_epochs())  # type: ignore[misc]
            wait_until(process.ballast.is_kept, "a ballast")
            assert len(keyserver.starts) > streams, "a stream was read on"


@pytest.mark.slow
def test_a_full_disk_ends_a_verifier_at_most_and_it_starts_again(
    tmp_path: Path, rng: Random, count: Callable[[int], int]
) -> None:
    with on_small_disk(tmp_path, Tmpfs) as (keyserver, process):
        for last in range(3, 3 + count(2)):
            process.disk.leave(rng.randrange(40_000))
            keyserver.grow(lambda s: s.grow(1))
            wait_until(lambda: process.ended() or process.only_delivers(), "the disk to be full")
            if process.ended():
                assert "Make room on the disk" in process.log.read_text()
            process.kill()
            before = process.updated_ms()
            process.disk.leave(0)
            process.start()
            wait_until(
                lambda before=before: process.updated_ms() > before and process.only_delivers(),  # type: ignore[misc]
                "a start on a full disk",
            )
            process.disk.give_back()
            keyserver.wait_until(lambda last=last: last in keyserver.ratified_epochs())  # type: ignore[misc]
            wait_until(process.ballast.is_kept, "a ballast")
        for epoch in keyserver.ratified_epochs():
            assert len(set(keyserver.pushes_of(epoch))) == 1, "signed twice"


class FullDisk(Watermark):
    """What is left is set by the test; writing fails while a ballast is kept."""

    def __init__(self, folder: Path) -> None:
        self.left = 2 * MIN_FREE
        super().__init__((folder,), MIN_FREE, Ballast(folder, BALLAST_SIZE))

    def measure(self) -> int:
        return self.left


async def test_what_is_owed_is_delivered_and_a_stream_that_is_cut_off_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verifier.daemon.room.LOOK_S", 0.01)
    stream = Stream().grow(2)
    folder = verifier_of(stream, tmp_path / "verifier")
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        folder.connect(keyserver.verification, keyserver.push, keyserver.certificate)
        with OpenVerifier(folder) as opened, trio.fail_after(DEADLINE_S):
            parts = opened.parts()
            parts.watermark = disk = FullDisk(opened.config.data)
            daemon = Daemon(parts)

            async def until(happened: Callable[[], bool]) -> None:
                await trio.to_thread.run_sync(keyserver.wait_until, happened, abandon_on_cancel=True)

            async def told(happened: Callable[[], bool]) -> None:
                while not happened():
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.run)
                await until(lambda: keyserver.ratified_epochs() == {1, 2})
                disk.left = 0
                await told(lambda: bool(daemon.standing()["not_following_because"]))
                await told(lambda: not daemon.standing()["following"])
                keyserver.grow(lambda s: s.grow(1))
                assert daemon.standing()["free_bytes"] == 0
                assert daemon.state.chain.epoch == 2
                disk.left = 2 * MIN_FREE
                await until(lambda: keyserver.ratified_epochs() == {1, 2, 3})
                assert not daemon.standing()["not_following_because"]
                nursery.cancel_scope.cancel()
    assert len(keyserver.starts) == 2


async def test_evidence_is_kept_on_a_full_disk_at_the_cost_of_the_ballast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream().grow(2)
    folder = verifier_of(stream, tmp_path / "verifier")
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        folder.connect(keyserver.verification, keyserver.push, keyserver.certificate)
        keyserver.grow(lambda s: s.steps.append(s.steps[-1]))
        with OpenVerifier(folder) as opened, trio.fail_after(DEADLINE_S):
            parts = opened.parts()
            parts.watermark = FullDisk(opened.config.data)
            ballast = Ballast(opened.config.data, BALLAST_SIZE)
            ballast.keep()
            fill_while(monkeypatch, ballast.is_kept)
            with pytest.raises(Halted):
                await Daemon(parts).run()
            assert not ballast.is_kept()
        with pytest.raises(Halted):
            evidence_files.refuse_while_evidence_is_kept(opened.config.evidence)


def fill_while(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    """Let no evidence be written meanwhile."""

    def write_once_there_is_room(path: Path, data: bytes) -> None:
        if is_full():
            raise ConfigError(f"{path} cannot be written: {os.strerror(errno.ENOSPC)}")
        write_new(path, data)

    monkeypatch.setattr(evidence_files, "write_new", write_once_there_is_room)
