"""What this replica owes, derived from its rows at any time, start-up included: a crash loses no duty.

Pure in (rows, facts). The proposer compares the answer with what is under way; when to try again is its
business.
"""

from dataclasses import dataclass

from keyserver.machine import views
from keyserver.machine.codes import Halt
from keyserver.machine.rows import decode_own_head, known_head_row, policy_of_epoch
from keyserver.machine.rules import announced
from keyserver.machine.state import Machine, ReplicaState
from keyserver.machine.tables import Tables
from keyserver.machine.turn import clock_of, log_time
from kv.interface import Reader, StorageError
from kv.keys import u64
from verifier import limits
from verifier.crypto import hashing
from verifier.epoch import signing_keys

# A head older than this is outside any client's freshness; signing it late helps nobody, and looking for it
# costs.
LATE_SIGNATURES = 16
# The leader's delimiter is seen well within this, and its failure noticed; then the others begin, one by one.
TAKEOVER_MS = 1_000
TAKEOVER_RANK_MS = 250


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rows cannot know. `now_ms` is this replica's clock, `admit` the verifiers' keys of its realm
    file.
    """

    now_ms: int
    replica: bytes  # key id
    leader: bool
    max_epoch_interval_ms: int
    admit: tuple[bytes, ...] = ()
    due_for_ms: int = 0  # how long this replica has seen the next epoch due, by a clock that never jumps


@dataclass(frozen=True, slots=True)
class OweSignature:
    """This replica's signature on a head. `log_index` is the delimiter's, `digest` the one the head
    carries.
    """

    epoch: int
    head: bytes
    issue_time_ms: int
    log_index: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class OweDelimiter:
    """An epoch is due, and this replica likely leads, or whoever leads has let it pass; propose with a fresh
    clock reading, this one or a later.
    """

    epoch: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class OweTick:
    """An epoch is due and the log's time lags behind this replica's clock: sign the time into the log."""


@dataclass(frozen=True, slots=True)
class OweAdmission:
    """This replica's approval of a verifier its realm file names."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class OweAnnouncement:
    """This version knows a rules level that the log does not know it to know."""

    rules: int


Obligation = OweSignature | OweDelimiter | OweTick | OweAdmission | OweAnnouncement


def wanted(reader: Reader, machine: Machine, state: ReplicaState, facts: Facts) -> tuple[Obligation, ...]:
    """Everything owed now; oldest signature first. Raises Halt."""
    try:
        signatures = _signatures(reader, machine, state, facts)
        admissions = _admissions(reader, state, facts)
        return (
            *signatures,
            *_epoch(reader, state, facts),
            *admissions,
            *_rules(reader, machine, state, facts),
        )
    except StorageError as error:
        raise Halt(f"storage failed: {error}") from error


def _signatures(reader: Reader, machine: Machine, state: ReplicaState, facts: Facts) -> list[OweSignature]:
    """One for each recent head of this replica's key that has no signature by it, late ones too; but no late
    one that no client takes any more, as in a log that is caught up with, nor by a replica that has left.
    """
    owed, replica = [], facts.replica
    for epoch in range(max(1, state.epoch - LATE_SIGNATURES + 1), state.epoch + 1):
        if reader.get(Tables.REPLICA_SIGNATURES.key(u64(epoch), replica)) is not None:
            continue
        row = known_head_row(reader, epoch)
        head = decode_own_head(row)
        stale = facts.now_ms - head.issue_time_ms > machine.realm.epoch_ttl_ms
        if epoch <= state.signed_epoch and (stale or replica not in state.policy.keys):
            continue
        if replica in signing_keys(policy_of_epoch(reader, machine.realm.genesis_policy, epoch), head):
            owed.append(OweSignature(epoch, row.head, head.issue_time_ms, row.log_index, head.state_digest))
    return owed


def _epoch(reader: Reader, state: ReplicaState, facts: Facts) -> list[Obligation]:
    """The delimiter, only where the step would accept its time: a replica whose clock is wrong proposes none,
    and cannot stop the others. A Tick that stands ahead of the log's time already is not owed again.
    """
    replica, now_ms = facts.replica, facts.now_ms
    if replica not in state.policy.keys or not is_due(state, facts):
        return []
    with_ours_ms = log_time(reader, state.policy, {replica: now_ms})
    proposes = facts.leader or facts.due_for_ms >= takeover_ms(state, replica)
    if proposes and abs(now_ms - with_ours_ms) <= limits.DELIMITER_DRIFT_MS:
        return [OweDelimiter(state.epoch + 1, now_ms)]
    log_ms = log_time(reader, state.policy)
    behind = now_ms - log_ms > limits.TICK_AHEAD_MS and clock_of(reader, replica) <= log_ms
    return [OweTick()] if behind else []


def takeover_ms(state: ReplicaState, replica: bytes) -> int:
    """How long this replica sees an epoch due before it ends it itself, whoever leads: each another time."""
    return TAKEOVER_MS + TAKEOVER_RANK_MS * list(state.policy.keys).index(replica)


def is_due(state: ReplicaState, facts: Facts) -> bool:
    """Whether the next epoch may and should begin: no head awaits its majority, and there is a reason."""
    since_ms = facts.now_ms - state.issue_time_ms
    if not state.is_signed or since_ms < max(state.min_epoch_interval_ms, 1):
        return False
    return state.pending_updates > 0 or since_ms >= facts.max_epoch_interval_ms


def _admissions(reader: Reader, state: ReplicaState, facts: Facts) -> list[Obligation]:
    if not facts.admit or facts.replica not in state.policy.keys:
        return []
    known = views.verifiers(reader)
    listed = sum(row.listed for row in known.values())
    owed: list[Obligation] = []
    for public_key in facts.admit:
        row = known.get(hashing.key_id(public_key))
        done = row is not None and (row.listed or facts.replica in row.approvals)
        if not done and listed + len(owed) < limits.VERIFIERS:
            owed.append(OweAdmission(public_key))
    return owed


def _rules(reader: Reader, machine: Machine, state: ReplicaState, facts: Facts) -> list[Obligation]:
    newest = max(machine.levels)
    known = max(announced(reader, facts.replica), state.rules)
    return [OweAnnouncement(newest)] if newest > known and facts.replica in state.policy.keys else []
