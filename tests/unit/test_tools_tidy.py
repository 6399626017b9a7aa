"""Each rule of tools/tidy.py finds its failing sample, and leaves its lawful twin alone."""

from pathlib import Path

import pytest
import tidy

DOC = '"""Law."""\n'
LONG_BODY = "def long():\n" + "    pass\n" * 70
SHORT_BODY = "def short():\n" + "    pass\n" * 69

# rule, path, failing text, lawful text
SAMPLES = [
    ("long-function", "kv/a.py", DOC + LONG_BODY, DOC + SHORT_BODY),
    ("long-file", "kv/a.py", DOC + "x = 1\n" * 400, DOC + "x = 1\n" * 399),
    ("package-docstring", "kv/__init__.py", DOC + "import kv.keys\n", DOC),
    ("file-docstring", "kv/__init__.py", "", DOC),
    ("file-docstring", "kv/a.py", "x = 1\n", DOC + "x = 1\n"),
    ("banned-call", "kv/a.py", DOC + "print(1)\n", DOC + "printed(1)\n"),
    ("banned-call", "kv/a.py", DOC + "import time\ntime.time()\n", DOC + "import time\ntime.monotonic()\n"),
    (
        "banned-call",
        "kv/a.py",
        DOC + "from time import time as t\nt()\n",
        DOC + "from a import time\ntime()\n",
    ),
    ("banned-call", "kv/a.py", DOC + "from datetime import datetime\ndatetime.now()\n", DOC + "now()\n"),
    ("banned-call", "kv/a.py", DOC + "import datetime\ndatetime.datetime.now()\n", DOC + "now()\n"),
    ("banned-call", "kv/a.py", DOC + "import random\nrandom.random()\n", DOC + "rng.random()\n"),
    ("banned-call", "tests/unit/test_a.py", "import time\ntime.sleep(1)\n", "import time\ntime.time()\n"),
    (
        "banned-call",
        "tests/unit/test_a.py",
        "from unittest.mock import patch\nwith patch.dict(os.environ, {}): pass\n",
        "from unittest.mock import patch\nwith patch('a.b'): pass\n",
    ),
    ("banned-call", "verifier/a.py", DOC + "hash(b'')\n", DOC + "hashed(b'')\n"),
    ("confined-import", "kv/a.py", DOC + "import plyvel\n", DOC + "import kv.leveldb\n"),
    ("confined-import", "kv/a.py", DOC + "from grpc import aio\n", DOC + "from kv import keys\n"),
    ("confined-import", "verifier/lookup.py", DOC + "import nacl.bindings\n", DOC + "import hashlib\n"),
    ("confined-import", "kv/a.py", DOC + "import tools.tidy\n", DOC + "import toolshed\n"),
    ("pure-import", "verifier/a.py", DOC + "import os.path\n", DOC + "import hmac\n"),
    ("pure-import", "keyserver/machine/a.py", DOC + "from time import monotonic\n", DOC + "import enum\n"),
    ("set-iteration", "verifier/a.py", DOC + "for x in {1, 2}: pass\n", DOC + "for x in (1, 2): pass\n"),
    (
        "set-iteration",
        "verifier/a.py",
        DOC + "def f(k: set[int]): return [*k]\n",
        DOC + "def f(k: list[int]): return [*k]\n",
    ),
    (
        "set-iteration",
        "verifier/a.py",
        DOC + "b = {1} | c\nd = [x for x in b]\n",
        DOC + "b = {1} | c\nd = {x for x in b}\n",
    ),
    (
        "set-iteration",
        "verifier/a.py",
        DOC + "b = set(c)\nd = tuple(b)\n",
        DOC + "b = set(c)\nd = sorted(b)\n",
    ),
    ("set-iteration", "verifier/a.py", DOC + "d = ''.join({c})\n", DOC + "d = ''.join([c])\n"),
    (
        "set-iteration",
        "verifier/a.py",
        DOC + "b = {1}\nd = [f(x) for x in b]\n",
        DOC + "b = {1}\nd = any(f(x) for x in b)\n",
    ),
]


def rules_broken(path: str, text: str) -> set[str]:
    module = tidy.Module.parse(path, text)
    return {finding.rule for rule in tidy.MODULE_RULES for finding in rule(module)}


@pytest.mark.parametrize(("rule", "path", "failing", "lawful"), SAMPLES)
def test_rule_finds_its_sample_and_spares_the_lawful_twin(
    rule: str, path: str, failing: str, lawful: str
) -> None:
    assert rules_broken(path, failing) == {rule}
    assert rules_broken(path, lawful) == set()


@pytest.mark.parametrize("name", ["utils", "common", "manager", "helpers"])
def test_names_that_say_nothing(name: str) -> None:
    assert rules_broken(f"kv/{name}.py", DOC) == {"empty-name"}
    assert rules_broken(f"kv/{name}/keys.py", DOC) == {"empty-name"}


@pytest.mark.parametrize(
    "path", ["keyserver/run.py", "verifier/client/pins.py", "verifier/daemon/run.py", "tests/unit/test_a.py"]
)
def test_edges_read_clocks(path: str) -> None:
    assert rules_broken(path, DOC + "import time\ntime.time()\n") == set()


@pytest.mark.parametrize(
    "path", ["verifier/policy.py", "keyserver/machine/step.py", "verifier/daemon/step.py", "kv/overlay.py"]
)
def test_pure_rooms_are_recognised(path: str) -> None:
    assert tidy.Module.parse(path, DOC).is_pure


@pytest.mark.parametrize(
    "path", ["verifier/signonce.py", "verifier/client/client.py", "verifier/daemon/run.py", "kv/leveldb.py"]
)
def test_rooms_that_act_are_not_pure(path: str) -> None:
    assert not tidy.Module.parse(path, DOC).is_pure


def test_marks_and_home_folders_in_any_text() -> None:
    mark = tidy.BANNED_MARKS[0]
    home = "/" + "home" + "/someone/file"
    found = [finding.rule for finding in tidy.banned_text("docs/a.md", f"one\n{mark}: two\nsee {home}\n")]
    assert found == ["banned-mark", "home-folder"]
    assert list(tidy.banned_text("docs/a.md", f"{mark}NT ~/file https://x.org/home/a\n")) == []


def test_dead_module_is_one_that_nobody_imports_and_no_command_starts() -> None:
    sources = {
        "kv/used.py": DOC,
        "kv/dead.py": DOC + "import kv.dead\n",
        "kv/testing.py": DOC,
        "kv/__init__.py": DOC,
        "kv/cli.py": DOC + "from kv import used\n",
        "kv/named.py": DOC,
        "tests/unit/test_named.py": "from kv.named import thing\n",
    }
    modules = [tidy.Module.parse(path, text) for path, text in sources.items()]
    assert [finding.path for finding in tidy.dead_modules(modules, ["kv.cli:main"])] == ["kv/dead.py"]


def test_findings_reads_a_whole_house_and_spares_generated_code(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    (tmp_path / "proto").mkdir()
    (tmp_path / "proto" / "a_pb2.py").write_text(tidy.BANNED_MARKS[0])
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "__init__.py").write_text("")
    (tmp_path / "kv" / "alone.py").write_text(DOC)
    found = [(finding.path, finding.rule) for finding in tidy.findings(tmp_path)]
    assert found == [("kv/__init__.py", "file-docstring"), ("kv/alone.py", "dead-module")]
