"""What a machine keeps when its process dies: stores and files, with the faults of disks.

A store's batch is atomic and synced, as `kv.interface` promises; what a crash can take is the batch that is
being written. A file is what `os` makes of it: what was not synced is lost with the machine, whole or in
part. Shipped code that opens files is given `Files` in the place of `os`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any

from kv.interface import Reader, StorageError
from kv.memory import MemoryDisk, MemoryStore


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
    views: dict[str, Any] = field(default_factory=dict)  # what MemoryDisk calls a view: immutable rows
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
        return dict(self.views), {path: file.synced for path, file in self.files.items()}

    def restore(self, image: tuple[dict[str, Any], dict[str, bytes]], *, files: bool) -> None:
        """Put a copy back; the stores, and the `files` too where that is said."""
        self.views = dict(image[0])
        if files:
            self.files = {path: File(data) for path, data in image[1].items()}


class SimulatedStore:
    """A kv Store on a Disk. Once a write has failed, every call fails."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._memory = MemoryDisk()
        if name in disk.views:
            self._memory.view = disk.views[name]
        self._store = MemoryStore(self._memory)
        self.get = self._store.get
        self.scan: Callable[..., Iterator[tuple[bytes, bytes]]] = self._store.scan

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        def apply() -> None:
            self._store.write(puts)
            self._disk.views[self._name] = self._memory.view

        try:
            self._disk.write(apply)
        except OSError as error:
            self.close()
            raise StorageError(str(error)) from error

    def snapshot(self) -> AbstractContextManager[Reader]:
        return self._store.snapshot()

    def compact(self, keys: Collection[bytes]) -> bool:
        return self._store.compact(keys)

    def close(self) -> None:
        self._store.close()


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
            kept = disk.rng.randint(len(file.synced), len(file.data))
            file.data = bytearray(file.data[: max(kept, len(file.synced))])
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
