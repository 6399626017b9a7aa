"""What a replica carries from one entry to the next, and how it is kept: one replicated row and one local
row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from e2eks.v1 import state_pb2 as pb
from e2eks.v1 import types_pb2

from keyserver.machine import digest
from keyserver.machine.codes import Halt, invariant
from keyserver.machine.rows import decode_own_policy, parse_row
from keyserver.machine.rules import LEVELS, Rules
from keyserver.machine.tables import Tables
from kv.interface import Reader, StorageError
from verifier import encoding
from verifier.encoding import canonical
from verifier.epoch import Chain
from verifier.types import AuthorizationPolicy, Realm


@dataclass(frozen=True, slots=True)
class Machine:
    """What all replicas of a realm are configured with alike. `min_epoch_interval_ms` is fixed with the
    first entry; `levels` are the rules levels that this version knows.
    """

    realm: Realm
    min_epoch_interval_ms: int
    levels: Mapping[int, Rules] = field(default_factory=lambda: LEVELS)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The row MachineState as a value. `policy` is P(epoch + 1); `head_hash` is the realm hash at epoch 0."""

    epoch: int  # of the newest delimiter; 0 before the first
    issue_time_ms: int  # of the newest delimiter
    head_hash: bytes
    signed_epoch: int  # newest with its majority: epoch or epoch - 1
    verifier_log_size: int
    pending_updates: int  # accepted since the newest delimiter
    parked_updates: int  # of those, the ones verifiers see only AFTER the newest head has its majority
    policy: AuthorizationPolicy
    min_epoch_interval_ms: int
    next_policy: AuthorizationPolicy | None = None  # P(epoch + 2), accepted: the next head will carry it
    rules: int = 1  # in force: of the newest head, and of the entries behind its delimiter

    @property
    def chain(self) -> Chain:
        """Where the history stands: what the next head must follow."""
        return Chain(
            epoch=self.epoch,
            head_hash=self.head_hash,
            issue_time_ms=self.issue_time_ms,
            policy=self.policy,
            rules=self.rules,
        )

    @property
    def is_signed(self) -> bool:
        """Whether no head awaits its majority."""
        return self.signed_epoch == self.epoch


@dataclass(frozen=True, slots=True)
class Position:
    """How far this replica has applied the log: the index of the last entry, and D(index)."""

    index: int
    digest: bytes


GENESIS_POSITION = Position(0, digest.GENESIS)


def genesis_state(machine: Machine) -> ReplicaState:
    """The state before the first entry; it needs no row."""
    return ReplicaState(
        epoch=0,
        issue_time_ms=0,
        head_hash=machine.realm.hash,
        signed_epoch=0,
        verifier_log_size=0,
        pending_updates=0,
        parked_updates=0,
        policy=machine.realm.genesis_policy,
        min_epoch_interval_ms=machine.min_epoch_interval_ms,
    )


def load_state(reader: Reader, machine: Machine) -> ReplicaState:
    """The state in the store. Raises Halt when it is damaged or the configuration is another one than it
    began with.
    """
    row = _read(reader, Tables.STATE.key())
    if row is None:
        return genesis_state(machine)
    message = parse_row(pb.MachineState, row)
    if message.min_epoch_interval_ms != machine.min_epoch_interval_ms:
        raise Halt(
            f"min_interval_ms was {message.min_epoch_interval_ms} when this realm began and cannot become "
            f"{machine.min_epoch_interval_ms}: all replicas must agree on it"
        )
    state = ReplicaState(
        epoch=message.epoch,
        issue_time_ms=message.issue_time_ms,
        head_hash=message.head_hash,
        signed_epoch=message.signed_epoch,
        verifier_log_size=message.verifier_log_size,
        pending_updates=message.pending_updates,
        parked_updates=message.parked_updates,
        policy=_policy(message.policy),
        min_epoch_interval_ms=message.min_epoch_interval_ms,
        next_policy=_policy(message.next_policy) if message.HasField("next_policy") else None,
        rules=message.rules or 1,
    )
    require_known(machine, state.rules)
    invariant(state.signed_epoch in (state.epoch, state.epoch - 1), "at most one head awaits its majority")
    if state.epoch == 0:
        invariant(state.head_hash == machine.realm.hash, "the store belongs to this realm")
    return state


def require_known(machine: Machine, rules: int) -> None:
    """Raise Halt at a rules level that this version does not know."""
    if rules not in machine.levels:
        known = max(machine.levels)
        raise Halt(f"the realm follows rules level {rules}, this version knows up to {known}: upgrade it")


def encode_state(state: ReplicaState) -> bytes:
    """The row of the state."""
    message = pb.MachineState(
        epoch=state.epoch,
        issue_time_ms=state.issue_time_ms,
        head_hash=state.head_hash,
        signed_epoch=state.signed_epoch,
        verifier_log_size=state.verifier_log_size,
        pending_updates=state.pending_updates,
        parked_updates=state.parked_updates,
        policy=encoding.policy_message(state.policy),
        min_epoch_interval_ms=state.min_epoch_interval_ms,
        rules=0 if state.rules == 1 else state.rules,
    )
    if state.next_policy is not None:
        message.next_policy.CopyFrom(encoding.policy_message(state.next_policy))
    return canonical(message)


def _policy(message: types_pb2.AuthorizationPolicy) -> AuthorizationPolicy:
    return decode_own_policy(canonical(message))


def load_position(reader: Reader) -> Position:
    """Where the store stands; before the first entry at index 0. Raises Halt."""
    row = _read(reader, Tables.APPLIED.key())
    if row is None:
        return GENESIS_POSITION
    message = parse_row(pb.Applied, row)
    invariant(len(message.digest) == 32, "a state digest has 32 bytes")
    return Position(message.index, message.digest)


def encode_position(position: Position) -> bytes:
    """The row of the position."""
    return canonical(pb.Applied(index=position.index, digest=position.digest))


def _read(reader: Reader, key: bytes) -> bytes | None:
    try:
        return reader.get(key)
    except StorageError as error:
        raise Halt(f"storage failed: {error}") from error
