"""One log of 5,000 entries gives one digest at every index, however, wherever and by whomever it is
replayed.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import pytest
from replayer.replay import Replayer
from workload.replay import ENTRIES, blanked, lines_of, long_log, replay, save
from workload.replica import MIN_INTERVAL_MS, Replica
from workload.script import EDGE_ONLY, STEP_CODES, build

from keyserver.machine import commands
from keyserver.machine.codes import Code
from keyserver.machine.state import Machine, load_position, load_state
from keyserver.machine.step import apply
from keyserver.machine.tables import Tables
from kv.overlay import Overlay
from verifier.realm import realm_message

ROOT = Path(__file__).resolve().parent.parent.parent

ENVIRONMENTS: Mapping[str, tuple[list[str], dict[str, str]]] = {
    "hash seed 0": ([], {"PYTHONHASHSEED": "0"}),
    "hash seed 1": ([], {"PYTHONHASHSEED": "1"}),
    "random hash seed": ([], {"PYTHONHASHSEED": "random"}),
    "without asserts": (["-O"], {}),
    "turkish locale": ([], {"LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8"}),
    "C locale at the date line": ([], {"LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Kiritimati"}),
}


@pytest.fixture
def recorded(seed: int) -> Replica:
    return long_log(seed)


def test_the_log_holds_every_command_and_every_code_of_a_step(recorded: Replica) -> None:
    assert len(recorded.log) >= ENTRIES
    verdicts = {code for outcome in recorded.outcomes for code in outcome.verdicts}
    assert verdicts == STEP_CODES
    accepted: set[type] = set()
    for payload, outcome in zip(recorded.log, recorded.outcomes, strict=True):
        if not outcome.refused:
            given = commands.decode_log_entry(payload).envelope.commands
            accepted |= {
                type(one) for one, code in zip(given, outcome.verdicts, strict=True) if code is Code.APPLIED
            }
    assert accepted == {
        commands.SubmitUpdate,
        commands.Delimiter,
        commands.SignHead,
        commands.AddRatification,
        commands.AdmitVerifier,
        commands.Tick,
        commands.Erase,
        commands.ChangeReplicas,
        commands.AnnounceRules,
    }
    assert set(Code) == STEP_CODES | EDGE_ONLY


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_same_digest_at_every_index_in_every_environment(
    recorded: Replica, environment: str, tmp_path: Path
) -> None:
    save(tmp_path / "entries", recorded)
    options, variables = ENVIRONMENTS[environment]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("tests", "proto", "."))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *options, "-m", "workload.replay", str(tmp_path / "entries")],
        env={**inherited, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == lines_of(recorded)


@pytest.mark.parametrize("batch", [1, 7, 64, None])
def test_the_same_digest_at_every_index_however_the_log_is_cut(recorded: Replica, batch: int | None) -> None:
    assert replay(recorded.machine, recorded.log, batch) == lines_of(recorded)


def test_the_same_digest_at_every_index_with_all_private_parts_blanked(recorded: Replica) -> None:
    bare = blanked(recorded.log)
    assert sum(map(len, bare)) < sum(map(len, recorded.log))
    assert replay(recorded.machine, bare, 64) == lines_of(recorded)


@pytest.mark.parametrize("replicas", [1, 3])
def test_the_naive_replayer_agrees_at_every_index(seed: int, replicas: int) -> None:
    recorded = long_log(seed) if replicas == 3 else build(seed, 800, replicas)
    naive = Replayer(realm_message(recorded.realm), MIN_INTERVAL_MS)
    for payload, outcome in zip(recorded.log, recorded.outcomes, strict=True):
        verdicts = naive.replay(payload)
        assert verdicts == b"\xff" * outcome.refused + bytes(outcome.verdicts), outcome.position.index
        assert naive.digest == outcome.position.digest, outcome.position.index
    epochs = range(1, recorded.state.epoch + 1)
    assert naive.heads == [recorded.head(epoch).encoded for epoch in epochs]


def test_the_naive_replayer_stays_naive() -> None:
    files = (ROOT / "tests" / "replayer").glob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert text.count("\n") <= 400
    imported = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
    allowed = ("hashlib", "operator", "struct", "google.protobuf", "nacl", "e2eks.v1", "replayer")
    assert imported
    assert all(name.startswith(allowed) for name in imported)


def test_restarts_anywhere_change_nothing(
    recorded: Replica, rng: Random, count: Callable[[int], int]
) -> None:
    """Rows written so far, and nothing else, decide how it goes on."""
    rows = Overlay(Replica(3, 3).store)
    restarts = set(rng.sample(range(1, 1500), min(count(40), 1499)))
    machine = Machine(recorded.realm, MIN_INTERVAL_MS)
    state, position = load_state(rows, machine), load_position(rows)
    for payload, expected in zip(recorded.log[:1500], recorded.outcomes, strict=False):
        if position.index in restarts:
            state, position = load_state(rows, machine), load_position(rows)
        outcome = apply(rows, machine, state, position, payload)
        assert outcome == expected
        state, position = outcome.state, outcome.position
        for key, value in outcome.writes.items():
            rows.put(key, value)
    assert rows.get(Tables.APPLIED.key()) is not None
