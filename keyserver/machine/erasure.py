"""Erase: forget what private parts left of an index, and owe their blanking in this replica's own log.

Verdict and replicated writes follow from public rows alone. Which private rows there are, and where in the
log the same stands, may differ between replicas: it decides private and local rows, nothing else. A part
that filled no row is of no use to anybody, and is owed at once. A duty is paid by `keyserver.erasure` and
deleted only when neither log nor store has a file with the bytes left.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from e2eks.v1 import command_pb2
from e2eks.v1 import state_pb2 as pb

from keyserver.machine import commands
from keyserver.machine.codes import CODE_OF, Halt, invariant
from keyserver.machine.commands import Erase, LogEntry
from keyserver.machine.rows import decode_entry_row, parse_row, vrf_cache_key
from keyserver.machine.tables import Tables
from keyserver.machine.turn import Answer, Done, Turn
from kv.interface import Reader
from kv.keys import u64
from kv.overlay import Overlay
from verifier import encoding, limits
from verifier.encoding import canonical
from verifier.erasure import erasure_message, verify_erasure
from verifier.errors import Reason, Refused
from verifier.types import AuthorizationPolicy, Signature

PART_BYTES = 2  # an entry has at most 1024 commands
ALL_PARTS = 2**16 - 1  # stands for every private part of an entry; no part has this number


# The command


@dataclass(frozen=True, slots=True)
class Erasable:
    """An index that has an entry: `law` says who may erase, `done` that this entry is erased already."""

    law: AuthorizationPolicy
    entry_hash: bytes
    done: bool


def erasable(reader: Reader, index: bytes) -> Erasable:
    """How `index` stands. Raises Refused (VERSION_MISMATCH) if it has no entry, and Halt."""
    row = reader.get(Tables.CURRENT.key(index))
    if row is None:
        raise Refused(Reason.VERSION_MISMATCH, "the index has no entry to erase")
    _, current = decode_entry_row(row)
    law = current.entry.update_policy
    if current.entry.revocation:
        law = _revoked_law(reader, index)
    if law is None:
        raise Halt("broken invariant: an entry that is no revocation has a policy")
    done = reader.get(Tables.ERASED.key(index)) == current.entry.hash
    return Erasable(law, current.entry.hash, done)


def _revoked_law(reader: Reader, index: bytes) -> AuthorizationPolicy | None:
    """The policy of the entry before a revocation; that is no revocation itself."""
    for _, row in reader.scan(*Tables.PAST.span(index), reverse=True, limit=1):
        return decode_entry_row(row)[1].entry.update_policy
    raise Halt("broken invariant: a revocation has an entry before it")


def verify(
    reader: Reader, realm_hash: bytes, index: bytes, entry_hash: bytes, made: tuple[Signature, ...]
) -> tuple[Erasable, tuple[Signature, ...]]:
    """How the index stands, and the signatures that count.

    Raises Refused (VERSION_MISMATCH, NOT_AUTHORIZED), Halt.
    """
    found = erasable(reader, index)
    if entry_hash != found.entry_hash:
        raise Refused(Reason.VERSION_MISMATCH, "the erasure is signed for another entry than the current one")
    return found, verify_erasure(found.law, erasure_message(realm_hash, index, entry_hash), made)


def erase(turn: Turn, command: Erase) -> Answer:
    """Delete every private row of the index. The same again succeeds, and finds nothing."""
    index = command.index
    try:
        verify(turn.rows, turn.machine.realm.hash, index, command.entry_hash, command.signatures)
    except Refused as refusal:
        return CODE_OF[refusal.reason]
    turn.rows.put(Tables.ERASED.key(index), command.entry_hash)
    _forget(turn.rows, index)
    return Done(turn.state)


def _forget(rows: Overlay, index: bytes) -> None:
    """Delete the private rows, and note what lies in files because of them."""
    for key, row in list(rows.scan(*Tables.PROFILES.span(index))):
        private = parse_row(pb.PrivateRow, row)
        deleted = (key, vrf_cache_key(private.user_id))
        for each in deleted:
            rows.put(each, None)
        rows.put(_duty(private.log_index, private.part), _encode_duty(deleted))


# Private parts in the log


def useless_parts(
    log_index: int, payload: bytes, entry: LogEntry, used: frozenset[int] = frozenset()
) -> dict[bytes, bytes]:
    """Duties to blank the private parts of an entry, but those numbered in `used`, which filled a row."""
    if payload != entry.public and not any(entry.private_parts):  # not one for each command
        return {_duty(log_index, ALL_PARTS): _encode_duty(())}
    useless = (number for number, part in enumerate(entry.private_parts) if part and number not in used)
    return {_duty(log_index, number): _encode_duty(()) for number in useless}


def _duty(log_index: int, number: int) -> bytes:
    return Tables.BLANKING.key(u64(log_index), number.to_bytes(PART_BYTES, "big"))


def _encode_duty(deleted: tuple[bytes, ...]) -> bytes:
    return canonical(pb.BlankingRow(deleted=deleted))


def without_parts(payload: bytes, numbers: Collection[int]) -> bytes:
    """A log entry with these private parts blank. Raises Malformed."""
    entry = encoding.parse(command_pb2.LogEntry, payload, limits.LOG_ENTRY_BYTES, "log entry")
    kept = [b"" if number in numbers else part for number, part in enumerate(entry.private_parts)]
    parts = () if ALL_PARTS in numbers else kept
    return commands.encode_log_entry(entry.envelope, entry.signature, parts)


@dataclass(frozen=True, slots=True)
class OweBlanking:
    """Blank `parts` of a log entry, purge files of it and of the `deleted` rows; then delete `duties`."""

    log_index: int
    parts: frozenset[int]
    deleted: frozenset[bytes]
    duties: frozenset[bytes]


def owed_blankings(reader: Reader, limit: int) -> list[OweBlanking]:
    """The oldest duties by entries of the log, from at most `limit` rows. Raises Halt."""
    found: dict[int, OweBlanking] = {}
    for log_index, one in _duties(reader, limit):
        before = found.get(log_index, OweBlanking(log_index, frozenset(), frozenset(), frozenset()))
        found[log_index] = OweBlanking(
            log_index, before.parts | one.parts, before.deleted | one.deleted, before.duties | one.duties
        )
    return list(found.values())


def _duties(reader: Reader, limit: int) -> Iterator[tuple[int, OweBlanking]]:
    for key, row in reader.scan(*Tables.BLANKING.span(), limit=limit):
        suffix = Tables.BLANKING.suffix(key)
        invariant(len(suffix) == 8 + PART_BYTES, "a duty to blank names an entry and a part")
        log_index, number = int.from_bytes(suffix[:8], "big"), int.from_bytes(suffix[8:], "big")
        deleted = frozenset(parse_row(pb.BlankingRow, row).deleted)
        yield log_index, OweBlanking(log_index, frozenset((number,)), deleted, frozenset((key,)))
