"""A faulty disk for one process, and what its failure leaves behind. Needs gcc."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

SOURCE = Path(__file__).with_name("faulty_disk.c")
FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-ldl", "-lpthread")


@cache
def library() -> Path:
    """The compiled shim, made once."""
    target = Path(mkdtemp(prefix="faulty-disk-")) / "faulty_disk.so"
    subprocess.run(["gcc", "-o", str(target), str(SOURCE), *FLAGS], check=True, stdin=subprocess.DEVNULL)
    return target


def failing(root: Path, number: int, struck: Path) -> dict[str, str]:
    """The environment of a process whose sync with this number fails; `struck` is made when it did."""
    return {**_on(root), "E2EKS_DISK_FAIL": str(number), "E2EKS_DISK_STRUCK": str(struck)}


def small(root: Path, space: Path) -> dict[str, str]:
    """The environment of a process that may have as many bytes in `root` as the file `space` says."""
    return {**_on(root), "E2EKS_DISK_SPACE": str(space)}


def _on(root: Path) -> dict[str, str]:
    return {"LD_PRELOAD": str(library()), "E2EKS_DISK_ROOT": str(root)}


@dataclass(frozen=True)
class ForgetfulDisk:
    """A folder of which only what was synced outlives a kill. `kept` is a new, empty folder beside it."""

    root: Path
    kept: Path

    def environment(self, kill_at: int = 0) -> dict[str, str]:
        """Of the process that works on the disk, killed at its sync with this number (0: not)."""
        kill = {"E2EKS_DISK_KILL": str(kill_at)} if kill_at else {}
        return {**_on(self.root), "E2EKS_DISK_KEEP": str(self.kept), **kill}

    def lose_power(self, rng: random.Random) -> str:
        """Leave in the folder what a power failure may leave; says what was lost.

        Names change in order, so they are as of the last sync or as of now. Contents are those of a file's
        last sync, with any part of what was appended since.
        """
        names = self._synced_names()
        later = {path: path.stat().st_ino for path in _files(self.root)}
        forgotten_names = names != later and rng.random() < 0.5
        contents = {
            path: self._survivor(inode, path, rng)
            for path, inode in (names if forgotten_names else later).items()
        }
        modes = {path: path.stat().st_mode & 0o777 for path in later}
        lost = 0
        for path in later:
            lost += max(path.stat().st_size - len(contents.get(path, b"")), 0)
            path.unlink()
        for path, data in contents.items():
            path.write_bytes(data)
            path.chmod(modes.get(path, 0o600))
        return f"lost {lost} bytes" + (" and the newest names" if forgotten_names else "")

    def _synced_names(self) -> dict[Path, int]:
        lines = (self.kept / "names").read_text().splitlines()
        return {self.root / path: int(inode) for inode, _, path in (line.partition(" ") for line in lines)}

    def _survivor(self, inode: int, path: Path, rng: random.Random) -> bytes:
        kept, held = self.kept / str(inode), self.kept / f"{inode}.held"
        synced = kept.read_bytes() if kept.exists() else b""
        newest = held if held.exists() else path
        now = newest.read_bytes() if newest.exists() and newest.stat().st_ino == inode else b""
        if not now.startswith(synced):
            return rng.choice((synced, now))
        return now[: rng.choice((len(synced), rng.randint(len(synced), len(now))))]


def _files(folder: Path) -> list[Path]:
    return [
        Path(where) / name
        for where, _, names in os.walk(folder)
        for name in names
        if (Path(where) / name).is_file()
    ]
