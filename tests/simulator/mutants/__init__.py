"""Seeded bugs: each a few words of a shipped file put differently. A run with one of them must be caught."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

from simulator.mutants.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def bug(name: str) -> Bug:
    """The seeded bug of that name. Raises KeyError."""
    return {one.name: one for one in BUGS}[name]


def mutated(one: Bug) -> str:
    """The source of the bug's file, with the bug. Raises ValueError unless its words occur exactly once."""
    source = (ROOT / one.file).read_text(encoding="utf-8")
    if source.count(one.old) != 1:
        raise ValueError(f"{one.name}: its words occur {source.count(one.old)} times in {one.file}")
    return source.replace(one.old, one.new)


def apply(name: str) -> None:
    """Let this process import the file with the bug. Call it BEFORE anything of the house is imported."""
    one = bug(name)
    module = one.file.removesuffix(".py").replace("/", ".")
    if module in sys.modules:
        raise RuntimeError(f"{module} was imported already")
    sys.meta_path.insert(0, _Finder(module, mutated(one)))


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
