"""Flipped bits, cut and missing files of a verifier: a damaged copy makes the same ratifications, to the last
byte, once it has caught up; or it refuses to start. It never signs anew what it signed before.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from on_disk.damage import UNREAD, copied, cut, flip, remove
from streams.build import START_MS, Stream
from streams.folder import OpenVerifier, VerifierFolder

from kv.interface import StorageError, StorageInUse
from verifier.daemon.failures import Quarantined
from verifier.daemon.outbox import Ready, served_head
from verifier.daemon.state import load_state, owed_epochs
from verifier.daemon.step import apply_message

EPOCHS = 4  # of each life
LIVES = 3
PARTS = {
    "WAL": "data/*.log",
    "table": "data/*.ldb",
    "MANIFEST": "data/MANIFEST-*",
    "CURRENT": "data/CURRENT",
    "register": "sign-once.register",
}
LATER_MS = START_MS + 3_600_000  # a signature made anew would show in its time


@dataclass(frozen=True)
class Kept:
    """A verifier's folder that nobody touches, the log it follows, and the heads it serves."""

    folder: VerifierFolder
    stream: Stream
    served: tuple[bytes | None, ...]

    def files(self, part: str) -> list[Path]:
        found = sorted(self.folder.path.glob(PARTS[part]))
        return [path.relative_to(self.folder.path) for path in found if path.name not in UNREAD]


def live(folder: VerifierFolder, stream: Stream, now_ms: int) -> tuple[bytes | None, ...]:
    """One life of a verifier: catch up, ratify what is owed; every head it then serves. Raises as it does."""
    with OpenVerifier(folder, now_ms=now_ms) as opened:
        realm = opened.config.realm
        while (state := load_state(opened.store, realm)).next_index <= len(stream.steps):
            outcome = apply_message(opened.store, realm, state, stream.message(state.next_index))
            assert outcome.stop is None
            opened.store.write(outcome.writes)
        for epoch in owed_epochs(opened.store, 1000):
            assert isinstance(opened.outbox.ratify(epoch), Ready)
            opened.outbox.settle(epoch)
        return tuple(served_head(opened.store, realm, n + 1) for n in range(len(stream.heads)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    stream = Stream().grow(1)
    folder = VerifierFolder.make(tmp_path_factory.mktemp("kept") / "v0", stream.realm)
    served: tuple[bytes | None, ...] = ()
    for _ in range(LIVES):
        stream = stream.grow(EPOCHS)
        served = live(folder, stream, stream.chain.issue_time_ms)
    assert None not in served
    return Kept(folder, stream, served)


def copy_of(kept: Kept, place: Path) -> VerifierFolder:
    return replace(kept.folder, path=copied(kept.folder.path, place))


def judge(kept: Kept, folder: VerifierFolder, what: str) -> str:
    """Let a damaged copy live: "same", or the words with which it refused."""
    try:
        served = live(folder, kept.stream, LATER_MS)
    except StorageInUse:  # it was not judged at all
        raise
    except (StorageError, Quarantined) as error:
        text = str(error)
        assert str(folder.path) in text or "database" in text or "register" in text, f"{what}: {text!r}"
        return text
    finally:
        shutil.rmtree(folder.path)
    assert served == kept.served, f"{what}: other ratifications"
    return "same"


def test_an_undamaged_copy_serves_the_same(kept: Kept, tmp_path: Path) -> None:
    assert judge(kept, copy_of(kept, tmp_path / "copy"), "nothing") == "same"


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_is_never_another_ratification(
    kept: Kept, tmp_path: Path, rng: random.Random, count: Callable[[int], int], part: str
) -> None:
    refused = 0
    for _ in range(count(25)):
        folder = copy_of(kept, tmp_path / "copy")
        what = flip(folder.path / rng.choice(kept.files(part)), rng)
        refused += judge(kept, folder, what) != "same"
    print(f"{refused} refused")


@pytest.mark.parametrize("part", PARTS)
def test_a_cut_file_is_never_another_ratification(
    kept: Kept, tmp_path: Path, rng: random.Random, count: Callable[[int], int], part: str
) -> None:
    for _ in range(count(10)):
        folder = copy_of(kept, tmp_path / "copy")
        judge(kept, folder, cut(folder.path / rng.choice(kept.files(part)), rng))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_never_another_ratification(kept: Kept, tmp_path: Path, part: str) -> None:
    for file in kept.files(part):
        folder = copy_of(kept, tmp_path / "copy")
        judge(kept, folder, remove(folder.path / file, random.Random(0)))
