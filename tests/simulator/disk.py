"""What a machine keeps when its process dies: stores and files, with the faults of disks.

A store's batch is atomic and synced, as `kv.interface` promises; what a crash can take is the batch that is
being written. A file is what `os` makes of it: what was not synced is lost with the machine, whole or in
part. Shipped code that opens files is given `Files` in the place of `os`.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from keyserver.quarantine import OWN_KEY, Evidence
from kv.interface import Reader, StorageError
from verifier.errors import ConfigError


class Crash(BaseException):
    """The process ends here, in the middle of whatever it does."""


class Trouble(StrEnum):
    """What goes wrong with a write. FULL lasts; the others strike once."""

    LOST = "unsynced_lost"
    TORN = "torn"
    EIO = "eio"
    FULL = "full"


class File:
    """An inode: what a process sees, and what is on the disk."""

    _numbers = count(1)

    def __init__(self, data: bytes = b"") -> None:
        self.number = next(self._numbers)
        self.data = bytearray(data)
        self.synced = data


@dataclass
class Disk:
    """One machine's disk. `strikes` is told when a fault has struck."""

    name: str
    rng: Random
    strikes: Callable[[Trouble], None] = lambda _: None
    views: dict[str, Any] = field(default_factory=dict)  # store -> Rows
    files: dict[str, File] = field(default_factory=dict)
    trouble: Trouble | None = None
    after: int = 0  # so many writes go well before the trouble strikes
    struck: bool = False  # since the machine was last started
    dark: bool = False  # the machine lost power: what never was synced is gone

    def open_store(self, name: str) -> SimulatedStore:
        """The store of that name, empty the first time."""
        return SimulatedStore(self, name)

    def arm(self, trouble: Trouble, after: int = 0) -> None:
        self.trouble, self.after = trouble, after

    def write(self, apply: Callable[[], None], tear: Callable[[], None] = lambda: None) -> None:
        """Do a synced write, or what the trouble makes of it. Raises OSError, Crash."""
        if self.trouble is None or self.after > 0:
            self.after -= 1
            apply()
            return
        trouble = self.trouble
        self.struck = True
        self.strikes(trouble)
        if trouble is Trouble.FULL:
            raise OSError(errno.ENOSPC, "no space left on the simulated disk")
        self.trouble = None
        self.dark = trouble is not Trouble.EIO
        if trouble is Trouble.TORN:
            tear()
        elif self.rng.random() < 0.5:
            apply()
        if trouble is Trouble.EIO:
            raise OSError(errno.EIO, "the simulated disk failed")
        raise Crash(trouble)

    def lose_unsynced(self) -> None:
        """The machine lost power: of what was not synced, nothing or a beginning is left."""
        for file in self.files.values():
            if bytes(file.data) != file.synced:
                kept = self.rng.randint(len(file.synced), max(len(file.data), len(file.synced)))
                torn = bytes(file.data[:kept]) if file.data.startswith(file.synced) else file.synced
                file.data, file.synced = bytearray(torn), torn

    def image(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """A copy of everything that is synced."""
        return deepcopy(self.views), {path: file.synced for path, file in self.files.items()}

    def restore(self, image: tuple[dict[str, Any], dict[str, bytes]], *, files: bool) -> None:
        """Put a copy back; the stores, and the `files` too where that is said."""
        self.views = deepcopy(image[0])
        if files:
            self.files = {path: File(data) for path, data in image[1].items()}


class Rows:
    """What a store has on the disk: rows, and their keys in order."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.keys: list[bytes] = []

    def __deepcopy__(self, _: object) -> Rows:
        copied = Rows()
        copied.rows, copied.keys = dict(self.rows), list(self.keys)
        return copied

    def put(self, puts: Mapping[bytes, bytes | None]) -> None:
        for key, value in puts.items():
            if value is None:
                if self.rows.pop(key, None) is not None:
                    del self.keys[bisect_left(self.keys, key)]
            else:
                if key not in self.rows:
                    insort(self.keys, key)
                self.rows[key] = value


class SimulatedStore:
    """A kv Store on a Disk. Once a write has failed, every call fails."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._kept: Rows | None = disk.views.setdefault(name, Rows())

    def _open(self) -> Rows:
        if self._kept is None:
            raise StorageError("the store is closed, or has failed")
        return self._kept

    def get(self, key: bytes) -> bytes | None:
        return self._open().rows.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        kept = self._open()
        keys = kept.keys[bisect_left(kept.keys, start) : bisect_left(kept.keys, stop)]
        if reverse:
            keys.reverse()
        return iter([(key, kept.rows[key]) for key in keys[:limit]])

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        kept = self._open()
        try:
            self._disk.write(lambda: kept.put(puts))
        except OSError as error:
            self.close()
            raise StorageError(str(error)) from error

    def snapshot(self) -> AbstractContextManager[Reader]:
        """Nobody writes while another one reads: all that runs, runs to its end."""
        return nullcontext(self)

    def compact(self, keys: Collection[bytes]) -> bool:
        return True

    def close(self) -> None:
        self._kept = None


class Files:
    """Stands in for the module `os` where shipped code handles files: paths are /sim/DISK/NAME."""

    O_RDWR, O_RDONLY, O_CREAT, O_TRUNC = os.O_RDWR, os.O_RDONLY, os.O_CREAT, os.O_TRUNC
    O_CLOEXEC, O_DIRECTORY = os.O_CLOEXEC, os.O_DIRECTORY
    PathLike = os.PathLike

    def __init__(self, disks: Mapping[str, Disk]) -> None:
        self._disks = disks
        self._open: dict[int, tuple[Disk, File | None]] = {}
        self._numbers = count(100)
        self.path = SimpleNamespace(lexists=lambda path: self._file(path) is not None)

    def _disk(self, path: object) -> Disk:
        return self._disks[str(path).split("/")[2]]

    def _file(self, path: object) -> File | None:
        return self._disk(path).files.get(str(path))

    def open(self, path: object, flags: int, mode: int = 0o600) -> int:
        disk, file = self._disk(path), self._file(path)
        if not flags & self.O_DIRECTORY:
            if file is None:
                if not flags & self.O_CREAT:
                    raise FileNotFoundError(errno.ENOENT, "no such simulated file", str(path))
                file = disk.files[str(path)] = File()
            if flags & self.O_TRUNC:
                file.data.clear()
        number = next(self._numbers)
        self._open[number] = disk, file
        return number

    def close(self, fd: int) -> None:
        del self._open[fd]

    def _of(self, fd: int) -> File:
        file = self._open[fd][1]
        assert file is not None
        return file

    def pwrite(self, fd: int, data: bytes, position: int) -> int:
        file = self._of(fd)
        file.data[position : position + len(data)] = data
        return len(data)

    def pread(self, fd: int, size: int, position: int) -> bytes:
        return bytes(self._of(fd).data[position : position + size])

    def ftruncate(self, fd: int, size: int) -> None:
        del self._of(fd).data[size:]

    def fsync(self, fd: int) -> None:
        disk, file = self._open[fd]
        if file is None or bytes(file.data) == file.synced:
            return

        def apply() -> None:
            file.synced = bytes(file.data)

        def tear() -> None:
            shorter, longer = sorted((bytes(file.data), file.synced), key=len)
            file.data = bytearray(longer[: disk.rng.randint(len(shorter), len(longer))])
            apply()

        disk.write(apply, tear)

    def fstat(self, fd: int) -> SimpleNamespace:
        file = self._of(fd)
        return SimpleNamespace(st_size=len(file.data), st_ino=file.number)

    def stat(self, path: object) -> SimpleNamespace:
        file = self._file(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such simulated file", str(path))
        return SimpleNamespace(st_size=len(file.data), st_ino=file.number)

    def rename(self, old: object, new: object) -> None:
        files = self._disk(old).files
        files[str(new)] = files.pop(str(old))

    # What `verifier.files` does

    def find_file(self, path: object, limit: int, what: str) -> bytes | None:
        """The newest contents, None where there is no such file."""
        file = self._file(path)
        return None if file is None else bytes(file.data)

    def replace_file(self, path: object, data: bytes) -> None:
        """The whole new contents, or the old ones untouched. Raises ConfigError, Crash."""
        disk = self._disk(path)

        def apply() -> None:
            disk.files[str(path)] = File(data)

        try:
            disk.write(apply)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

    def keep_evidence(
        self, folder: Path, realm: object, key_id: bytes, evidence: Evidence, *, about: str = OWN_KEY
    ) -> Path:
        """As `quarantine.keep_evidence`. Raises ConfigError, Crash."""
        path = folder / f"{about}-{len(self._disk(folder).files)}.json"
        self.replace_file(path, evidence.what.encode("ascii"))
        return path
