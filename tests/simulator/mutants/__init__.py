"""Seeded bugs: each a few words of a shipped file put differently. A run with one of them must be caught."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent


@dataclass(frozen=True)
class Bug:
    """`old` occurs exactly once in `file`. `invariant` and `seed`: who found it, where; "" and -1: nobody."""

    name: str
    file: str
    what: str
    old: str
    new: str
    invariant: str = ""
    seed: int = -1


def bugs() -> dict[str, Bug]:
    """All seeded bugs by name."""
    table = tomllib.loads((HERE / "bugs.toml").read_text(encoding="utf-8"))
    return {row["name"]: Bug(**row) for row in table["bug"]}


def mutated(bug: Bug) -> str:
    """The source of the bug's file, with the bug. Raises ValueError unless its words occur exactly once."""
    source = (ROOT / bug.file).read_text(encoding="utf-8")
    if source.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: its words occur {source.count(bug.old)} times in {bug.file}")
    return source.replace(bug.old, bug.new)


def apply(name: str) -> None:
    """Let this process import the file with the bug. Call it BEFORE anything of the house is imported."""
    bug = bugs()[name]
    module = bug.file.removesuffix(".py").replace("/", ".")
    if module in sys.modules:
        raise RuntimeError(f"{module} was imported already")
    sys.meta_path.insert(0, _Finder(module, mutated(bug)))


@dataclass(frozen=True)
class _Finder(MetaPathFinder):
    module: str
    source: str

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self.source)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)
