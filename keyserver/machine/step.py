"""Apply one committed log entry. No clock, no randomness, no secrets, no IO.

Three outcomes (design section 3): Applied, with a verdict on each command; Reject, the whole entry refused,
the same on every replica and never an exception; Halt, raised, when the environment failed. Commands of one
entry are applied in order, each upon what the former wrote; a refused command writes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keyserver.machine import commands, digest, epochs, erasure, ratifications, replicas, updates
from keyserver.machine.codes import Code, Halt, invariant
from keyserver.machine.commands import Command, Delimiter, Envelope, LogEntry, SignHead
from keyserver.machine.notices import CommandDecided, Notice
from keyserver.machine.rows import policy_of_epoch
from keyserver.machine.rules import Rules
from keyserver.machine.state import Machine, Position, ReplicaState, encode_position, encode_state
from keyserver.machine.tables import Tables
from keyserver.machine.turn import Answer, Done, Refusal, Turn, log_time, raise_clock
from kv.interface import Reader, StorageError
from kv.overlay import Overlay
from kv.tables import Kind
from verifier.crypto import signatures
from verifier.errors import Malformed

Writes = Mapping[bytes, bytes | None]

_PRIVATE: Final = frozenset(table.prefix for table in Tables.all() if table.kind is Kind.PRIVATE)


@dataclass(frozen=True, slots=True)
class Applied:
    """What the entry changes. `writes` are replicated rows, and enter the digest; the others do not."""

    state: ReplicaState
    writes: Writes
    private_writes: Writes
    local_writes: Writes
    notices: tuple[Notice, ...]
    verdicts: tuple[Code, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """The entry changes nothing but the position."""

    code: Code
    local_writes: Writes = field(default_factory=dict)  # and what becomes of its private parts


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to persist in one batch, and to announce AFTER it. `verdicts`: one for each command, or the
    entry's.
    """

    state: ReplicaState
    position: Position
    writes: Writes
    notices: tuple[Notice, ...] = ()
    verdicts: tuple[Code, ...] = ()
    refused: bool = field(default=False)


def apply(
    reader: Reader,
    machine: Machine,
    state: ReplicaState,
    position: Position,
    payload: bytes,
    *,
    index: int | None = None,
) -> Outcome:
    """Apply the entry after `position`; `index`, where the caller knows it, must be that. Raises Halt.

    `reader` shows every row written up to `position`, those of the same batch included.
    """
    after = position.index + 1
    invariant(index is None or index == after, f"entry {index} does not follow entry {position.index}")
    outcome = step(reader, machine, state, position, payload)
    public = commands.public_part(payload)
    rules = machine.levels[state.rules]  # in force BEFORE the entry
    if isinstance(outcome, Reject):
        reached = _position(rules, position, public, digest.refused_verdict(outcome.code), {})
        writes: Writes = {**outcome.local_writes, Tables.APPLIED.key(): encode_position(reached)}
        return Outcome(state, reached, writes, verdicts=(outcome.code,), refused=True)
    verdicts = digest.applied_verdicts(outcome.verdicts)
    reached = _position(rules, position, public, verdicts, outcome.writes)
    writes = {
        **outcome.writes,
        **outcome.private_writes,
        **outcome.local_writes,
        Tables.APPLIED.key(): encode_position(reached),
    }
    return Outcome(outcome.state, reached, writes, outcome.notices, outcome.verdicts)


def _position(rules: Rules, before: Position, public: bytes, verdicts: bytes, writes: Writes) -> Position:
    index, encoded = before.index + 1, rules.encode_writes(writes)
    return Position(index, digest.next_digest(before.digest, index, public, verdicts, encoded))


def step(
    reader: Reader, machine: Machine, state: ReplicaState, position: Position, payload: bytes
) -> Applied | Reject:
    """The three outcomes of one committed payload, which may be any bytes. Raises Halt."""
    try:
        entry = commands.decode_log_entry(payload)
    except Malformed:
        return Reject(Code.BAD_ENVELOPE)
    try:
        refused = _refuse_entry(reader, machine, state, entry)
        if refused is not None:
            return Reject(refused, erasure.useless_parts(position.index + 1, payload, entry))
        return _apply_commands(Overlay(reader), machine, state, position, entry, payload)
    except StorageError as error:
        raise Halt(f"storage failed at log index {position.index + 1}: {error}") from error


