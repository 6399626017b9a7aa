"""What a client keeps when a proof fails or histories conflict: files that others can check for themselves.

Schema "e2eks.evidence/1", the one `verifier evidence verify` reads. Signed bytes are base64, as received.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from verifier import encoding, files
from verifier.client.historian import BadAnswer, BrokenHistory
from verifier.errors import HistoryConflict
from verifier.types import Realm, SignedHead

SCHEMA = "e2eks.evidence/1"
LOOKUP_METHODS = frozenset({"Lookup", "Update", "saved"})  # whose answer is one LookupProof


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was received.

    `kind` is fork (two heads of one epoch), chain (a head and a next one that does not follow it),
    consistency (two heads and the paths that do not join them) or proof (the messages of the answer of
    `method` that failed `check`). The first two prove themselves; the others say what this client was shown.
    """

    kind: str
    what: str
    check: str = ""
    heads: tuple[bytes, ...] = ()
    policy_heads: tuple[bytes, ...] = ()
    paths: tuple[tuple[bytes, ...], tuple[bytes, ...]] = ((), ())
    method: str = ""
    received: tuple[bytes, ...] = ()

    def document(self, realm: Realm, time_ms: int) -> dict[str, object]:
        """The JSON form; empty parts are left out."""
        is_lookup = self.method in LOOKUP_METHODS and self.received
        parts: dict[str, object] = {
            "schema": SCHEMA,
            "kind": self.kind,
            "what": self.what,
            "check": self.check,
            "method": self.method,
            "realm": realm.name,
            "realm_hash": realm.hash.hex(),
            "time_ms": time_ms,
            "heads": _base64(self.heads),
            "policy_heads": _base64(self.policy_heads),
            "inclusion": _base64(self.paths[0]),
            "consistency": _base64(self.paths[1]),
            "proof": _base64(self.received)[0] if is_lookup else "",
            "messages": [] if is_lookup else _base64(self.received),
        }
        return {name: value for name, value in parts.items() if value}


def evidence_of(error: BadAnswer | HistoryConflict, changes: Iterable[SignedHead]) -> Evidence:
    """What shows that `error` is justified; `changes` are the known changes of the replicas' policy."""
    if isinstance(error, BadAnswer):
        return Evidence("proof", error.what, check=error.check, method=error.method, received=error.received)
    return Evidence(
        _kind(error),
        error.what,
        heads=(error.first, error.second),
        policy_heads=tuple(change.encoded for change in changes),
        paths=(error.inclusion, error.consistency) if isinstance(error, BrokenHistory) else ((), ()),
    )


def _kind(conflict: HistoryConflict) -> str:
    """The kind of evidence: fork or chain if the heads alone prove it."""
    heads = (encoding.decode_signed_head(conflict.first), encoding.decode_signed_head(conflict.second))
    first, second = sorted((signed.head for signed in heads), key=lambda head: head.epoch)
    if first.epoch == second.epoch:
        return "fork"
    broken = second.epoch == first.epoch + 1 and second.previous_head_hash != first.hash
    return "chain" if broken else "consistency"


def _base64(parts: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(part).decode("ascii") for part in parts]


@dataclass(slots=True)
class EvidenceFolder:
    """Files named by what they hold: the same evidence met again makes no second file."""

    path: Path | None
    kept: list[Path] = field(default_factory=list)

    def keep(self, evidence: Evidence, realm: Realm, time_ms: int) -> Path | None:
        """The file now holding `evidence`, or None if this client keeps nothing. Raises ConfigError."""
        if self.path is None:
            return None
        substance = json.dumps(evidence.document(realm, 0), sort_keys=True).encode()
        path = self.path / f"{evidence.kind}-{sha256(substance).hexdigest()[:16]}.json"
        if not path.exists():
            document = json.dumps(evidence.document(realm, time_ms), indent=2, sort_keys=True) + "\n"
            files.store_private(path, document.encode())
        self.kept.append(path)
        return path
