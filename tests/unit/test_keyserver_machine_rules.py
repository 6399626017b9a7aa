"""Rules levels: a realm moves on once every replica knows the next level, and nobody is left in doubt.

Level 2 exists in these tests only: its digests take the length of a value in.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from streams.build import Stream
from workload.cast import Key, User
from workload.replica import Replica

from keyserver.machine import digest
from keyserver.machine.codes import Code, Halt
from keyserver.machine.commands import AnnounceRules, Delimiter, Tick
from keyserver.machine.obligations import Facts, OweAnnouncement, wanted
from keyserver.machine.rules import LEVELS, Rules
from keyserver.machine.state import Machine, load_state
from keyserver.machine.step import apply
from keyserver.machine.tables import Tables
from kv.memory import MemoryStore
from kv.tables import Kind
from verifier import limits
from verifier.daemon.evidence import Evidence
from verifier.daemon.evidence import Kind as Broken
from verifier.daemon.state import load_state as load_verifier
from verifier.daemon.step import Upgrade, apply_message


def with_lengths(writes: Mapping[bytes, bytes | None]) -> bytes:
    """As level 1, and four bytes for the length of each value."""
    framed = {
        key: None if value is None else len(value).to_bytes(4, "big") + value for key, value in writes.items()
    }
    return digest.encode_writes(framed)


TWO = {**LEVELS, 2: Rules(encode_writes=with_lengths)}


def newer(count: int = 3) -> Replica:
    """Replicas of a version that knows level 2, after their first epoch."""
    replica = Replica(count)
    replica.machine = Machine(replica.realm, replica.machine.min_epoch_interval_ms, TWO)
    replica.register(User.named("alice"))
    replica.close_epoch()
    return replica


def announce_all(replica: Replica) -> None:
    for key in replica.replicas:
        assert replica.run(AnnounceRules(2), by=key) == (Code.APPLIED,)


def test_a_level_begins_with_a_head_once_all_replicas_have_announced_it() -> None:
    replica = newer()
    for key in replica.replicas:
        assert replica.close_epoch().rules == replica.state.rules == 1
        assert replica.run(AnnounceRules(2), by=key) == (Code.APPLIED,)
    assert replica.state.rules == 1
    assert replica.close_epoch().rules == replica.state.rules == 2
    assert load_state(replica.store, replica.machine) == replica.state
    assert replica.close_epoch().rules == 2


def test_the_level_in_force_decides() -> None:
    replica = newer()
    announce_all(replica)
    for key in replica.replicas:
        replica.run(Tick(), by=key, time_ms=replica.clock_ms + 2000)
    replica.clock_ms += 2000
    for encode, payload in (
        (digest.encode_writes, replica.entry(Delimiter(2, replica.clock_ms))),
        (with_lengths, replica.entry(replica.ratification(replica.verifiers[0]), rules=2)),
    ):
        before = replica.position
        outcome = replica.commit(payload)
        assert not outcome.refused
        writes = Tables.by_kind(outcome.writes)[Kind.REPLICATED]
        verdicts = digest.applied_verdicts(outcome.verdicts)
        expected = digest.next_digest(before.digest, before.index + 1, payload, verdicts, encode(writes))
        assert outcome.position.digest == expected


def test_entries_of_the_level_before_are_refused_from_then_on() -> None:
    replica = newer()
    announce_all(replica)
    replica.delimit()
    assert replica.commit(replica.entry(Tick(), rules=1)).verdicts == (Code.WRONG_RULES,)
    assert replica.run(Tick()) == (Code.APPLIED,)


def test_what_was_announced_is_not_announced_again_nor_taken_back() -> None:
    replica = newer()
    for level, code in ((0, Code.DUPLICATE), (1, Code.DUPLICATE), (3, Code.APPLIED), (2, Code.DUPLICATE)):
        assert replica.run(AnnounceRules(level)) == (code,)


def test_a_replica_that_comes_has_to_know_the_level_too() -> None:
    replica, new = newer(), Key("replica", "new")
    for key in replica.replicas[:2]:
        replica.run(AnnounceRules(2), by=key)
    replica.changed(add=new, remove=replica.replicas[2])
    assert replica.close_epoch().rules == 1
    replica.run(AnnounceRules(2), by=new)
    assert replica.close_epoch().rules == 2


# Versions side by side


def test_a_version_announces_the_newest_level_it_knows_until_the_log_has_it() -> None:
    replica, older = newer(), Replica()
    older.close_epoch()
    for one in (older, replica):
        facts = Facts(one.clock_ms, one.replicas[0].id, leader=True, max_epoch_interval_ms=60_000)
        owed = wanted(one.store, one.machine, one.state, facts)
        assert owed == ((OweAnnouncement(2),) if one is replica else ())
    replica.run(AnnounceRules(2))
    assert wanted(replica.store, replica.machine, replica.state, facts) == ()


def test_an_older_version_goes_on_beside_newer_ones_and_halts_where_they_leave_its_level() -> None:
    replica = newer()
    announce_all(replica)
    older = replace(replica.machine, levels=LEVELS)
    assert load_state(replica.store, older) == replica.state
    for key in replica.replicas[1:]:
        replica.run(Tick(), by=key, time_ms=replica.clock_ms + 2000)
    replica.clock_ms += 2000
    beyond = replica.entry(Delimiter(2, replica.clock_ms))
    with pytest.raises(Halt, match="rules level 2, this version knows up to 1: upgrade"):
        apply(replica.store, older, replica.state, replica.position, beyond)
    replica.commit(beyond)
    with pytest.raises(Halt, match="upgrade"):
        load_state(replica.store, older)


# Verifiers


def test_a_verifier_follows_a_level_it_knows_and_stops_before_one_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream().grow(2)
    stream.close_epoch(rules=2)
    stream.chain = replace(stream.chain, rules=2)
    stream.grow(1)
    store = MemoryStore()
    outcome = apply_message(store, stream.realm, load_verifier(store, stream.realm), stream.message())
    assert outcome.stop == Upgrade(2)
    assert outcome.state.chain.epoch == 2
    monkeypatch.setattr(limits, "RULES", 2)
    outcome = apply_message(store, stream.realm, load_verifier(store, stream.realm), stream.message())
    assert outcome.stop is None
    assert outcome.state.chain.rules == 2
    store.write(outcome.writes)
    assert load_verifier(store, stream.realm) == outcome.state
    stream.chain = replace(stream.chain, rules=1)
    start = len(stream.steps) + 1
    stream.close_epoch()
    back = apply_message(store, stream.realm, outcome.state, stream.message(start))
    assert isinstance(back.stop, Evidence)
    assert back.stop.kind == Broken.RULES
