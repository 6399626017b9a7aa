"""The ceiling of the times that former lives signed: written ahead, and at the right moments."""

import random
from pathlib import Path

import pytest

from keyserver.lives import AHEAD_MS, Lives
from kv.interface import StorageError
from verifier.errors import ConfigError


async def test_whatever_was_signed_is_below_the_ceiling_of_the_next_life(
    tmp_path: Path, rng: random.Random
) -> None:
    path, signed = tmp_path / "ceiling", [0]
    assert Lives(path).former_ms == 0
    for _ in range(20):
        life = Lives(path)
        assert life.former_ms >= max(signed)
        for _ in range(5):  # a clock may go anywhere
            signed.append(rng.randrange(10**12))
            await life.cover(signed[-1])


async def test_the_ceiling_is_written_once_in_a_while(tmp_path: Path) -> None:
    path = tmp_path / "ceiling"
    life = Lives(path)
    await life.cover(1_000)
    written = path.stat().st_mtime_ns, path.read_bytes()
    await life.cover(1_000 + AHEAD_MS)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written
    await life.cover(1_001 + AHEAD_MS)
    assert path.read_bytes() != written[1]


async def test_a_ceiling_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        await Lives(tmp_path / "missing" / "ceiling").cover(1)


def test_a_ceiling_that_is_no_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ceiling").write_text("soon")
    with pytest.raises(ConfigError, match="does not hold a time"):
        Lives(tmp_path / "ceiling")
