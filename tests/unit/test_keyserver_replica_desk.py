"""What a running replica tells its operator about the set of replicas."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from keyserver.frontends.replica_desk import ReplicaDesk
from keyserver.run import Parts
from keyserver.testing import Disk, running, small_realm

SMALL = small_realm()
ONE, OTHER = "11" * 32, "22" * 32


def names_told(parts: Parts, **said: str) -> dict[str, str]:
    """By the replica r1, whose other members said so of their keys."""
    rows = [{"name": name, "key_id": key_id} for name, key_id in said.items()]
    peers: Any = SimpleNamespace(record=lambda: rows)
    return ReplicaDesk(replace(parts, peers=peers), "r1").present().names


async def test_members_are_named_by_what_they_say_of_their_keys(tmp_path: Path) -> None:
    own = SMALL.replica.hex()
    async with running(SMALL, Disk(tmp_path)) as parts:
        assert names_told(parts, r2=ONE, r3=OTHER) == {own: "r1", ONE: "r2", OTHER: "r3"}
        assert names_told(parts, r2=ONE, r3="") == {own: "r1", ONE: "r2"}


async def test_a_key_that_two_members_claim_has_no_name(tmp_path: Path) -> None:
    """Or one that lies would have an honest one removed in its place."""
    own = SMALL.replica.hex()
    async with running(SMALL, Disk(tmp_path)) as parts:
        assert names_told(parts, r2=ONE, r3=ONE) == {own: "r1"}
        assert names_told(parts, r2=ONE, r3=own) == {own: "r1", ONE: "r2"}
