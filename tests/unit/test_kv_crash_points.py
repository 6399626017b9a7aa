"""Crash points: a table that is true of the shipped code, and nothing at all unless armed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kv import crash_points

HOUSE = Path(__file__).resolve().parents[2]
ROOMS = ("keyserver", "kv", "replication", "verifier")
CALL = re.compile(r'crash_points\.reach\(\s*"(\w+)"')


class Ended(Exception):
    """Instead of the end of the process."""


def end() -> None:
    raise Ended


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    crash_points.arm("", end)


def test_every_point_is_reached_in_exactly_the_file_that_the_table_names() -> None:
    reached = [
        (name, path.relative_to(HOUSE).as_posix())
        for room in ROOMS
        for path in sorted((HOUSE / room).rglob("*.py"))
        for name in CALL.findall(path.read_text())
    ]
    assert sorted(reached) == sorted((name, point.file) for name, point in crash_points.POINTS.items())


def test_the_points_are_those_of_the_failure_catalogue() -> None:
    updates = range(1, 15)
    expected = [f"P{n}" for n in updates] + [f"S{n}" for n in range(1, 7)] + [f"V{n}" for n in range(1, 6)]
    assert list(crash_points.POINTS) == [*expected, "E1", "E2", "E3"]


def test_nothing_happens_while_nothing_is_armed() -> None:
    for name in crash_points.POINTS:
        crash_points.reach(name, end)


def test_an_armed_point_ends_the_process_at_the_visit_that_was_named() -> None:
    assert crash_points.arm("P11:3", end) == "P11"
    crash_points.reach("P11")
    crash_points.reach("P10")
    crash_points.reach("P11")
    with pytest.raises(Ended):
        crash_points.reach("P11")
    crash_points.reach("P11")


def test_what_must_come_before_the_end_is_done_only_then() -> None:
    done: list[int] = []
    crash_points.arm("P10:2", end)
    crash_points.reach("P10", lambda: done.append(1))
    assert done == []
    with pytest.raises(Ended):
        crash_points.reach("P10", lambda: done.append(2))
    assert done == [2]


@pytest.mark.parametrize("text", ["P15", "p11", "P11:", "P11:0", "P11:-1", "P11:x", "P11:1:2", ":1", " "])
def test_what_names_no_point_is_refused_with_the_names_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="P1, P2, P3"):
        crash_points.arm(text, end)
