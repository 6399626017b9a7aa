"""A disk of a few megabytes for a replica's folder, to be filled up and given back by a test.

A tmpfs where this process may mount one, else the preloaded shim, which counts.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import preload

from keyserver.config import Epochs, Storage
from keyserver.demo.stage import REPLICA
from realm_processes.crashes import CrashingRealm

SIZE = 24 * 1024 * 1024
FILLER = "filler"


class SmallDisk(Protocol):
    """What a folder lies on. `environment` is for the processes that work in it."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    def leave(self, size: int) -> None:
        """Take all room but so many bytes, or a little less."""

    def give_back(self) -> None:
        """Give all of it back."""

    def close(self) -> None: ...


class Tmpfs:
    """Mounted over the folder. Raises OSError where that is not allowed."""

    environment: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        moved = folder.with_name("moved")
        folder.rename(moved)
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"no tmpfs can be mounted: {done.stderr.strip()}")
        except OSError:
            folder.rmdir()
            moved.rename(folder)
            raise
        shutil.copytree(moved, folder, dirs_exist_ok=True)

    def leave(self, size: int) -> None:
        while True:
            self.give_back()
            free = os.statvfs(self._folder)
            try:
                with (self._folder / FILLER).open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - size, 1))
                return
            except OSError as error:  # the replica took some of it meanwhile
                if error.errno != errno.ENOSPC:
                    raise

    def give_back(self) -> None:
        (self._folder / FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


class Counted:
    """The shim's: a file says how many bytes the folder may have."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._space = folder.with_name("space")
        self.give_back()

    @property
    def environment(self) -> Mapping[str, str]:
        return preload.small(self._folder, self._space)

    def leave(self, size: int) -> None:
        files = [path.lstat() for path in self._folder.rglob("*") if path.is_file()]
        self._write(sum((found.st_size + 4095) // 4096 * 4096 for found in files) + size)

    def give_back(self) -> None:
        self._write(SIZE)

    def _write(self, size: int) -> None:
        draft = self._space.with_suffix(".new")
        draft.write_text(str(size))
        draft.rename(self._space)

    def close(self) -> None:
        """Nothing is left."""


class SmallDiskRealm(CrashingRealm):
    """The first replica's folder, register included, lies on a small disk: `disk`, once it is set up."""

    epochs_plan = Epochs(min_interval_ms=100, max_interval_ms=800, retry_interval_ms=200)
    storage = Storage(min_free_bytes=3_000_000, ballast_bytes=2_000_000)
    disk: SmallDisk | None = None

    def set_up(self) -> None:
        super().set_up()
        self.disk = self.new_disk()
        self.processes.variables[REPLICA] = self.disk.environment

    def new_disk(self) -> SmallDisk:
        """One under the first replica's folder."""
        try:
            return Tmpfs(self.replica)
        except OSError:
            return Counted(self.replica)

    def open(self) -> None:
        try:
            super().open()
        except BaseException:
            if self.disk is not None:  # nobody else will know that something is mounted
                self.disk.close()
            raise
