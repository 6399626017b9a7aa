"""The seeded bugs, as data: file, words, other words, and the promise that must be found broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """`old` occurs exactly once in `file`. `invariants`: any of them may find it first."""

    name: str
    file: str
    old: str
    new: str
    what: str


BUGS: Sequence[Bug] = ()
