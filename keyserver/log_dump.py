"""The replicated log of a stopped replica, entry by entry, for operators.

Shows public parts only, never a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from keyserver.engines import LOCAL_ENGINE, Engine
from keyserver.machine import commands
from verifier.crypto import hashing
from verifier.errors import ConfigError, Malformed

PAGE_ENTRIES = 256
PAGE_BYTES = 4 * 1024 * 1024
HEX_DIGITS = 64  # of a hash or key id


def dump(
    data: Path, start: int, limit: int | None, engine: Engine = LOCAL_ENGINE
) -> Iterator[dict[str, Any]]:
    """One record for each committed entry from index `start` on, at most `limit`.

    Raises ConfigError where there is no log, StorageInUse while the replica runs, StorageError for a damaged
    log.
    """
    folder = data / engine.folder
    if not folder.is_dir():
        raise ConfigError(f"there is no log in {folder}: the replica has not run with this configuration")
    log = engine.open(folder, False)
    try:
        stop = log.status().committed_index + 1
        if limit is not None:
            stop = min(stop, start + limit)
        while start < stop:
            for entry in log.read(start, min(stop, start + PAGE_ENTRIES), PAGE_BYTES):
                yield describe(entry.index, entry.payload)
                start = entry.index + 1
    finally:
        trio.run(log.stop)


def describe(index: int, payload: bytes) -> dict[str, Any]:
    """What the public part of a payload says; a payload that is no entry is described too."""
    record: dict[str, Any] = {"schema": "e2eks.log-entry/1", "index": index, "bytes": len(payload)}
    try:
        entry = commands.decode_log_entry(payload)
    except Malformed as error:
        return {**record, "malformed": str(error)}
    envelope = entry.envelope
    shown = [
        _command(command) | {"private_part": "kept" if part else "none"}
        for command, part in zip(envelope.commands, entry.private_parts, strict=True)
    ]
    return {
        **record,
        "rules": envelope.rules,
        "replica": envelope.replica.hex(),
        "time_ms": envelope.time_ms,
        "commands": shown,
    }


def _command(command: commands.Command) -> dict[str, Any]:
    match command:
        case commands.SubmitUpdate(update=update, endorsements=endorsements):
            entry = update.entry
            details: dict[str, Any] = {
                "index": entry.index.hex(),
                "version": entry.version,
                "revocation": entry.revocation,
                "entry_hash": entry.hash.hex(),
                "endorsements": len(endorsements),
            }
        case commands.Delimiter(epoch, time_ms):
            details = {"epoch": epoch, "time_ms": time_ms}
        case commands.SignHead(epoch, head_hash, _):
            details = {"epoch": epoch, "head_hash": head_hash.hex()}
        case commands.AddRatification(signed):
            [ratification] = signed.ratifications
            [signature] = ratification.signatures
            details = {
                "epoch": signed.head.epoch,
                "verifier": signature.key_id.hex(),
                "timestamp_ms": ratification.timestamp_ms,
            }
        case commands.AdmitVerifier(public_key):
            details = {"verifier": hashing.key_id(public_key).hex()}
        case commands.Tick():
            details = {}
        case commands.Erase(index, entry_hash, made):
            details = {"index": index.hex(), "entry_hash": entry_hash.hex(), "signatures": len(made)}
        case commands.ChangeReplicas(change, made):
            details = {
                "base": change.base.hex(),
                "replicas": [key_id.hex() for key_id in change.policy.keys],
                "not_after_ms": change.not_after_ms,
                "approvals": [approval.key_id.hex() for approval in made],
            }
        case commands.AnnounceRules(rules):
            details = {"rules": rules}
        case commands.Unreadable(code):
            details = {"code": code.name}
    return {"command": type(command).__name__, **details}


def one_line(record: Mapping[str, Any]) -> str:
    """A record for people: hashes and key ids by their first digits."""
    if "malformed" in record:
        return f"{record['index']:>8}  malformed: {record['malformed']}"
    commands_shown = [
        " ".join(
            [
                command["command"],
                *(f"{k}={_short(v)}" for k, v in command.items() if k != "command" and v != "none"),
            ]
        )
        for command in record["commands"]
    ]
    return (
        f"{record['index']:>8}  {record['time_ms']}  {_short(record['replica'])}  {'; '.join(commands_shown)}"
    )


def _short(value: object) -> object:
    return value[:8] if isinstance(value, str) and len(value) == HEX_DIGITS else value
