"""Room on the disk: measured, kept in reserve, and the reason to stop writing before there is none.

A disk that fills up while a batch is written ends the process, and a database without room cannot even be
opened. So whoever writes stops taking anything new while there is still room, and goes on answering; and it
keeps a ballast, a file of no content, which it gives up when opening fails for want of room.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from kv.interface import StorageError

BALLAST = "ballast"
LOOK_S = 1.0  # even 200 MB a second fill the default watermark no faster than this notices
RESUME_PARTS = 8  # writing resumes an eighth above the watermark, or it would stop and resume all the time

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_TEXTS = tuple(os.strerror(number) for number in sorted(_FULL))  # LevelDB has only these

T = TypeVar("T")


def is_full(error: BaseException) -> bool:
    """Whether a failure is about a disk without room."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if any(text in str(cause) for text in _FULL_TEXTS):
            return True
    return False


def advised(error: BaseException) -> BaseException:
    """The failure with what to do about it, if that is to make room."""
    if not isinstance(error, StorageError) or not is_full(error):
        return error
    return StorageError(f"{error}. Make room on the disk and start again: nothing that was promised is lost")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


class Ballast:
    """A file of `size` bytes in a folder; 0 is none."""

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / BALLAST
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def is_kept(self) -> bool:
        """Whether the whole ballast is there. Raises OSError."""
        try:
            return not self._size or self._path.stat().st_size == self._size
        except FileNotFoundError:
            return False

    def keep(self) -> None:
        """Make the file, its blocks included. Raises OSError, and leaves none behind."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
            os.fsync(fd)
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(fd)

    def release(self) -> bool:
        """Give its room back to the disk; False when there is none left to give."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def unless_full(self, opening: Callable[[], T]) -> T:
        """What `opening` returns; if that fails for want of room, once more without the ballast.

        Raises what `opening` raises.
        """
        try:
            return opening()
        except Exception as error:
            if not is_full(error) or not self.release():
                raise
            text = "the disk is full: the ballast was given up, so that this process can do its work"
            _logger().critical(text, ballast=str(self._path), error=str(error))
        return opening()


class Watermark:
    """Says when the file systems of `folders` have less than `min_free_bytes` left, and again when more."""

    def __init__(self, folders: Sequence[Path], min_free_bytes: int, ballast: Ballast) -> None:
        self._folders = folders
        self._watermark = min_free_bytes
        self._resume = min_free_bytes + min_free_bytes // RESUME_PARTS
        self._ballast = ballast
        self.why = ""  # what was compared when room was found short; empty while there is enough

    def measure(self) -> int:
        """The bytes left where there are least; makes the ballast where there is plenty. Blocks on the disk.

        Raises StorageError.
        """
        try:
            free = min(_free_bytes(folder) for folder in self._folders)
        except OSError as error:
            raise StorageError(f"the free space of the disk cannot be read: {error}") from error
        if free >= self._resume + self._ballast.size and not self._ballast.is_kept():
            try:
                self._ballast.keep()
            except OSError as error:
                if not is_full(error):
                    raise StorageError(f"the ballast cannot be written: {error.strerror}") from error
                # Somebody else took the room: tried again at the next look.
                _logger().warning("no ballast could be made", why=str(error.strerror))
        return free

    def even_if_full(self, writing: Callable[[], T]) -> T:
        """What `writing` returns, at the cost of the ballast if it must be. Raises what it raises."""
        return self._ballast.unless_full(writing)

    def judge(self, free: int) -> bool:
        """Set `why` by what is left; whether room became short, or enough again."""
        is_low = free < (self._resume if self.why else self._watermark)
        if is_low == bool(self.why):
            return False
        if is_low:
            self.why = f"its disk has {_mb(free)} MB left, of which {_mb(self._watermark)} MB are kept free"
            _logger().critical("nothing new is written until there is room on the disk", why=self.why)
        else:
            self.why = ""
            _logger().warning("there is room on the disk again", free_mb=_mb(free))
        return True


def _logger() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("space")
    return logger


def _free_bytes(folder: Path) -> int:
    """What an ordinary user may still write, root's reserve left out."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _mb(size: int) -> str:
    return f"{size / 1_000_000:.1f}"
