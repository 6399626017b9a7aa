"""Logs of every rules level, kept as they were written: what was decided once is decided so for ever.

`levels/N.entries` is a log of level N (the form of `workload.replay`), `levels/N.txt` its verdicts, digests
and heads. These files are never written anew. A change that this test refuses needs a new level; the log of
a new level is added when its first version is released: `save` and `lines_of` of `workload.replay` make it.
"""

from pathlib import Path

import pytest
from replayer.replay import Replayer
from workload.replay import load, replay

from keyserver.machine.rules import LEVELS
from verifier import limits
from verifier.realm import realm_message

FOLDER = Path(__file__).parent / "levels"


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_a_log_of_the_level_replays_to_what_it_was(level: int) -> None:
    machine, log = load(FOLDER / f"{level}.entries")
    expected = (FOLDER / f"{level}.txt").read_text(encoding="ascii").splitlines()
    assert replay(machine, log) == expected
    naive = Replayer(realm_message(machine.realm), machine.min_epoch_interval_ms)
    for payload, line in zip(log, expected, strict=False):
        naive.replay(payload)
        assert naive.digest.hex() == line.split()[-1]


def test_every_level_that_is_known_has_its_log_and_verifiers_know_it() -> None:
    assert {path.stem for path in FOLDER.glob("*.entries")} == {str(level) for level in LEVELS}
    assert max(LEVELS) == limits.RULES
