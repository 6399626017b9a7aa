"""pysyncobj is what was audited, and what is taken out of our copy of it is out."""

import random
from types import ModuleType, SimpleNamespace

import pysyncobj.monotonic
import pysyncobj.syncobj
import pytest
from raft_members import Cluster

from kv.memory import MemoryStore
from replication.raft import core
from replication.raft.driver import Driver
from replication.raft.engine import Engine
from replication.raft.events import Timing
from replication.raft.journal import Journal
from replication.testing import public_half


def copy_of(parent: type, **changed: object) -> ModuleType:
    """A module like our copy of pysyncobj's, with another class or other facts."""
    facts = {"VERSION": core.VERSION, "SOURCE_SHA256": core.SOURCE_SHA256, "SyncObj": parent, **changed}
    return SimpleNamespace(**facts)  # type: ignore[return-value]


def test_the_installed_release_is_the_audited_one() -> None:
    core.self_test()


@pytest.mark.parametrize("fact", ["VERSION", "SOURCE_SHA256"])
def test_another_release_is_refused(fact: str) -> None:
    with pytest.raises(core.EngineUnfit, match="audited"):
        core.self_test(copy_of(core.CORE.SyncObj, **{fact: "0.3.18"}))


@pytest.mark.parametrize("name", [*core.HOOKS, *map(core.private, core.METHODS)])
def test_a_release_without_a_name_we_use_is_refused(name: str) -> None:
    parent = type("Other", (), {key: value for key, value in vars(core.CORE.SyncObj).items() if key != name})
    with pytest.raises(core.EngineUnfit, match=name):
        core.self_test(copy_of(parent))


@pytest.mark.parametrize("name", core.HOOKS)
def test_a_release_that_does_not_call_what_we_replace_is_refused(name: str) -> None:
    members = dict(vars(core.CORE.SyncObj))
    members[core.HOOKS[name]] = lambda self: None
    with pytest.raises(core.EngineUnfit, match="does not call"):
        core.self_test(copy_of(type("Other", (), members)))


@pytest.mark.parametrize("field", core.FIELDS)
def test_a_release_without_a_field_we_use_is_refused(field: str) -> None:
    fields = {core.private(name): 0 for name in core.FIELDS if name != field}
    with pytest.raises(core.EngineUnfit, match=field):
        core.check_fields(SimpleNamespace(**fields))


def test_a_driver_examines_the_release_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "VERSION", "0.3.18")
    with pytest.raises(core.EngineUnfit):
        driver("a", ["a"])


def test_what_must_not_be_used_ends_the_process() -> None:
    for name in ("pickle", "random", "time"):
        with pytest.raises(core.EngineUnfit, match="must not"):
            getattr(vars(core.CORE)[name], "anything")  # noqa: B009  # a bare attribute looks useless


def test_the_installed_module_stays_as_it_is() -> None:
    assert core.CORE is not pysyncobj.syncobj
    assert pysyncobj.syncobj.monotonicTime is pysyncobj.monotonic.monotonic
    assert pysyncobj.syncobj.pickle.__name__ == "pysyncobj.pickle"


def test_every_method_that_we_replace_is_replaced() -> None:
    for name in core.HOOKS:
        assert getattr(Engine, name) is not getattr(core.CORE.SyncObj, name)


def driver(member: str, members: list[str]) -> Driver:
    journal = Journal(MemoryStore(), public_half)
    chance = random.Random(1)
    return Driver(
        member=member,
        members=members,
        journal=journal,
        clock=lambda: 0.0,
        chance=chance,
        timing=Timing(),
    )


@pytest.mark.parametrize(("member", "members"), [("d", ["a", "b", "c"]), ("a", ["a", "b", "b"]), ("a", [])])
def test_a_member_is_one_of_the_members(member: str, members: list[str]) -> None:
    with pytest.raises(ValueError, match="one of the members"):
        driver(member, members)


def test_equal_seeds_make_equal_runs() -> None:
    def run(seed: int) -> list[object]:
        cluster = Cluster(5, random.Random(seed))
        said: list[object] = []

        def keep(*message: object) -> bool:
            said.append((cluster.now, message))
            return len(said) % 7 != 0

        cluster.keep = keep
        for number in range(20):
            cluster.propose("abcde"[number % 5], b"%d" % number)
            cluster.run(0.3)
        return said

    assert run(1) == run(1)
    assert run(1) != run(2)
