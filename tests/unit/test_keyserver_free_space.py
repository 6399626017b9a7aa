"""Free space of a replica: when it stops writing, when it goes on; and the version of its data folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from keyserver import free_space
from keyserver.data_directory import FORMAT, VERSION, UnknownVersion, open_data
from keyserver.machine.commands import Tick
from keyserver.metrics import Metrics
from keyserver.proposer import Proposer
from keyserver.testing import Disk, small_realm
from kv.free_space import Ballast, Watermark
from kv.interface import StorageError
from replication.local import LocalLog
from verifier.errors import Reason, Refused

MB = 1_000_000
WATERMARK = 80 * MB
RESUME = 90 * MB
SIZE = 100_000


@pytest.fixture
def proposer(tmp_path: Path) -> Proposer:
    log: LocalLog = None  # type: ignore[assignment]  # nothing is proposed here, only accepted or not
    return Proposer(log, Disk(tmp_path).signer(small_realm()), lambda: 0)


@pytest.fixture
def watermark(tmp_path: Path) -> Watermark:
    return Watermark((tmp_path,), WATERMARK, Ballast(tmp_path, SIZE))


def refusal(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value


# The watermark


def test_below_the_watermark_nothing_new_is_accepted_and_the_reason_says_what_was_compared(
    proposer: Proposer, watermark: Watermark
) -> None:
    proposer.submit(Tick())
    watermark.judge(WATERMARK - MB)
    free_space.hold(watermark, proposer)
    refused = refusal(lambda: proposer.submit(Tick()))
    assert refused.reason is Reason.NOT_READY
    assert (
        refused.what == "this replica only reads: its disk has 79.0 MB left, of which 80.0 MB are kept free"
    )
    assert proposer.held == refused.what


def test_room_on_the_disk_releases_nothing_that_somebody_else_holds(
    proposer: Proposer, watermark: Watermark
) -> None:
    proposer.hold("an operator", "maintenance")
    for free in (0, RESUME):
        watermark.judge(free)
        free_space.hold(watermark, proposer)
    assert refusal(proposer.require_signing).what == "maintenance"
    proposer.release("an operator")
    proposer.require_signing()


async def test_the_watch_looks_before_anything_starts_and_tells_of_every_change(
    monkeypatch: pytest.MonkeyPatch, proposer: Proposer, watermark: Watermark
) -> None:
    left = [0]
    monkeypatch.setattr(watermark, "measure", lambda: left[0])
    monkeypatch.setattr(free_space, "LOOK_S", 0.01)
    changes: list[bool] = []
    metrics = Metrics()
    resumed = trio.Event()

    def changed() -> None:
        changes.append(bool(proposer.held))
        if not proposer.held:
            resumed.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(free_space.watch, watermark, proposer, metrics, changed)
        assert proposer.held
        left[0] = RESUME + SIZE
        with trio.fail_after(60):
            await resumed.wait()
        assert changes == [True, False]
        assert b"e2eks_free_bytes 9.01e+07" in metrics.text()
        nursery.cancel_scope.cancel()


# The version of a data folder


def opened(folder: Path) -> None:
    """Open the folder and close it again."""
    with open_data(folder) as data:
        trio.run(data.log.stop)


def test_a_new_folder_is_marked_once_it_is_complete_and_opens_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    opened(folder)
    assert (folder / VERSION).read_bytes() == FORMAT
    opened(folder)


def test_a_first_start_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / VERSION).unlink()
    opened(tmp_path)
    assert (tmp_path / VERSION).read_bytes() == FORMAT


@pytest.mark.parametrize("text", [b"e2eks keyserver data 2\n", b"", b"\xff\x00", b"e2eks keyserver data 1"])
def test_another_version_is_refused_by_name_and_nothing_is_changed(tmp_path: Path, text: bytes) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / VERSION).write_bytes(text)
    with pytest.raises(UnknownVersion) as caught:
        opened(folder)
    assert str(folder / VERSION) in str(caught.value)
    assert "e2eks keyserver data 1" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == [VERSION]


def test_rows_without_a_version_are_refused(tmp_path: Path) -> None:
    async def propose() -> None:
        with open_data(tmp_path) as data:
            await data.log.start(1)
            await data.log.propose(b"an entry")
            await data.log.stop()

    trio.run(propose)
    (tmp_path / VERSION).unlink()
    with pytest.raises(UnknownVersion, match="put it back"):
        opened(tmp_path)
    (tmp_path / VERSION).write_bytes(FORMAT)
    opened(tmp_path)


@pytest.mark.parametrize("lost", ["db", "log"])
def test_a_database_or_log_that_is_gone_is_not_made_anew(tmp_path: Path, lost: str) -> None:
    opened(tmp_path)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=str(tmp_path / lost)):
        opened(tmp_path)
