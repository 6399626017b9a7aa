"""Ratifications owed: signed once, kept, sent until acknowledged.

An OUTBOX row stands in the same batch as the head it is about, and goes when a keyserver has acknowledged the
ratification. So whatever is cut off in between, starting again is the normal code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from e2eks.v1 import verification_pb2

from kv.interface import Reader, Store
from kv.keys import u64
from verifier import encoding, limits
from verifier import epoch as epoch_law
from verifier.crypto import signatures
from verifier.daemon.evidence import Comparison, Evidence, Kind
from verifier.daemon.failures import REKEY, Misbehaved, Quarantined
from verifier.daemon.state import (
    RowCorrupt,
    encode_ratification,
    head_at,
    policy_heads,
    ratification_at,
)
from verifier.daemon.tables import VerifierTables as Tables
from verifier.signonce import AlreadySigned, BelowFloor, Row, SignOnceRegister
from verifier.types import Ratification, Realm, Signature, SignedHead


@dataclass(frozen=True, slots=True)
class Ready:
    """The SignedEpochHead to push: the head and this verifier's ratification."""

    push: bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    """The head was issued more than the allowed skew ahead of this verifier's clock: not signed yet."""

    ahead_ms: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The epoch is too old for the register to say whether it was signed, so it never is."""


Owed = Ready | Waiting | GivenUp


class Outbox:
    """One verifier's ratifications. One thread at a time."""

    def __init__(
        self, store: Store, register: SignOnceRegister, seed: bytes, key_id: bytes, clock: Callable[[], int]
    ) -> None:
        """`clock` tells Unix milliseconds."""
        self._store = store
        self._register = register
        self._seed = seed
        self._public_key = signatures.public_key(seed)
        self._key_id = key_id
        self._clock = clock

    def ratify(self, epoch: int) -> Owed:
        """The ratification of a replayed head, signed now or before; always the same bytes.

        Raises Misbehaved when another head of the epoch was signed, Quarantined when the head carries a
        signature by this key that the register does not know, StorageError.
        """
        head = head_at(self._store, epoch)
        if head is None:
            raise RowCorrupt(f"a ratification is owed for epoch {epoch}, whose head is missing")
        if self._register.get(epoch) is None:
            self._refuse_if_signed_elsewhere(head)
            ahead_ms = head.head.issue_time_ms - self._clock()
            if ahead_ms > limits.SKEW_MS:
                return Waiting(ahead_ms)
        try:
            row = self._register.sign_once(epoch, head.head.hash, lambda: self._sign(head))
        except AlreadySigned:
            raise Misbehaved(self._other_head_signed(head)) from None
        except BelowFloor:
            self.settle(epoch)
            return GivenUp()
        made = Ratification(row.timestamp_ms, (Signature(self._key_id, row.signature),))
        if ratification_at(self._store, epoch) is None:
            self._store.write({Tables.RATIFICATIONS.key(u64(epoch)): encode_ratification(made)})
        return Ready(encoding.encode_signed_head(head.head.encoded, [made]))

    def newest_made(self) -> bytes | None:
        """The SignedEpochHead of the newest ratification in the register; None while nothing was signed.

        Pushed again BEFORE anything is signed, its answer says what else this key has signed.
        """
        row = self._register.newest()
        head = head_at(self._store, row.epoch) if row else None
        if row is None or head is None:
            return None
        made = Ratification(row.timestamp_ms, (Signature(self._key_id, row.signature),))
        return encoding.encode_signed_head(head.head.encoded, [made])

    def check_standing(self, answer: bytes) -> None:
        """Compare a PushRatificationResponse with the register. Raises Misbehaved if it shows a ratification
        by this key that was not made here, Malformed if it is none. A false one shows nothing.
        """
        shown = standing(answer)
        if shown is None:
            return
        row = self._register.get(shown.head.epoch)
        if row is None and shown.head.epoch <= self._register.floor:
            return
        made = [(r.timestamp_ms, s.signature) for r in shown.ratifications for s in r.signatures]
        if row and row.head_hash == shown.head.hash and made == [(row.timestamp_ms, row.signature)]:
            return
        own = {self._key_id: self._public_key}
        if epoch_law.signers(shown, {}, own, own).verifiers:
            raise Misbehaved(self._used_elsewhere(shown, row))

    def _used_elsewhere(self, shown: SignedHead, row: Row | None) -> Evidence:
        head = head_at(self._store, shown.head.epoch) if row else None
        ours = b""
        if row and head and head.head.hash == row.head_hash:
            made = Ratification(row.timestamp_ms, (Signature(self._key_id, row.signature),))
            ours = encoding.encode_signed_head(head.head.encoded, [made])
        return Evidence(
            kind=Kind.OWN_KEY,
            what=f"the keyserver has a ratification of epoch {shown.head.epoch} by this verifier's key that "
            "this verifier did not make: the key is used elsewhere, or this verifier was restored and has "
            f"forgotten what it signed. {REKEY}",
            compared=(
                Comparison("head hash", shown.head.hash.hex(), row.head_hash.hex() if row else ""),
                Comparison(
                    "timestamp",
                    str(shown.ratifications[0].timestamp_ms),
                    str(row.timestamp_ms) if row else "",
                ),
            ),
            heads=tuple(encoded for encoded in (shown.encoded, ours) if encoded),
        )

    def settle(self, epoch: int) -> None:
        """Owe the ratification of `epoch` no longer. Raises StorageError."""
        self._store.write({Tables.OUTBOX.key(u64(epoch)): None})

    def _sign(self, head: SignedHead) -> Row:
        now_ms = self._clock()
        message = epoch_law.verifier_message(head.head.encoded, now_ms)
        return Row(
            epoch=head.head.epoch,
            head_hash=head.head.hash,
            timestamp_ms=now_ms,
            log_index=0,
            digest=bytes(limits.HASH_BYTES),
            signature=signatures.sign(self._seed, message),
        )

    def _refuse_if_signed_elsewhere(self, head: SignedHead) -> None:
        valid = epoch_law.signers(head, {}, {self._key_id: self._public_key}, (self._key_id,))
        if valid.verifiers and head.head.epoch > self._register.floor:
            raise Quarantined(
                f"head {head.head.epoch} arrived with a signature by this verifier's own key that its "
                "register does not know: the key is used elsewhere, or the register was lost. "
                f"{REKEY}"
            )

    def _other_head_signed(self, head: SignedHead) -> Evidence:
        row = self._register.get(head.head.epoch)
        signed = row.head_hash.hex() if row else ""
        return Evidence(
            kind=Kind.REGISTER,
            what=f"another head of epoch {head.head.epoch} was ratified by this verifier before",
            compared=(Comparison("head hash", head.head.hash.hex(), signed),),
            heads=(head.encoded,),
            policy_heads=tuple(change.encoded for change in policy_heads(self._store, head.head.epoch)),
        )


