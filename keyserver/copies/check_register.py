"""The sign-once register against the heads that a replay of the log gives.

Everything this replica signed must be in its register, or lie at or below the register's floor; everything in
the register must be what the log says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from keyserver.machine.rows import decode_own_head, head_row
from keyserver.machine.tables import Tables
from kv.interface import Reader
from kv.keys import from_u64
from verifier.crypto import hashing, signatures
from verifier.epoch import replica_message
from verifier.limits import HASH_BYTES
from verifier.signonce import Row
from verifier.types import Realm

REGISTER = "sign-once register"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A register as it was read. `online`: its owner ran on meanwhile, so it may be ahead of the rows."""

    public_key: bytes
    floor: int
    rows: Mapping[int, Row]
    online: bool = False


def check_register(
    realm: Realm,
    rows: Reader,
    recorded: Recorded,
    applied: int,
    fault: Callable[[str, str, str], None],
) -> None:
    """Compare with `rows`, which stand at log index `applied`. `fault` is told table, key and reason."""
    for epoch, row in sorted(recorded.rows.items()):
        why = _wrong(realm, rows, recorded, row, applied)
        if why:
            fault(REGISTER, str(epoch), why)
    key_id = hashing.key_id(recorded.public_key)
    for key, signature in rows.scan(*Tables.REPLICA_SIGNATURES.span()):
        suffix = Tables.REPLICA_SIGNATURES.suffix(key)
        if suffix[-HASH_BYTES:] != key_id:
            continue
        epoch = from_u64(suffix[:-HASH_BYTES])
        known = recorded.rows.get(epoch)
        if known is None and epoch > recorded.floor:
            fault(REGISTER, str(epoch), "the log has this replica's signature on the epoch, the register not")
        elif known is not None and known.signature != signature:
            fault(REGISTER, str(epoch), "the register holds another signature on the epoch than the log")


def _wrong(realm: Realm, rows: Reader, recorded: Recorded, row: Row, applied: int) -> str:
    """What is wrong with one row of the register, or ""."""
    if row.log_index > applied:
        behind = f"signed at log index {row.log_index}, but the database ends at {applied}: its tail is lost"
        return "" if recorded.online else behind
    found = head_row(rows, row.epoch)
    if found is None:
        return "the log has no head of this epoch"
    head = decode_own_head(found)
    compared = (
        ("head", row.head_hash, head.hash),
        ("time", row.timestamp_ms, head.issue_time_ms),
        ("log index", row.log_index, found.log_index),
        ("state digest", row.digest, head.state_digest),
    )
    for name, said, expected in compared:
        if said != expected:
            return f"the {name} is another one than the log gives"
    message = replica_message(head.encoded, row.timestamp_ms)
    if not signatures.verify(recorded.public_key, message, row.signature):
        return f"the signature does not verify under this replica's key, in realm {realm.name}"
    return ""
