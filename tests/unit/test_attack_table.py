"""The attack table against the code in this process: every attack refused as written, its valid sibling
accepted."""

from collections import Counter
from pathlib import Path

import pytest
from attacks.surface import Surface
from attacks.surfaces import IN_PROCESS, LEAST, OVER_THE_WIRE
from attacks.table import Case, TableError, load_file, load_table

TABLE = load_table()


@pytest.mark.parametrize("case", [c for c in TABLE if c.surface in IN_PROCESS], ids=lambda case: case.id)
def test_the_attack_is_refused_and_its_valid_sibling_accepted(case: Case, tmp_path: Path) -> None:
    surface: Surface = IN_PROCESS[case.surface](tmp_path)
    refused = surface.rule(case.target, surface.make(case.input))
    assert refused.verdict == case.verdict, refused.text
    assert case.says in refused.text
    shown = refused.text.replace("alice@example.test.json", "")  # a user is told which of its own files it is
    assert "@example.test" not in shown, "a refusal repeats a user id"
    accepted = surface.rule(case.target, surface.make(case.sibling))
    assert accepted.verdict == case.accepted, accepted.text


def test_ids_are_unique_and_say_their_surface() -> None:
    assert [name for name, count in Counter(case.id for case in TABLE).items() if count > 1] == []
    assert [case.id for case in TABLE if not case.id.startswith(case.surface)] == []


def test_every_surface_has_its_cases() -> None:
    counts = Counter(case.surface for case in TABLE)
    assert counts.keys() == LEAST.keys() == {*IN_PROCESS, *OVER_THE_WIRE}
    assert {name: count for name, count in counts.items() if count < LEAST[name]} == {}
    assert len(TABLE) >= sum(LEAST.values()) >= 160


def test_an_attack_differs_from_its_sibling_and_so_do_their_verdicts() -> None:
    assert [case.id for case in TABLE if case.input == case.sibling or case.verdict == case.accepted] == []


def test_no_attack_is_written_twice() -> None:
    played = Counter((case.surface, case.target, repr(case.input)) for case in TABLE)
    assert [row for row, count in played.items() if count > 1] == []


@pytest.mark.parametrize("name", [*IN_PROCESS, *OVER_THE_WIRE])
def test_every_maker_and_every_judge_is_used(name: str) -> None:
    cases = [case for case in TABLE if case.surface == name]
    used = {f"make_{made.make}" for case in cases for made in (case.input, case.sibling)}
    used |= {f"judge_{case.target}" for case in cases}
    surface = IN_PROCESS.get(name) or OVER_THE_WIRE[name]
    assert surface.parts() <= used


@pytest.mark.parametrize(
    "text",
    [
        '[[case]]\nid = "a"',
        "[other]\n",
        'x = 1\n[[case]]\nid = "a"',
    ],
)
def test_a_table_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "vrf.toml"
    path.write_text(text)
    with pytest.raises(TableError):
        load_file(path)


ROW = """[[case]]
id = "a"
attack = "b"
target = "c"
input = { make = "d" }
verdict = "e"
sibling = { make = "f", count = 2 }
accepted = "g"
"""


def test_a_row_is_read_as_written_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vrf.toml"
    path.write_text(ROW)
    (case,) = load_file(path)
    assert (case.surface, case.sibling.make, case.sibling.parameters) == ("vrf", "f", {"count": 2})
    for bad in (ROW + 'note = "x"\n', ROW.replace('make = "d"', ""), ROW.replace('"e"', "3")):
        path.write_text(bad)
        with pytest.raises(TableError):
            load_file(path)