def standing(answer: bytes) -> SignedHead | None:
    """The head in a PushRatificationResponse, None if there is none. Raises Malformed."""
    message = encoding.parse(
        verification_pb2.PushRatificationResponse, answer, limits.SIGNED_HEAD_BYTES, "answer"
    )
    if not message.HasField("newest"):
        return None
    return encoding.decode_signed_head(message.newest.SerializeToString(deterministic=True))


def served_head(reader: Reader, realm: Realm, epoch: int) -> bytes | None:
    """The ratified head of `epoch` as RatifiedHeads serves it: valid replicas' signatures, and this
    verifier's.

    None if this verifier has not ratified the epoch. Raises StorageError.
    """
    head, own = head_at(reader, epoch), ratification_at(reader, epoch)
    if head is None or own is None:
        return None
    law = epoch_law.policy_at(realm, policy_heads(reader, epoch), epoch)
    change = head.head.next_epoch_policy
    keys = {**law.keys, **(change.keys if change else {})}
    valid = epoch_law.signers(head, keys, {}, keys).replicas
    issued = head.head.issue_time_ms
    made = {
        signature.key_id: signature
        for ratification in head.ratifications
        if ratification.timestamp_ms == issued
        for signature in ratification.signatures
        if signature.key_id in valid
    }
    room = limits.RATIFICATIONS_PER_HEAD - len(own.signatures)
    replicas = Ratification(issued, tuple(made.values())[:room])
    return encoding.encode_signed_head(head.head.encoded, [replicas, own])
