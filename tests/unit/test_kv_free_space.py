"""Free space: when there is too little, when enough again, and what is kept in reserve."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kv import free_space
from kv.free_space import BALLAST, Ballast, Watermark, advised, is_full
from kv.interface import StorageError

MB = 1_000_000
WATERMARK = 80 * MB
RESUME = 90 * MB
SIZE = 100_000


@pytest.fixture
def watermark(tmp_path: Path) -> Watermark:
    return Watermark((tmp_path,), WATERMARK, Ballast(tmp_path, SIZE))


# The watermark


def test_below_the_watermark_there_is_a_reason_that_says_what_was_compared(watermark: Watermark) -> None:
    assert not watermark.judge(WATERMARK)
    assert not watermark.why
    assert watermark.judge(WATERMARK - MB)
    assert watermark.why == "its disk has 79.0 MB left, of which 80.0 MB are kept free"


def test_there_is_enough_again_only_well_above_the_watermark(watermark: Watermark) -> None:
    assert watermark.judge(0)
    assert not watermark.judge(0)
    assert not watermark.judge(RESUME - 1)
    assert watermark.why
    assert watermark.judge(RESUME)
    assert not watermark.why


def test_the_fullest_of_the_disks_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {tmp_path / "a": 5, tmp_path / "b": 3}
    monkeypatch.setattr(free_space, "_free_bytes", left.__getitem__)
    assert Watermark(tuple(left), WATERMARK, Ballast(tmp_path, 0)).measure() == 3


def test_a_folder_that_is_gone_has_no_free_space(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="free space"):
        Watermark((tmp_path / "gone",), WATERMARK, Ballast(tmp_path, 0)).measure()


# The ballast


def test_the_ballast_takes_real_room_and_is_made_only_where_there_is_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watermark: Watermark
) -> None:
    left = [RESUME + SIZE - 1]
    monkeypatch.setattr(free_space, "_free_bytes", lambda folder: left[0])
    watermark.measure()
    assert not (tmp_path / BALLAST).exists()
    left[0] += 1
    watermark.measure()
    found = (tmp_path / BALLAST).stat()
    assert found.st_size == SIZE
    assert found.st_blocks * 512 >= SIZE


def test_a_ballast_that_cannot_be_made_leaves_nothing_behind_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watermark: Watermark
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(free_space, "_free_bytes", lambda folder: RESUME + SIZE)
    monkeypatch.setattr(os, "posix_fallocate", full)
    watermark.measure()
    assert list(tmp_path.glob(BALLAST)) == []


def test_a_disk_that_fails_to_sync_the_ballast_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watermark: Watermark
) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(free_space, "_free_bytes", lambda folder: RESUME + SIZE)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="the ballast cannot be written: Input/output error"):
        watermark.measure()
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
