"""Free space: when a replica stops writing, when it goes on, and what it keeps in reserve."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from keyserver import free_space
from keyserver.data_directory import FORMAT, VERSION, UnknownVersion, open_data
from keyserver.free_space import BALLAST, Ballast, FreeSpace, advised, is_full
from keyserver.machine.commands import Tick
from keyserver.metrics import Metrics
from keyserver.proposer import Proposer
from keyserver.testing import Disk, small_realm
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
def space(tmp_path: Path) -> FreeSpace:
    return FreeSpace((tmp_path,), WATERMARK, Ballast(tmp_path, SIZE))


def refusal(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value


# The watermark


def test_below_the_watermark_nothing_new_is_accepted_and_the_reason_says_what_was_compared(
    proposer: Proposer, space: FreeSpace
) -> None:
    assert not space.judge(WATERMARK, proposer)
    proposer.submit(Tick())
    assert space.judge(WATERMARK - MB, proposer)
    refused = refusal(lambda: proposer.submit(Tick()))
    assert refused.reason is Reason.NOT_READY
    assert (
        refused.what == "this replica only reads: its disk has 79.0 MB left, of which 80.0 MB are kept free"
    )
    assert proposer.held == refused.what


def test_writing_resumes_only_well_above_the_watermark(proposer: Proposer, space: FreeSpace) -> None:
    assert space.judge(0, proposer)
    assert not space.judge(0, proposer)
    assert not space.judge(RESUME - 1, proposer)
    assert proposer.held
    assert space.judge(RESUME, proposer)
    assert not proposer.held
    proposer.submit(Tick())


def test_room_on_the_disk_releases_nothing_that_somebody_else_holds(
    proposer: Proposer, space: FreeSpace
) -> None:
    proposer.hold("an operator", "maintenance")
    space.judge(0, proposer)
    assert space.judge(RESUME, proposer)
    assert refusal(proposer.require_signing).what == "maintenance"
    proposer.release("an operator")
    proposer.require_signing()


def test_the_fullest_of_the_disks_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: FreeSpace
) -> None:
    left = {tmp_path / "a": 5, tmp_path / "b": 3}
    monkeypatch.setattr(free_space, "_free_bytes", left.__getitem__)
    assert FreeSpace(tuple(left), WATERMARK, Ballast(tmp_path, 0)).measure() == 3


def test_a_folder_that_is_gone_ends_the_watch(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="free space"):
        FreeSpace((tmp_path / "gone",), WATERMARK, Ballast(tmp_path, 0)).measure()


async def test_the_watch_looks_before_anything_starts_and_tells_of_every_change(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proposer: Proposer,
    space: FreeSpace,
) -> None:
    left = [0]
    monkeypatch.setattr(free_space, "_free_bytes", lambda folder: left[0])
    monkeypatch.setattr(free_space, "LOOK_S", 0.01)
    changes: list[bool] = []
    metrics = Metrics()
    resumed = trio.Event()

    def changed() -> None:
        changes.append(bool(proposer.held))
        if not proposer.held:
            resumed.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(space.watch, proposer, metrics, changed)
        assert proposer.held
        left[0] = RESUME + SIZE
        with trio.fail_after(60):
            await resumed.wait()
        assert changes == [True, False]
        assert b"e2eks_free_bytes 9.01e+07" in metrics.text()
        nursery.cancel_scope.cancel()


# The ballast


def test_the_ballast_takes_real_room_and_is_made_only_where_there_is_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: FreeSpace
) -> None:
    left = [RESUME + SIZE - 1]
    monkeypatch.setattr(free_space, "_free_bytes", lambda folder: left[0])
    space.measure()
    assert not (tmp_path / BALLAST).exists()
    left[0] += 1
    space.measure()
    found = (tmp_path / BALLAST).stat()
    assert found.st_size == SIZE
    assert found.st_blocks * 512 >= SIZE


def test_a_ballast_that_cannot_be_made_leaves_nothing_behind_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: FreeSpace
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(free_space, "_free_bytes", lambda folder: RESUME + SIZE)
    monkeypatch.setattr(os, "posix_fallocate", full)
    space.measure()
    assert list(tmp_path.glob(BALLAST)) == []


def test_no_ballast_is_a_choice(tmp_path: Path) -> None:
    assert Ballast(tmp_path, 0).is_kept()
    assert not Ballast(tmp_path, 0).release()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("chained", [False, True])
def test_a_full_disk_is_recognised_by_number_and_by_the_words_of_the_database(
    number: int, chained: bool
) -> None:
    text = StorageError(f"the store in x cannot be opened: IO error: x/000007.log: {os.strerror(number)}")
    if chained:
        text = StorageError("cannot be written")
        text.__cause__ = OSError(number, "?")
    assert is_full(text)


def test_other_failures_are_not_a_full_disk() -> None:
    assert not is_full(StorageError("the store in x cannot be opened: Corruption: bad block"))
    assert not is_full(OSError(errno.EIO, os.strerror(errno.EIO)))


def test_a_full_disk_is_reported_with_what_to_do_and_other_failures_as_they_are() -> None:
    full, torn = StorageError(os.strerror(errno.ENOSPC)), StorageError("Corruption")
    assert "Make room on the disk" in str(advised(full))
    assert isinstance(advised(full), StorageError)
    assert advised(torn) is torn


class Opening:
    """Fails so many times before it succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    def __call__(self) -> str:
        if self.failures:
            raise self.failures.pop(0)
        return "open"


FULL = StorageError(os.strerror(errno.ENOSPC))


def test_the_ballast_is_given_up_when_opening_fails_for_want_of_room(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path, SIZE)
    ballast.keep()
    assert ballast.unless_full(Opening(FULL)) == "open"
    assert not (tmp_path / BALLAST).exists()


@pytest.mark.parametrize("failures", [[FULL, FULL], [StorageError("Corruption")]])
def test_what_no_room_can_cure_is_raised(tmp_path: Path, failures: list[Exception]) -> None:
    ballast = Ballast(tmp_path, SIZE)
    ballast.keep()
    with pytest.raises(StorageError) as caught:
        ballast.unless_full(Opening(*failures))
    assert caught.value is failures[-1]
    assert (tmp_path / BALLAST).exists() == (len(failures) == 1)


def test_without_a_ballast_a_full_disk_is_raised(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Ballast(tmp_path, SIZE).unless_full(Opening(FULL))


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
