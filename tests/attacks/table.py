"""Rows of the attack table: read, checked for shape, never interpreted here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "table"
REQUIRED = {"id", "attack", "target", "input", "verdict", "sibling", "accepted"}
OPTIONAL = {"says"}


class TableError(Exception):
    """A row that is none."""


@dataclass(frozen=True, slots=True)
class Input:
    """What a surface makes: the maker's name and its parameters."""

    make: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One row. `target` judges both inputs: the attack gets `verdict`, its valid sibling `accepted`.

    `says` is what the text of the refusal must contain: what was compared, or what to do.
    """

    id: str
    surface: str
    attack: str
    target: str
    input: Input
    verdict: str
    sibling: Input
    accepted: str
    says: str = ""


def load_table(folder: Path = FOLDER) -> tuple[Case, ...]:
    """All rows, file by file. Raises TableError."""
    return tuple(case for path in sorted(folder.glob("*.toml")) for case in load_file(path))


def load_file(path: Path) -> tuple[Case, ...]:
    """The rows of one surface: the file's name is the surface's. Raises TableError."""
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    if tree.keys() != {"case"}:
        raise TableError(f"{path.name} holds something else than cases")
    return tuple(_case(path.stem, row) for row in tree["case"])


def _case(surface: str, row: dict[str, Any]) -> Case:
    name = f"{surface}: {row.get('id', 'a row without id')}"
    if not row.keys() >= REQUIRED or not row.keys() <= REQUIRED | OPTIONAL:
        raise TableError(f"{name} lacks {REQUIRED - row.keys()} or has {row.keys() - REQUIRED - OPTIONAL}")
    made = {side: _input(name, row.pop(side)) for side in ("input", "sibling")}
    if not all(isinstance(value, str) for value in row.values()):
        raise TableError(f"{name} has a value that is no text")
    return Case(surface=surface, input=made["input"], sibling=made["sibling"], **row)


def _input(name: str, written: dict[str, Any]) -> Input:
    """`{ hex = "…" }` stands for the bytes themselves."""
    if written.keys() == {"hex"}:
        return Input("bytes", {"text": written["hex"]})
    if not isinstance(written.get("make"), str):
        raise TableError(f"{name} has an input without maker")
    return Input(written["make"], {key: value for key, value in written.items() if key != "make"})
