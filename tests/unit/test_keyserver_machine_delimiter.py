"""The delimiter law and the log's time, each side of each condition, and what a composed head says."""

from dataclasses import replace

import pytest
from e2eks.v1 import state_pb2
from workload.cast import User
from workload.replica import MIN_INTERVAL_MS, START_MS, Replica

from keyserver.machine.codes import Code
from keyserver.machine.commands import Delimiter, Tick
from keyserver.machine.notices import CommandDecided, HeadComposed
from keyserver.machine.state import genesis_state
from keyserver.machine.tables import Tables
from keyserver.machine.turn import log_time
from kv.keys import u64
from verifier import limits
from verifier.merkle import history
from verifier.merkle.proof import EMPTY_ROOT, leaf_hash

DRIFT_MS = limits.DELIMITER_DRIFT_MS


@pytest.fixture
def replica() -> Replica:
    return Replica()


def delimit(replica: Replica, epoch: int, time_ms: int, clock_ms: int | None = None) -> Code:
    """The verdict on a delimiter in an envelope of the given clock, its own time unless said otherwise."""
    clock = time_ms if clock_ms is None else clock_ms
    return replica.run(Delimiter(epoch, time_ms), time_ms=clock)[0]


@pytest.mark.parametrize("epoch", [0, 1, 3, 4, 2**63, 2**64 - 1])
def test_delimiter_law_the_epoch_is_the_last_plus_1(replica: Replica, epoch: int) -> None:
    replica.close_epoch()
    later = replica.clock_ms + MIN_INTERVAL_MS
    assert delimit(replica, epoch, later) is Code.DELIMITER_EPOCH
    assert delimit(replica, 2, later) is Code.APPLIED


def test_delimiter_law_the_last_head_has_its_majority() -> None:
    replica = Replica(3)
    replica.delimit()
    replica.tick_all()
    for key in replica.replicas[:2]:
        replica.clock_ms += MIN_INTERVAL_MS
        assert delimit(replica, 2, replica.clock_ms) is Code.EPOCH_PENDING
        replica.run(replica.signature(key), by=key)
    assert delimit(replica, 2, replica.clock_ms) is Code.APPLIED


def test_delimiter_law_min_interval_since_the_last_issue_time(replica: Replica) -> None:
    issued = replica.close_epoch().issue_time_ms
    assert delimit(replica, 2, issued + MIN_INTERVAL_MS - 1) is Code.DELIMITER_EARLY
    assert delimit(replica, 2, issued + MIN_INTERVAL_MS) is Code.APPLIED


def test_delimiter_law_issue_times_rise_even_without_a_min_interval() -> None:
    replica = Replica()
    replica.machine = replace(replica.machine, min_epoch_interval_ms=0)
    replica.state = genesis_state(replica.machine)
    assert delimit(replica, 1, START_MS) is Code.APPLIED
    replica.sign_all()
    assert delimit(replica, 2, START_MS) is Code.DELIMITER_EARLY
    assert delimit(replica, 2, START_MS + 1) is Code.APPLIED


def test_delimiter_law_the_first_epoch_needs_a_time_after_0(replica: Replica) -> None:
    assert delimit(replica, 1, 0) is Code.DELIMITER_EARLY
    assert delimit(replica, 1, MIN_INTERVAL_MS) is Code.APPLIED


@pytest.mark.parametrize(
    ("off_ms", "code"),
    [
        (-DRIFT_MS - 1, Code.DELIMITER_DRIFT),
        (-DRIFT_MS, Code.APPLIED),
        (DRIFT_MS, Code.APPLIED),
        (DRIFT_MS + 1, Code.DELIMITER_DRIFT),
    ],
)
def test_delimiter_law_the_time_is_within_10_s_of_the_logs(replica: Replica, off_ms: int, code: Code) -> None:
    assert delimit(replica, 1, START_MS + off_ms, clock_ms=START_MS) is code


def test_delimiter_law_a_refused_delimiter_still_moves_the_clock(replica: Replica) -> None:
    assert delimit(replica, 7, START_MS, clock_ms=START_MS) is Code.DELIMITER_EPOCH
    assert log_time(replica.store, replica.state.policy) == START_MS


