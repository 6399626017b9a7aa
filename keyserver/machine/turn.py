"""One command's turn: what a handler may look at, where it writes, and what it answers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from keyserver.machine.codes import Code
from keyserver.machine.notices import Notice
from keyserver.machine.rows import decode_u64
from keyserver.machine.state import Machine, Position, ReplicaState
from keyserver.machine.tables import Tables
from kv.interface import Reader
from kv.keys import u64
from kv.overlay import Overlay
from verifier import proof_encoding
from verifier.types import AuthorizationPolicy

NOBODY: Final[Mapping[bytes, int]] = {}


@dataclass(frozen=True, slots=True)
class Turn:
    """`rows` shows what earlier commands of the entry wrote; it is dropped unless the answer is Done."""

    machine: Machine
    state: ReplicaState
    rows: Overlay
    replica: bytes  # key id of the proposing replica, one of P(epoch + 1)
    now_ms: int  # the log's time, this entry counted
    position: Position  # BEFORE this entry: what a head of this entry carries
    private_part: bytes
    part: int  # its number in the entry, from 0

    @property
    def index(self) -> int:
        """The log index of this entry."""
        return self.position.index + 1


@dataclass(frozen=True, slots=True)
class Done:
    """An accepted command. `epoch`: for an update, the first that contains the entry."""

    state: ReplicaState
    notices: tuple[Notice, ...] = ()
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A declined command that is worth announcing. A Code alone is a refusal without notices."""

    code: Code
    notices: tuple[Notice, ...] = ()


Answer = Done | Refusal | Code


def clock_of(rows: Reader, replica: bytes) -> int:
    """The largest time that this replica (key id) signed into the log; 0 before it spoke."""
    row = rows.get(Tables.CLOCKS.key(replica))
    return 0 if row is None else decode_u64(row)


def log_time(rows: Reader, policy: AuthorizationPolicy, saying: Mapping[bytes, int] = NOBODY) -> int:
    """The largest time that a majority of the policy's keys has signed into the log; 0 before a majority
    spoke. `saying`: what it would be once these replicas had signed these times too.
    """
    clocks = (max(clock_of(rows, key_id), saying.get(key_id, 0)) for key_id in policy.keys)
    return sorted(clocks, reverse=True)[len(policy.keys) // 2]


def raise_clock(rows: Overlay, replica: bytes, time_ms: int) -> None:
    """Remember the largest time this replica signed into the log."""
    if rows.get(Tables.CLOCKS.key(replica)) is None or time_ms > clock_of(rows, replica):
        rows.put(Tables.CLOCKS.key(replica), u64(time_ms))


def emit_updates(rows: Overlay, state: ReplicaState, updates: Iterable[bytes]) -> ReplicaState:
    """Append encoded SignedEntryUpdates to the verifier log."""
    size = state.verifier_log_size
    for update in updates:
        size += 1
        rows.put(Tables.VERIFIER_LOG.key(u64(size)), proof_encoding.encode_update_step(size, update))
    return replace(state, verifier_log_size=size)


def emit_head(rows: Overlay, state: ReplicaState, signed_head: bytes) -> ReplicaState:
    """Append an encoded SignedEpochHead to the verifier log."""
    size = state.verifier_log_size + 1
    rows.put(Tables.VERIFIER_LOG.key(u64(size)), proof_encoding.encode_epoch_step(size, signed_head))
    return replace(state, verifier_log_size=size)
