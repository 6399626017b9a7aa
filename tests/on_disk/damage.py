"""What happens to files at rest; each says what it did."""

from __future__ import annotations

import random
from pathlib import Path

UNREAD = {"LOCK", "LOG", "LOG.old"}  # LevelDB's own words, which nothing depends on


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