def test_delimiter_law_the_delimiter_is_alone_in_its_entry(replica: Replica) -> None:
    for given in ([Tick(), Delimiter(1, START_MS)], [Delimiter(1, START_MS), Delimiter(2, START_MS)]):
        before = replica.state
        outcome = replica.commit(replica.entry(*given))
        assert outcome.refused
        assert outcome.verdicts == (Code.DELIMITER_NOT_ALONE,)
        assert replica.state == before
    assert delimit(replica, 1, START_MS) is Code.APPLIED


def test_log_time_is_0_before_a_majority_spoke() -> None:
    replica = Replica(3)
    assert log_time(replica.store, replica.state.policy) == 0
    replica.run(Tick())
    assert log_time(replica.store, replica.state.policy) == 0
    replica.run(Tick(), by=replica.replicas[1])
    assert log_time(replica.store, replica.state.policy) == START_MS


@pytest.mark.parametrize(("size", "expected"), [(1, 50), (2, 40), (3, 40), (4, 30), (5, 30)])
def test_log_time_is_the_largest_that_a_majority_signed(size: int, expected: int) -> None:
    replica = Replica(size)
    for key, time_ms in zip(replica.replicas, (50, 40, 30, 20, 10), strict=False):
        replica.run(Tick(), by=key, time_ms=time_ms)
    assert log_time(replica.store, replica.state.policy) == expected


def test_log_time_one_replica_a_day_ahead_or_behind_moves_nothing() -> None:
    replica = Replica(3)
    replica.tick_all()
    for wrong in (limits.MAX_U64, 0):
        replica.run(Tick(), by=replica.replicas[2], time_ms=wrong)
        assert log_time(replica.store, replica.state.policy) == START_MS


def test_log_time_a_clock_that_goes_back_is_ignored(replica: Replica) -> None:
    replica.run(Tick(), time_ms=START_MS)
    replica.run(Tick(), time_ms=START_MS - 1)
    assert log_time(replica.store, replica.state.policy) == START_MS


def test_log_time_the_delimiters_own_entry_counts() -> None:
    replica = Replica(3)
    later = START_MS + 60_000
    replica.run(Tick(), by=replica.replicas[1], time_ms=later)
    assert delimit(replica, 1, later) is Code.APPLIED


def test_a_head_says_what_it_should(replica: Replica) -> None:
    alice = User.named("alice")
    replica.register(alice)
    digest = replica.position.digest
    first = replica.close_epoch()
    assert (first.epoch, first.realm, first.realm_hash) == (1, replica.realm.name, replica.realm.hash)
    assert first.previous_head_hash == replica.realm.hash
    assert first.issue_time_ms == START_MS + MIN_INTERVAL_MS
    assert first.history_root == history.EMPTY_ROOT
    assert first.state_digest == digest
    entry_hash = replica.outcomes[0].writes[Tables.PENDING.key(alice.index)]
    assert entry_hash is not None
    assert first.root_hash == leaf_hash(alice.index, entry_hash)
    assert (first.provenance_root, first.provenance_size) == (bytes(32), 0)
    assert (first.rules, first.next_epoch_policy) == (limits.RULES, None)
    digest = replica.position.digest
    second = replica.close_epoch()
    assert second.previous_head_hash == first.hash
    assert second.history_root == history.Frontier().append(first.encoded).root()
    assert second.state_digest == digest
    assert second.root_hash == first.root_hash


def test_an_epoch_without_updates_keeps_the_tree(replica: Replica) -> None:
    assert replica.close_epoch().root_hash == EMPTY_ROOT
    replica.register(User.named("alice"))
    versions = []
    for _ in range(2):
        replica.close_epoch()
        row = replica.store.get(Tables.HEADS.key(u64(replica.state.epoch)))
        versions.append(state_pb2.HeadRow.FromString(row or b"").root_version)
    assert versions == [2, 2]


def test_a_delimiter_announces_the_head_and_its_log_index_is_kept(replica: Replica) -> None:
    outcome = replica.commit(replica.entry(Delimiter(1, START_MS)))
    composed, decided = outcome.notices
    assert composed == HeadComposed(1)
    assert isinstance(decided, CommandDecided)
    row = state_pb2.HeadRow.FromString(replica.store.get(Tables.HEADS.key(u64(1))) or b"")
    assert row.log_index == outcome.position.index
