"""tests/README.md says which test holds which promise: each test it names exists, each promise has a row."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
README = (TESTS / "README.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`([\w./]+\.py)::(\w+)`")
TABLE_ROW = re.compile(r"^\| (?!---)(.*) \|$", re.MULTILINE)


@cache
def functions(file: Path) -> frozenset[str]:
    """Names of all functions in a file, methods included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def find(name: str) -> Path:
    """The one file that the README means: a path from tests/, or a name that is there once."""
    if "/" in name:
        return (TESTS / name).resolve()
    (found,) = TESTS.rglob(name)
    return found


def section(title: str) -> str:
    """The part of the README below a heading."""
    return README.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> Iterator[list[str]]:
    """The cells of each row of a section's table, without its heading."""
    found = [row.split(" | ") for row in TABLE_ROW.findall(section(title))]
    yield from found[1:]


@pytest.mark.parametrize("name", sorted({file for file, _ in NAMED.findall(README)}))
def test_every_test_named_exists(name: str) -> None:
    named = {function for file, function in NAMED.findall(README) if file == name}
    assert named - functions(find(name)) == set()


def test_every_defect_and_scenario_has_a_test_an_issue_or_a_reason() -> None:
    numbers = [int(cells[0]) for cells in rows("The ancestor's defects")]
    assert numbers == list(range(1, 20))
    scenarios = list(rows("The ancestor's scenarios"))
    assert len(scenarios) >= 44
    for cells in [*rows("The ancestor's defects"), *scenarios]:
        says = cells[-1]
        assert NAMED.search(says) or re.search(r"issue \d|later, |nothing converts", says), cells


def test_every_law_names_a_test_that_accepts_and_one_that_refuses() -> None:
    laws = list(rows("The laws of the contract"))
    assert len(laws) >= 55
    for law, accepts, refuses in laws:
        assert NAMED.search(accepts), law
        assert NAMED.search(refuses) or refuses.endswith("(later)"), law


def test_every_exit_code_names_a_test() -> None:
    codes = list(rows("Exit codes"))
    assert [int(cells[0].split()[0]) for cells in codes] == list(range(10))
    for cells in codes:
        assert NAMED.search(cells[1]), cells
