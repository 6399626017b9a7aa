"""Flipped bits, cut and missing files, everywhere on the disk of a replica and of a verifier: a copy damaged
like that gives the same answers, or refuses and says which part it is about. Never another answer.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from on_disk import Answers, ReplicaFolder, ask_everything, differences, fill
from on_disk.damage import UNREAD, copied, cut, flip, remove

from keyserver.data_directory import LostTail
from keyserver.machine.codes import Halt
from keyserver.run import Parts
from keyserver.testing import Person, small_realm
from kv.interface import StorageError, StorageInUse
from verifier.errors import E2eksError

SMALL = small_realm()
PEOPLE = 5
LIVES = 3  # each ends with what it wrote in the journal of its databases; the next start makes tables of it
PARTS = {
    "WAL": "data/db/*.log",
    "table": "data/db/*.ldb",
    "MANIFEST": "data/db/MANIFEST-*",
    "CURRENT": "data/db/CURRENT",
    "log": "data/log/*",
    "register": "sign-once.register",
    "version": "data/VERSION",
}


@dataclass(frozen=True)
class Kept:
    """A replica's folder that nobody touches, and what it answers."""

    folder: ReplicaFolder
    people: list[Person]
    epochs: list[int]
    answers: Answers

    def ask(self, folder: ReplicaFolder) -> Answers:
        async def use(parts: Parts) -> Answers:
            return await ask_everything(parts, self.people, self.epochs)

        return folder.run(use)

    def files(self, part: str) -> list[Path]:
        """Files of a part, relative to the folder."""
        found = sorted(self.folder.path.glob(PARTS[part]))
        return [path.relative_to(self.folder.path) for path in found if path.name not in UNREAD]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    place = tmp_path_factory.mktemp("kept")
    folder = ReplicaFolder(place / "replica", SMALL)
    folder.create()
    people = [Person.named(f"p{number}", SMALL) for number in range(PEOPLE)]
    for _ in range(LIVES):  # the last of the people never registers
        state = folder.run(lambda parts: fill(parts, people[:-1], 2))
    newest = int(state["epoch"])
    still = replace(folder, now_ms=int(state["issue time"]) + 1)
    found = Kept(still, people, [0, 1, newest // 2, newest], {})
    asked = copy_of(found, place / "asked")  # opening moves what is in journals to tables
    return replace(found, answers=found.ask(asked))


def copy_of(kept: Kept, place: Path) -> ReplicaFolder:
    return replace(kept.folder, path=copied(kept.folder.path, place))


def judge(kept: Kept, folder: ReplicaFolder, what: str) -> str:
    """Ask a damaged copy: "same", or the words with which it refused. Other answers are an AssertionError."""
    try:
        answers = kept.ask(folder)
    except StorageInUse:  # it was not judged at all
        raise
    except (StorageError, Halt, E2eksError) as error:
        text = str(error)
        is_named = str(folder.path) in text or isinstance(error, LostTail)
        assert is_named, f"{what}: {text!r}"
        return text
    finally:
        shutil.rmtree(folder.path)
    wrong = differences(kept.answers, answers)
    assert not wrong, f"{what}: other answers: {wrong}"
    return "same"


def test_an_undamaged_copy_answers_the_same(kept: Kept, tmp_path: Path) -> None:
    assert judge(kept, copy_of(kept, tmp_path / "copy"), "nothing") == "same"
    assert len(set(kept.answers.values())) > PEOPLE


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_is_never_another_answer(
    kept: Kept, tmp_path: Path, rng: random.Random, count: Callable[[int], int], part: str
) -> None:
    refused = 0
    for _ in range(count(25)):
        folder = copy_of(kept, tmp_path / "copy")
        what = flip(folder.path / rng.choice(kept.files(part)), rng)
        refused += judge(kept, folder, what) != "same"
    print(f"{refused} refused")


@pytest.mark.parametrize("part", PARTS)
def test_a_cut_file_is_never_another_answer(
    kept: Kept, tmp_path: Path, rng: random.Random, count: Callable[[int], int], part: str
) -> None:
    for _ in range(count(5)):
        folder = copy_of(kept, tmp_path / "copy")
        judge(kept, folder, cut(folder.path / rng.choice(kept.files(part)), rng))


def test_a_batch_that_was_torn_off_is_made_again(kept: Kept, tmp_path: Path) -> None:
    """The end of the last one, which LevelDB takes for one that was being written: a signature of a head."""
    (journal,) = kept.files("WAL")
    for _ in range(5):  # whether it is signed again before it is found in the log is the machine's
        folder = copy_of(kept, tmp_path / "copy")
        with (folder.path / journal).open("r+b") as file:
            file.truncate(file.seek(0, 2) - 1)
        assert judge(kept, folder, "the last byte of the journal") == "same"


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_never_another_answer(kept: Kept, tmp_path: Path, part: str) -> None:
    for file in kept.files(part):
        folder = copy_of(kept, tmp_path / "copy")
        judge(kept, folder, remove(folder.path / file, random.Random(0)))


@pytest.mark.parametrize("lost", ["data", "data/db", "data/log"])
def test_a_missing_folder_is_never_begun_anew(kept: Kept, tmp_path: Path, lost: str) -> None:
    folder = copy_of(kept, tmp_path / "copy")
    shutil.rmtree(folder.path / lost)
    assert judge(kept, folder, f"{lost} removed") != "same"
