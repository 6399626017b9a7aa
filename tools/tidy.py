"""The style of the house that no ready-made linter knows, as tables of rules.

A rule looks at one module (or at the house as a whole) and yields findings; it never fixes anything.
Every rule has a failing sample in tests/unit/test_tools_tidy.py.
What may import what is the import contracts' business (pyproject.toml), except for third-party packages:
the table CONFINED says which files may name them at all.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from set_order import FUNCTION, walks_over_sets

FUNCTION_LINES_MAX = 70  # what fits on a screen
FILE_LINES_MAX = 400
ROOMS = ("keyserver", "replication", "kv", "verifier")
PYTHON_FOLDERS = (*ROOMS, "tools", "tests")
TEXT_FOLDERS = (*PYTHON_FOLDERS, "proto", "docs", "requirements", ".ci")
TEXT_SUFFIXES = frozenset({"", ".md", ".proto", ".py", ".sh", ".toml", ".txt"})
GENERATED = ("*_pb2.py", "*_pb2.pyi")

PURE = (
    "kv/interface.py",
    "kv/keys.py",
    "kv/memory.py",
    "kv/overlay.py",
    "kv/tables.py",
    "verifier/*.py",
    "verifier/crypto/*.py",
    "verifier/merkle/*.py",
    "verifier/daemon/state.py",
    "verifier/daemon/step.py",
    "keyserver/machine/*.py",
    "keyserver/operations/*.py",
    "replication/chain.py",
    "replication/etcd/keyspace.py",
    "replication/etcd/space.py",
    "replication/raft/codec.py",
    "replication/raft/driver.py",
    "replication/raft/elections.py",
    "replication/raft/engine.py",
    "replication/raft/events.py",
    "replication/raft/frames.py",
    "replication/raft/journal.py",
    "replication/raft/messages.py",
    "replication/raft/progress.py",
    "replication/raft/proposals.py",
    "replication/raft/rows.py",
    "replication/rows.py",
    "replication/stored.py",
)
ACTING = (
    "verifier/config_file.py",
    "verifier/files.py",
    "verifier/renewing.py",
    "verifier/signonce.py",
    "*/testing.py",
)  # inside a pure glob, yet not pure
TOOLS_AND_TESTS = ("tools/**", "tests/**")
CALLED_TO_ACT = (*TOOLS_AND_TESTS, "*/testing.py", "keyserver/cli/commands.py", "keyserver/demo/**")
CLOCKS = (
    *CALLED_TO_ACT,
    "keyserver/*.py",
    "keyserver/admission/*.py",
    "keyserver/cli/*.py",
    "keyserver/copies/*.py",
    "keyserver/frontends/*.py",
    "keyserver/installation/*.py",
    "keyserver/peers/*.py",
    "verifier/client/**",
    "verifier/daemon/evidence.py",
    "verifier/daemon/outbox.py",
    "verifier/daemon/run.py",
)
DICE = (*CLOCKS, "replication/*.py", "replication/raft/log.py")

NAMES_THAT_SAY_NOTHING = frozenset({"base", "common", "helpers", "manager", "misc", "util", "utils"})
BANNED_MARKS = tuple("".join(halves) for halves in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("HA", "CK")))
HOME_FOLDER = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")


@dataclass(frozen=True, slots=True)
class Ban:
    """A call that only some files may make."""

    call: str  # dotted, as after resolving imports; "random.*" is any call below it
    allowed: tuple[str, ...]
    why: str


BANS = (
    Ban("print", TOOLS_AND_TESTS, "data goes to stdout through click.echo, the rest to the log"),
    Ban("time.time", CLOCKS, "time is a parameter outside the edges"),
    Ban("time.time_ns", CLOCKS, "time is a parameter outside the edges"),
    Ban("datetime.datetime.now", CLOCKS, "time is a parameter outside the edges"),
    Ban("datetime.datetime.utcnow", (), "it is naive"),
    Ban(
        "time.sleep",
        ("tools/**", "keyserver/demo/**", "verifier/client/**"),
        "wait for the thing itself, with a deadline",
    ),
    Ban("random.*", DICE, "randomness is a parameter outside the edges"),
    Ban("pickle.*", (), "it runs what strangers send"),
    Ban("*patch.dict", (), "of os.environ it frees what threads of C read"),
    Ban(
        "os._exit", ("tests/**", "keyserver/signals.py", "verifier/daemon/run.py"), "one place ends a process"
    ),
)
PURE_BANS = (
    Ban("hash", (), "it differs from process to process"),
    Ban("id", (), "it differs from process to process"),
    Ban("open", (), "pure rooms do no IO"),
    Ban("input", (), "pure rooms do no IO"),
)

# Third-party packages and the only files of the rooms that may name them.
CONFINED: Mapping[str, tuple[str, ...]] = {
    "anycorn": ("keyserver/*.py", "keyserver/frontends/*.py"),
    "asyncio": ("keyserver/frontends/*.py", "verifier/daemon/*.py"),
    "click": ("keyserver/cli/*.py", "keyserver/demo/*.py", "verifier/client/*.py", "verifier/daemon/*.py"),
    "cryptography": ("keyserver/*.py", "keyserver/*/*.py", "verifier/client/*.py", "verifier/daemon/*.py"),
    "grpc": (
        "keyserver/*.py",
        "keyserver/frontends/*.py",
        "keyserver/demo/*.py",
        "keyserver/peers/*.py",
        "replication/etcd/*.py",
        "verifier/client/*.py",
        "verifier/daemon/*.py",
        "verifier/renewing.py",
    ),
    "msgspec": (
        "keyserver/*.py",
        "keyserver/copies/*.py",
        "keyserver/demo/*.py",
        "verifier/config_file.py",
        "verifier/daemon/*.py",
    ),
    "nacl": ("verifier/crypto/*.py",),
    "plyvel": ("kv/leveldb.py",),
    "pytest": (),  # */testing.py may name any of these
    "prometheus_client": ("keyserver/*.py", "keyserver/frontends/*.py", "verifier/daemon/*.py"),
    "starlette": ("keyserver/frontends/*.py",),
    "structlog": (
        "keyserver/*.py",
        "keyserver/*/*.py",
        "kv/free_space.py",
        "replication/etcd/*.py",
        "verifier/daemon/*.py",
    ),
    "tests": (),
    "tools": (),
    "trio": (
        "keyserver/*.py",
        "keyserver/*/*.py",
        "replication/*.py",
        "replication/*/*.py",
        "verifier/daemon/*.py",
    ),
}

# What no pure room imports, directly; the import contracts see the indirect ways.
ACTS = frozenset(
    {"asyncio", "click", "grpc", "logging", "os", "plyvel", "random", "secrets", "shutil", "signal"}
)
ACTS |= {"socket", "ssl", "structlog", "subprocess", "sys", "tempfile", "threading", "time", "trio"}


class Finding(NamedTuple):
    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file: its path under the root with forward slashes, its text, its tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> "Module":
        return cls(path, text, ast.parse(text, path))

    @property
    def name(self) -> str:
        """The import name; a package is named without its __init__."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def in_room(self) -> bool:
        return self.path.partition("/")[0] in ROOMS

    def is_in(self, patterns: Iterable[str]) -> bool:
        return any(matches(self.path, pattern) for pattern in patterns)

    @property
    def is_pure(self) -> bool:
        return self.is_in(PURE) and not self.is_in(ACTING)