def _refuse_entry(reader: Reader, machine: Machine, state: ReplicaState, entry: LogEntry) -> Code | None:
    envelope = entry.envelope
    if envelope.rules != state.rules:
        return Code.WRONG_RULES
    public_key = state.policy.keys.get(envelope.replica) or _leaving(reader, machine, state, envelope)
    if public_key is None:
        return Code.UNKNOWN_REPLICA
    message = commands.envelope_message(machine.realm.hash, envelope.encoded)
    if not signatures.verify(public_key, message, entry.signature):
        return Code.BAD_SIGNATURE
    if len(envelope.commands) > 1 and any(isinstance(command, Delimiter) for command in envelope.commands):
        return Code.DELIMITER_NOT_ALONE
    return None


def _leaving(reader: Reader, machine: Machine, state: ReplicaState, envelope: Envelope) -> bytes | None:
    """The public key of a replica that the newest head removed, as long as that head awaits its majority:
    its signature on it, and nothing else, still counts.
    """
    if state.is_signed or not all(isinstance(command, SignHead) for command in envelope.commands):
        return None
    return policy_of_epoch(reader, machine.realm.genesis_policy, state.epoch).keys.get(envelope.replica)


def _apply_commands(
    rows: Overlay,
    machine: Machine,
    state: ReplicaState,
    position: Position,
    entry: LogEntry,
    payload: bytes,
) -> Applied:
    envelope = entry.envelope
    if envelope.replica in state.policy.keys:
        raise_clock(rows, envelope.replica, envelope.time_ms)
    now_ms = log_time(rows, state.policy)
    notices: list[Notice] = []
    verdicts: list[Code] = []
    used: set[int] = set()
    for number, command in enumerate(envelope.commands):
        own = Overlay(rows)
        part = entry.private_parts[number]
        turn = Turn(machine, state, own, envelope.replica, now_ms, position, part, number)
        answer = _decide(turn, command)
        if isinstance(answer, Done):
            if part and _fills_private_rows(own.writes):
                used.add(number)
            own.merge_into_parent()
            state = answer.state
        code, epoch, announced = _verdict(answer)
        verdicts.append(code)
        notices += (*announced, CommandDecided(envelope.command_ids[number], code, epoch))
    for key, duty in erasure.useless_parts(position.index + 1, payload, entry, frozenset(used)).items():
        rows.put(key, duty)
    rows.put(Tables.STATE.key(), encode_state(state))
    kinds = Tables.by_kind(rows.writes)
    return Applied(
        state=state,
        writes=kinds[Kind.REPLICATED],
        private_writes=kinds[Kind.PRIVATE],
        local_writes=kinds[Kind.LOCAL],
        notices=tuple(notices),
        verdicts=tuple(verdicts),
    )


def _fills_private_rows(writes: Writes) -> bool:
    return any(key[:1] in _PRIVATE and value is not None for key, value in writes.items())


def _verdict(answer: Answer) -> tuple[Code, int, tuple[Notice, ...]]:
    match answer:
        case Done(_, notices, epoch):
            return Code.APPLIED, epoch, notices
        case Refusal(code, notices):
            return code, 0, notices
        case _:
            return answer, 0, ()


# Handlers take (Turn, their command); the table is what connects the two types, hence Any.
_HANDLERS: Final[Mapping[type[Command], Callable[[Turn, Any], Answer]]] = {
    commands.SubmitUpdate: updates.submit_update,
    commands.Delimiter: epochs.delimiter,
    commands.SignHead: epochs.sign_head,
    commands.AddRatification: ratifications.add_ratification,
    commands.AdmitVerifier: ratifications.admit_verifier,
    commands.Erase: erasure.erase,
    commands.ChangeReplicas: replicas.change_replicas,
    commands.AnnounceRules: replicas.announce_rules,
    commands.Tick: lambda turn, _: Done(turn.state),
    commands.Unreadable: lambda _, command: command.code,
}


def _decide(turn: Turn, command: Command) -> Answer:
    return _HANDLERS[type(command)](turn, command)
