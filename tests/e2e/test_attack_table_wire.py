"""The attack table over the wire: strangers against one realm of real processes, which outlives them all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks.surfaces import OVER_THE_WIRE
from attacks.table import Case, load_table
from realm_processes.people import Authority
from realm_processes.realm import RealmProcesses

CASES = [case for case in load_table() if case.surface in OVER_THE_WIRE]


class AttackedRealm(RealmProcesses):
    """Two verifiers run; the table plays the third, v4."""

    authority = Authority()
    mute = ("v4",)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealmProcesses]:
    """A realm of its own: what v4 pushes here would disturb others. No process has logged an exception."""
    with AttackedRealm(tmp_path_factory.mktemp("attacked") / "realm", ("v1", "v2", "v4")).used() as stage:
        yield stage


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_attack_is_refused_and_its_valid_sibling_accepted(
    case: Case, attacked: RealmProcesses, tmp_path: Path
) -> None:
    surface = OVER_THE_WIRE[case.surface](tmp_path, attacked)
    refused = surface.rule(case.target, surface.make(case.input))
    assert refused.verdict == case.verdict, refused.text
    assert case.says in refused.text
    accepted = surface.rule(case.target, surface.make(case.sibling))
    assert accepted.verdict == case.accepted, accepted.text
    attacked.check_alive()
