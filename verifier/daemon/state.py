"""Where a verifier stands, and how its rows are read. Pure: reads through a Reader, returns values and rows.

A row that cannot be read back is a storage error, never an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from e2eks.v1 import state_pb2, types_pb2
from google.protobuf.message import DecodeError

from kv.interface import Reader, StorageError
from kv.keys import from_u64, u64
from verifier import encoding, limits
from verifier.daemon.tables import VerifierTables as Tables
from verifier.epoch import Chain, genesis_chain
from verifier.errors import Malformed
from verifier.types import Ratification, Realm, SignedHead, SignedUpdate


@dataclass(frozen=True, slots=True)
class State:
    """What the next step must follow: its index in the verifier log, the chain of heads, the tree's root
    page."""

    next_index: int
    chain: Chain
    root_version: int
    pending_updates: int


@dataclass(frozen=True, slots=True)
class Current:
    """The newest accepted update of an index, and the epoch it belongs to."""

    epoch: int
    update: SignedUpdate


class RowCorrupt(StorageError):
    """A row that a verifier wrote does not read back. The process must halt."""


def first_state(realm: Realm) -> State:
    """Before the first step of the verifier log."""
    return State(next_index=1, chain=genesis_chain(realm), root_version=0, pending_updates=0)


def load_state(reader: Reader, realm: Realm) -> State:
    """The stored state, or the first one of an empty database. Raises StorageError."""
    row = reader.get(Tables.STATE.key())
    if row is None:
        return first_state(realm)
    try:
        message = state_pb2.VerifierState.FromString(row)
        policy = encoding.policy_from(message.policy, limits.VERIFICATION_POLICY_KEYS, "stored policy")
    except (DecodeError, Malformed):
        raise RowCorrupt("the state row cannot be read") from None
    return State(
        next_index=message.next_index,
        chain=Chain(message.epoch, message.head_hash, message.issue_time_ms, policy, message.rules or 1),
        root_version=message.root_version,
        pending_updates=message.pending_updates,
    )


def encode_state(state: State) -> bytes:
    """The row of a state."""
    message = state_pb2.VerifierState(
        next_index=state.next_index,
        epoch=state.chain.epoch,
        issue_time_ms=state.chain.issue_time_ms,
        head_hash=state.chain.head_hash,
        root_version=state.root_version,
        policy=encoding.policy_message(state.chain.policy),
        pending_updates=state.pending_updates,
        rules=0 if state.chain.rules == 1 else state.chain.rules,
    )
    return encoding.canonical(message)


def current_at(reader: Reader, index: bytes) -> Current | None:
    """The newest accepted update of `index`. Raises StorageError."""
    row = reader.get(Tables.ENTRIES.key(index))
    if row is None:
        return None
    try:
        message = state_pb2.EntryRow.FromString(row)
        return Current(message.epoch, encoding.update_from(message.update))
    except (DecodeError, Malformed):
        raise RowCorrupt("an entry row cannot be read") from None


def encode_current(epoch: int, update: SignedUpdate) -> bytes:
    """The row of an update accepted for `epoch`."""
    row = state_pb2.EntryRow(epoch=epoch)
    row.update.ParseFromString(update.encoded)
    return encoding.canonical(row)


def head_at(reader: Reader, epoch: int) -> SignedHead | None:
    """The replayed head of `epoch` with the replicas' signatures. Raises StorageError."""
    row = reader.get(Tables.HEADS.key(u64(epoch)))
    return None if row is None else _signed_head(row)


def policy_heads(reader: Reader, before_epoch: int) -> tuple[SignedHead, ...]:
    """The heads below `before_epoch` that changed the replicas' policy, in order. Raises StorageError."""
    start, _ = Tables.POLICY_HEADS.span()
    rows = reader.scan(start, Tables.POLICY_HEADS.key(u64(before_epoch)))
    return tuple(_signed_head(row) for _, row in rows)


def ratification_at(reader: Reader, epoch: int) -> Ratification | None:
    """This verifier's ratification of `epoch`, if it made one. Raises StorageError."""
    row = reader.get(Tables.RATIFICATIONS.key(u64(epoch)))
    return None if row is None else decode_ratification(row)


def newest_ratified(reader: Reader) -> int:
    """The newest epoch this verifier ratified, 0 for none. Raises StorageError."""
    start, stop = Tables.RATIFICATIONS.span()
    for key, _ in reader.scan(start, stop, reverse=True, limit=1):
        return from_u64(Tables.RATIFICATIONS.suffix(key))
    return 0


def owed_epochs(reader: Reader, limit: int) -> tuple[int, ...]:
    """At most `limit` epochs whose ratification is not yet acknowledged. Raises StorageError.

    The newest first, because clients wait for it; then from the oldest on, because the sign-once register
    forgets old epochs for good once it holds many newer ones.
    """
    start, stop = Tables.OUTBOX.span()
    newest = [key for key, _ in reader.scan(start, stop, reverse=True, limit=1)]
    older = [key for key, _ in reader.scan(start, stop, limit=limit) if key not in newest]
    return tuple(from_u64(Tables.OUTBOX.suffix(key)) for key in (*newest, *older)[:limit])


def encode_ratification(ratification: Ratification) -> bytes:
    """The row of a ratification: a signed head without its head."""
    return encoding.encode_signed_head(b"", [ratification])


def decode_ratification(row: bytes) -> Ratification:
    """The ratification in a row of RATIFICATIONS. Raises RowCorrupt."""
    try:
        message = types_pb2.SignedEpochHead.FromString(row)
        return encoding.ratification_from(message.ratifications[0])
    except (DecodeError, Malformed, IndexError):
        raise RowCorrupt("a ratification row cannot be read") from None


def _signed_head(row: bytes) -> SignedHead:
    try:
        return encoding.decode_signed_head(row)
    except Malformed:
        raise RowCorrupt("a head row cannot be read") from None
