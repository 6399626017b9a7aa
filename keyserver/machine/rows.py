"""Rows <-> values. A row that does not decode was damaged: Halt, never a verdict, never "not found"."""

from typing import TypeVar

from e2eks.v1 import state_pb2 as pb
from e2eks.v1 import types_pb2
from google.protobuf.message import Message

from keyserver.machine.codes import Halt, invariant
from keyserver.machine.tables import Tables
from kv.interface import Reader
from kv.keys import u64
from verifier import encoding, limits
from verifier.crypto import hashing
from verifier.encoding import canonical
from verifier.errors import Malformed
from verifier.types import AuthorizationPolicy, EpochHead, Ratification, SignedUpdate

M = TypeVar("M", bound=Message)

# No row is larger than what an entry of the log can carry.
ROW_BYTES = limits.LOG_ENTRY_BYTES


def parse_row(kind: type[M], row: bytes) -> M:
    """The message in a row. Raises Halt."""
    try:
        return encoding.parse(kind, row, ROW_BYTES, kind.DESCRIPTOR.name)
    except Malformed as error:
        raise Halt(f"a damaged row: {error}") from error


# Entries


def encode_entry_row(epoch: int, update: SignedUpdate) -> bytes:
    """`epoch` is the first that contains the entry."""
    message = types_pb2.SignedEntryUpdate.FromString(update.encoded)
    return canonical(pb.EntryRow(epoch=epoch, update=message))


def decode_entry_row(row: bytes) -> tuple[int, SignedUpdate]:
    """(first epoch that contains the entry, its update). Raises Halt."""
    message = parse_row(pb.EntryRow, row)
    try:
        return message.epoch, encoding.update_from(message.update)
    except Malformed as error:
        raise Halt(f"a damaged row: {error}") from error


# Names


def vrf_cache_key(user_id: str) -> bytes:
    """The key of a name's row in the VRF cache: a hash, for a key cannot be erased from all files."""
    return Tables.VRF_CACHE.key(hashing.tagged("e2eks/1/vrf-cache", user_id.encode("utf-8")))


# Heads


def head_row(reader: Reader, epoch: int) -> pb.HeadRow | None:
    """The row of a composed head, or None. Raises Halt, and StorageError as the reader does."""
    row = reader.get(Tables.HEADS.key(u64(epoch)))
    return None if row is None else parse_row(pb.HeadRow, row)


def known_head_row(reader: Reader, epoch: int) -> pb.HeadRow:
    """The row of a head that must be there. Raises Halt."""
    row = head_row(reader, epoch)
    if row is None:
        raise Halt(f"broken invariant: head {epoch} is missing")
    return row


def decode_own_head(row: pb.HeadRow) -> EpochHead:
    """The head in a row. Raises Halt."""
    try:
        return encoding.decode_head(row.head)
    except Malformed as error:
        raise Halt(f"a damaged row: {error}") from error


def decode_ratification(row: bytes) -> Ratification:
    """A stored ratification. Raises Halt."""
    try:
        return encoding.ratification_from(parse_row(types_pb2.Ratification, row))
    except Malformed as error:
        raise Halt(f"a damaged row: {error}") from error


def encode_ratification(made: Ratification) -> bytes:
    """The row of a ratification."""
    return canonical(
        types_pb2.Ratification(
            timestamp_ms=made.timestamp_ms,
            signatures=[types_pb2.Signature(key_id=s.key_id, signature=s.signature) for s in made.signatures],
        )
    )


# Policies, verifiers, clocks


def decode_own_policy(row: bytes) -> AuthorizationPolicy:
    """A replicas' policy out of a row. Raises Halt."""
    try:
        return encoding.decode_policy(row, limits.VERIFICATION_POLICY_KEYS, "replicas' policy")
    except Malformed as error:
        raise Halt(f"a damaged row: {error}") from error


def policy_of_epoch(reader: Reader, genesis: AuthorizationPolicy, epoch: int) -> AuthorizationPolicy:
    """P(epoch): what the newest head before `epoch` that changed the policy introduced, else the genesis
    policy.
    """
    start, _ = Tables.POLICY_HEADS.span()
    stop = Tables.POLICY_HEADS.key(u64(epoch))
    for _, row in reader.scan(start, stop, reverse=True, limit=1):
        return decode_own_policy(row)
    return genesis


def verifier_row(reader: Reader, key_id: bytes) -> pb.VerifierRow | None:
    """The row of a verifier that at least one replica approved. Raises Halt."""
    row = reader.get(Tables.VERIFIERS.key(key_id))
    return None if row is None else parse_row(pb.VerifierRow, row)


def decode_u64(row: bytes) -> int:
    """A number in a row of its own. Raises Halt."""
    invariant(len(row) == 8, "a number has 8 bytes")
    return int.from_bytes(row, "big")
