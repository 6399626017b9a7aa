"""One command's turn: what a handler may look at, where it writes, and what it answers."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

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


def log_time(rows: Reader, policy: AuthorizationPolicy) -> int:
    """The largest time that a majority of the policy's keys has signed into the log; 0 before a majority
    spoke.
    """
    clocks = [rows.get(Tables.CLOCKS.key(key_id)) for key_id in policy.keys]
    times = sorted((decode_u64(row) for row in clocks if row is not None), reverse=True)
    majority = len(policy.keys) // 2 + 1
    return times[majority - 1] if len(times) >= majority else 0


def raise_clock(rows: Overlay, replica: bytes, time_ms: int) -> None:
    """Remember the largest time this replica signed into the log."""
    key = Tables.CLOCKS.key(replica)
    row = rows.get(key)
    if row is None or time_ms > decode_u64(row):
        rows.put(key, u64(time_ms))


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