def matches(path: str, pattern: str) -> bool:
    """A glob that knows folders: `*` stays within one, a last `**` is everything below."""
    if pattern.endswith("/**"):
        return path.startswith(pattern.removesuffix("**"))
    parts, globs = path.split("/"), pattern.split("/")
    return len(parts) == len(globs) and all(map(fnmatch, parts, globs))


# --- what a name means --------------------------------------------------------------------------------------


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted origin, of every import in the module."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.partition(".")[0]
                names[local] = alias.name if alias.asname else local
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, names: Mapping[str, str]) -> str | None:
    """The dotted origin of a name or attribute chain, or None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}" if before else None
    return None


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported; `from a import b` gives a.b, be it a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


# --- rules over one module ----------------------------------------------------------------------------------


def long_functions(module: Module) -> Iterator[Finding]:
    for node in ast.walk(module.tree):
        if isinstance(node, FUNCTION):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                message = f"{node.name} has {lines} lines, {FUNCTION_LINES_MAX} fit on a screen"
                yield Finding(module.path, node.lineno, "long-function", message)


def long_file(module: Module) -> Iterator[Finding]:
    lines = module.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield Finding(module.path, lines, "long-file", f"{lines} lines, {FILE_LINES_MAX} at most")


def empty_name(module: Module) -> Iterator[Finding]:
    for part in module.name.split("."):
        if part in NAMES_THAT_SAY_NOTHING:
            yield Finding(module.path, 1, "empty-name", f"{part} does not say what lives here")


def package_docstring(module: Module) -> Iterator[Finding]:
    if module.in_room and module.path.endswith("/__init__.py") and len(module.tree.body) > 1:
        line = module.tree.body[1].lineno
        yield Finding(module.path, line, "package-docstring", "a docstring only: importing a room is free")


def file_docstring(module: Module) -> Iterator[Finding]:
    if module.in_room and ast.get_docstring(module.tree) is None:
        yield Finding(module.path, 1, "file-docstring", "the first lines say what may live here")


def banned_calls(module: Module) -> Iterator[Finding]:
    bans = (*BANS, *PURE_BANS) if module.is_pure else BANS
    names = imported_names(module.tree)
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or (called := dotted(node.func, names)) is None:
            continue
        for ban in bans:
            if fnmatch(called, ban.call) and not module.is_in(ban.allowed):
                yield Finding(module.path, node.lineno, "banned-call", f"{called}: {ban.why}")


def confined_imports(module: Module) -> Iterator[Finding]:
    for line, name in imported_modules(module.tree):
        package = name.partition(".")[0]
        if module.in_room and package in CONFINED and not module.is_in((*CONFINED[package], "*/testing.py")):
            yield Finding(module.path, line, "confined-import", f"{package} is not for this file (CONFINED)")


def set_iteration(module: Module) -> Iterator[Finding]:
    for line in walks_over_sets(module.tree) if module.is_pure else ():
        yield Finding(
            module.path, line, "set-iteration", "its order differs between processes: sort it first"
        )


def pure_imports(module: Module) -> Iterator[Finding]:
    for line, name in imported_modules(module.tree):
        if module.is_pure and name.partition(".")[0] in ACTS:
            yield Finding(module.path, line, "pure-import", f"{name} acts, and this room decides")


MODULE_RULES: tuple[Callable[[Module], Iterator[Finding]], ...] = (
    long_functions,
    long_file,
    empty_name,
    package_docstring,
    file_docstring,
    banned_calls,
    confined_imports,
    pure_imports,
    set_iteration,
)


# --- rules over any text, and over the house ----------------------------------------------------------------


def banned_text(path: str, text: str) -> Iterator[Finding]:
    marks = re.compile(r"\b(?:" + "|".join(BANNED_MARKS) + r")\b")
    for number, line in enumerate(text.splitlines(), 1):
        if found := marks.search(line):
            yield Finding(path, number, "banned-mark", f"{found[0]}: do it, or write it down as an issue")
        if HOME_FOLDER.search(line):
            yield Finding(path, number, "home-folder", "a path of somebody's machine")


def dead_modules(modules: Sequence[Module], entry_points: Iterable[str]) -> Iterator[Finding]:
    """Modules of the rooms that nobody imports and no command starts."""
    wanted = {name.partition(":")[0] for name in entry_points}
    for module in modules:
        for _, name in imported_modules(module.tree):
            wanted |= {name, name.rpartition(".")[0]} - {module.name}
    for module in modules:
        exempt = module.path.endswith(("/__init__.py", "/__main__.py", "/testing.py"))
        if module.in_room and not exempt and module.name not in wanted:
            yield Finding(module.path, 1, "dead-module", "nobody imports it")


# --- the house as it stands ---------------------------------------------------------------------------------


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of every file of the house that people write, in the order of their paths."""
    folders = [root / folder for folder in TEXT_FOLDERS]
    found = [path for folder in folders for path in folder.rglob("*")] + list(root.iterdir())
    for path in sorted(found):
        name = path.relative_to(root).as_posix()
        skipped = any(fnmatch(path.name, pattern) for pattern in GENERATED) or "/vectors/" in name
        if path.is_file() and path.suffix in TEXT_SUFFIXES and not skipped and path.name != "LICENSE":
            yield name, path.read_text(encoding="utf-8")


def findings(root: Path) -> list[Finding]:
    """Everything untidy below `root`."""
    files = list(texts(root))
    modules = [
        Module.parse(path, text)
        for path, text in files
        if path.endswith(".py") and path.partition("/")[0] in PYTHON_FOLDERS
    ]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [finding for path, text in files for finding in banned_text(path, text)]
    found += [finding for module in modules for rule in MODULE_RULES for finding in rule(module)]
    found += dead_modules(modules, project.get("scripts", {}).values())
    return sorted(found)


def main() -> int:
    found = findings(Path(__file__).resolve().parent.parent)
    for finding in found:
        print(finding, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
