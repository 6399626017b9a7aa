"""What happens to files at rest; each says what it did."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

UNREAD = {"LOCK", "LOG", "LOG.old"}  # LevelDB's own words, which nothing depends on

_COPIES = itertools.count()


def copied(source: Path, place: Path) -> Path:
    """A copy beside `place`, where none ever was: one that was refused half-way stays locked for a while."""
    place = place.with_name(f"{place.name}-{next(_COPIES)}")
    return shutil.copytree(source, place, ignore=shutil.ignore_patterns("LOCK"))


def flip(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"a bit of byte {place} of {len(data)} of {path.name}"


def cut(path: Path, rng: random.Random) -> str:
    size = path.stat().st_size
    left = rng.randrange(size)
    with path.open("r+b") as file:
        file.truncate(left)
    return f"{path.name} cut from {size} to {left} bytes"


def remove(path: Path, _: random.Random) -> str:
    path.unlink()
    return f"{path.name} removed"
