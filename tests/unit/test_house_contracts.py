"""Every import contract breaks when it is violated, in a model of the house that has one file to a room."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
FILES = (
    "e2eks/etcd/api_pb2.py",
    "e2eks/v1/types_pb2.py",
    "keyserver/machine/step.py",
    "keyserver/operations/table.py",
    "keyserver/run.py",
    "keyserver/service.py",
    "kv/interface.py",
    "kv/leveldb.py",
    "replication/etcd/client.py",
    "replication/raft/core.py",
    "replication/raft/driver.py",
    "replication/raft/journal.py",
    "replication/types.py",
    "verifier/client/pins.py",
    "verifier/config_file.py",
    "verifier/crypto/hashing.py",
    "verifier/daemon/run.py",
    "verifier/daemon/state.py",
    "verifier/daemon/step.py",
    "verifier/files.py",
    "verifier/merkle/tree.py",
    "verifier/policy.py",
    "verifier/renewing.py",
    "verifier/signonce.py",
)
LAWFUL = [
    ("keyserver/run.py", "import trio, keyserver.service, verifier.signonce, kv.leveldb"),
    ("keyserver/machine/step.py", "import verifier.policy, kv.interface, e2eks.v1.types_pb2"),
    ("kv/leveldb.py", "import plyvel"),
    ("replication/etcd/client.py", "import grpc, e2eks.etcd.api_pb2"),
    ("replication/raft/core.py", "import pysyncobj.config"),
    ("replication/raft/driver.py", "import replication.raft.core, replication.raft.journal"),
    ("verifier/files.py", "import os"),
    ("verifier/signonce.py", "import os, verifier.crypto.hashing"),
    ("verifier/daemon/run.py", "import trio, verifier.daemon.step, verifier.policy"),
    ("verifier/client/pins.py", "import grpc, time, verifier.policy"),
]
STAIRCASE = "The house has one staircase"
INSIDE = "Inside keyserver"
PURE = "Pure rooms of server and daemon do no IO"
DECIDE = "Rooms that decide import nothing that acts"
WATCHERS = "The server never runs the watchers' code"
APART = "Client and daemon do not know each other"
ELECTS = "One module alone knows the library that elects"
TURNS = "A turn of the Raft engine has no thread, clock or chance of its own"
ETCD = "The etcd engine alone speaks to etcd"
VIOLATIONS = [
    ("kv/interface.py", "import verifier.policy", {STAIRCASE}),
    ("replication/types.py", "import verifier.policy", {STAIRCASE}),
    ("verifier/policy.py", "import replication.types", {STAIRCASE}),
    ("keyserver/operations/table.py", "import keyserver.machine.step", {INSIDE}),
    ("keyserver/service.py", "import keyserver.run", {INSIDE}),
    ("keyserver/machine/step.py", "import verifier.signonce", {PURE}),
    ("verifier/daemon/step.py", "import os", {PURE}),
    ("verifier/policy.py", "import time", {DECIDE, PURE}),
    ("verifier/merkle/tree.py", "import kv.leveldb", {DECIDE}),
    ("verifier/merkle/tree.py", "import verifier.daemon.step", {DECIDE}),
    ("keyserver/service.py", "import verifier.client.pins", {WATCHERS}),
    ("verifier/daemon/run.py", "import verifier.client.pins", {APART}),
    ("replication/etcd/client.py", "import pysyncobj", {ELECTS}),
    ("replication/raft/journal.py", "import time", {TURNS}),
    ("keyserver/service.py", "import e2eks.etcd.api_pb2", {ETCD}),
    ("replication/types.py", "import e2eks.etcd.api_pb2", {ETCD}),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copy(HOUSE / "pyproject.toml", tmp_path)
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        for folder in path.relative_to(tmp_path).parents[:-1]:
            (tmp_path / folder / "__init__.py").touch()
    for name, line in LAWFUL:
        (tmp_path / name).write_text(f"{line}\n")
    return tmp_path


def verdicts(model: Path) -> dict[str, str]:
    """Contract -> KEPT or BROKEN."""
    script = Path(sysconfig.get_path("scripts")) / "lint-imports"
    environment = {**os.environ, "PYTHONPATH": str(model)}
    command = [sys.executable, str(script), "--no-cache"]
    result = subprocess.run(
        command, cwd=model, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line.split(" (")[0].strip() for line in result.stdout.splitlines()]
    found = {
        line.rpartition(" ")[0]: line.rpartition(" ")[2]
        for line in lines
        if line.endswith(("KEPT", "BROKEN"))
    }
    assert found, result.stdout + result.stderr
    return found


def test_lawful_imports_keep_every_contract(model: Path) -> None:
    contracts = (STAIRCASE, INSIDE, PURE, DECIDE, WATCHERS, APART, TURNS, ELECTS, ETCD)
    assert verdicts(model) == dict.fromkeys(contracts, "KEPT")


@pytest.mark.parametrize(("name", "line", "broken"), VIOLATIONS)
def test_a_violation_breaks_its_contract(model: Path, name: str, line: str, broken: set[str]) -> None:
    with (model / name).open("a") as file:
        file.write(f"{line}\n")
    assert {contract for contract, verdict in verdicts(model).items() if verdict == "BROKEN"} == broken
