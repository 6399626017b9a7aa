"""The notice that a realm's history ends: what it says, who signs it, and what it is worth. Pure.

When every replica was lost and a backup is all there is, each replica that is put back signs, with the key it
had, where the backup's history ends (docs/operations/cluster.md). Who trusts the realm's replicas can so tell
an accident that was admitted from a fork that was not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kv.keys import u64
from verifier import encoding, limits, policy
from verifier import epoch as epoch_law
from verifier.crypto import hashing
from verifier.encoding import at_most, exact
from verifier.errors import Malformed, NotRatified, VerificationError
from verifier.types import AuthorizationPolicy, Realm, Signature, SignedHead

SCHEMA = "e2eks.history-break/1"
NOTICE_BYTES = 256 * 1024
_FIELDS = frozenset(
    {
        "schema",
        "realm",
        "realm_hash",
        "epoch",
        "head",
        "applied_index",
        "state_digest",
        "made_ms",
        "signatures",
    }
)


@dataclass(frozen=True, slots=True)
class Notice:
    """`head` is the newest head of the backup; `made_ms` (Unix time) is when the first replica signed.

    `applied_index` and `state_digest` say where the backup's log ends, to those who put it back: no signature
    stands for these two.
    """

    head: SignedHead
    applied_index: int
    state_digest: str
    made_ms: int
    signatures: tuple[Signature, ...] = ()

    @property
    def epoch(self) -> int:
        """The last epoch of the history."""
        return self.head.head.epoch


def message(realm: Realm, notice: Notice) -> bytes:
    """The 32 bytes that replicas sign."""
    head = notice.head.head
    return hashing.tagged(
        "e2eks/1/history-break", realm.hash, u64(head.epoch), head.hash, u64(notice.made_ms)
    )


def encode(realm: Realm, notice: Notice) -> bytes:
    """The bytes of the file: JSON, bytes in base64."""
    document = {
        "schema": SCHEMA,
        "realm": realm.name,
        "realm_hash": realm.hash.hex(),
        "epoch": notice.epoch,
        "head": _base64(notice.head.encoded),
        "applied_index": notice.applied_index,
        "state_digest": notice.state_digest,
        "made_ms": notice.made_ms,
        "signatures": [
            {"key_id": _base64(made.key_id), "signature": _base64(made.signature)}
            for made in notice.signatures
        ],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def decode(realm: Realm, data: bytes) -> Notice:
    """The notice in the bytes of a file, about this realm; no signature is checked. Raises Malformed."""
    at_most(len(data), NOTICE_BYTES, "bytes of a notice")
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA or document.keys() != _FIELDS:
            raise ValueError("other fields")
        notice = Notice(
            encoding.decode_signed_head(base64.b64decode(document["head"], validate=True)),
            _number(document["applied_index"]),
            _text(document["state_digest"]),
            _number(document["made_ms"]),
            tuple(_signature(made) for made in document["signatures"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Malformed(f"the file is no notice of schema {SCHEMA}") from None
    said = (document["realm"], document["realm_hash"], document["epoch"])
    head = notice.head.head
    if said != (realm.name, realm.hash.hex(), head.epoch) or head.realm_hash != realm.hash:
        raise Malformed("the notice does not tell of this realm, or does not fit together")
    return notice


def signed_by(realm: Realm, notice: Notice, keys: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """Key ids of `keys` (id -> public key) whose signature on the notice is valid."""
    return frozenset(policy.valid_signers(keys, message(realm, notice), notice.signatures)[0])


def successors(replicas: AuthorizationPolicy, notice: Notice) -> AuthorizationPolicy:
    """Who would have signed the next head, and signs the notice; `replicas` is the policy of its epoch."""
    return notice.head.head.next_epoch_policy or replicas


def verify(realm: Realm, replicas: AuthorizationPolicy, notice: Notice) -> frozenset[bytes]:
    """Key ids of the replicas that stand for the notice: a majority of `successors`.

    `replicas` is the policy of the head's epoch. Raises VerificationError for a head that is not this realm's
    or lacks its signatures, and for false signatures where true ones are missing; NotRatified while too few
    have signed.
    """
    epoch_law.check_realm(realm, notice.head.head)
    epoch_law.check_majority(replicas, notice.head)
    law = successors(replicas, notice)
    valid, false = policy.valid_signers(law.keys, message(realm, notice), notice.signatures)
    if policy.satisfied(law.quorum, valid):
        return frozenset(valid)
    if false:
        raise VerificationError("notice", f"{len(false)} of its signatures by replicas are false")
    what = f"{len(valid)} of {len(law.keys)} replicas have signed it, which is no majority"
    raise NotRatified("notice", what)


def _signature(made: Any) -> Signature:
    key_id, signature = (base64.b64decode(made.pop(name), validate=True) for name in ("key_id", "signature"))
    if made:
        raise ValueError("other fields")
    return Signature(
        exact(key_id, limits.KEY_BYTES, "key id"), exact(signature, limits.SIGNATURE_BYTES, "signature")
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= limits.MAX_U64:
        raise ValueError("no number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
