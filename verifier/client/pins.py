"""What a client remembers of a realm: heads seen (fork), epochs accepted (rollback), policy changes.

Everything here was verified before it was stored. A head is *linked* once it is proven to lie in one history
with the newest linked head; heads from saved proofs are held unlinked until a server's answer links them.
State is replaced by compare-and-swap, so that two processes cannot undo each other's pins.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Protocol

from verifier import encoding, files, limits
from verifier.errors import ConfigError, E2eksError
from verifier.types import QuorumExpr, SignedHead

SCHEMA = "e2eks.pins/1"
HEADS_HELD = 32  # enough to recognise a fork in proofs saved around one time; bounds the links of one lookup
CHANGES_HELD = 1024  # changes of the replicas' policy: a few a year
FILE_BYTES = (HEADS_HELD + CHANGES_HELD) * 2 * limits.SIGNED_HEAD_BYTES


@dataclass(frozen=True, slots=True)
class HeldHead:
    signed: SignedHead
    linked: bool

    @property
    def epoch(self) -> int:
        return self.signed.head.epoch


def quorum_name(quorum: QuorumExpr) -> str:
    """The name under which the epochs accepted by a quorum are remembered."""
    return sha256(encoding.encode_quorum(quorum)).hexdigest()


@dataclass(frozen=True, slots=True)
class PinState:
    """Heads by rising epoch; newest accepted epoch by quorum name; the changes of the replicas' policy."""

    heads: tuple[HeldHead, ...] = ()
    epochs: Mapping[str, int] = field(default_factory=dict)
    changes: tuple[SignedHead, ...] = ()

    def head_at(self, epoch: int) -> SignedHead | None:
        """The head held for `epoch`."""
        return next((held.signed for held in self.heads if held.epoch == epoch), None)

    @property
    def newest(self) -> SignedHead | None:
        """The pin: the newest linked head."""
        return next((held.signed for held in reversed(self.heads) if held.linked), None)

    @property
    def newest_epoch(self) -> int:
        """Epoch of the newest head held, linked or not; 0 if none."""
        return self.heads[-1].epoch if self.heads else 0

    def epoch_of(self, quorum: QuorumExpr) -> int:
        """The newest epoch accepted under `quorum`; 0 if none."""
        return self.epochs.get(quorum_name(quorum), 0)

    def holding(self, signed: SignedHead, *, linked: bool, proven: Collection[int] = ()) -> PinState:
        """With `signed` held, and the heads of the epochs in `proven` linked."""
        heads = {held.epoch: held for held in self.heads}
        for epoch in proven:
            heads[epoch] = replace(heads[epoch], linked=True)
        before = heads.get(signed.head.epoch)
        heads[signed.head.epoch] = HeldHead(signed, linked or (before is not None and before.linked))
        return replace(self, heads=_trimmed(heads))

    def accepting(self, quorum: QuorumExpr, epoch: int) -> PinState:
        """With `epoch` accepted under `quorum`; never lowers what was accepted."""
        newest = max(epoch, self.epoch_of(quorum))
        return replace(self, epochs={**self.epochs, quorum_name(quorum): newest})


def _trimmed(heads: Mapping[int, HeldHead]) -> tuple[HeldHead, ...]:
    """The newest heads, unlinked ones before linked ones; the newest linked head always."""
    order = sorted(heads.values(), key=lambda held: held.epoch, reverse=True)
    pin = [held for held in order if held.linked][:1]
    rest = sorted((held for held in order if held not in pin), key=lambda held: held.linked)
    return tuple(sorted((pin + rest)[:HEADS_HELD], key=lambda held: held.epoch))


class Pins(Protocol):
    """Where the state of one realm is kept."""

    def load(self) -> PinState:
        """The state now. Raises ConfigError."""
        ...

    def swap(self, before: PinState, after: PinState) -> bool:
        """Store `after` if the state still is `before`; says whether it was. Raises ConfigError."""
        ...


class MemoryPins:
    """Pins that last as long as the object."""

    def __init__(self) -> None:
        self._state = PinState()
        self._lock = Lock()

    def load(self) -> PinState:
        return self._state

    def swap(self, before: PinState, after: PinState) -> bool:
        with self._lock:
            if self._state != before:
                return False
            self._state = after
            return True


class FilePins:
    """Pins in one file per realm, shared by all processes of a user."""

    def __init__(self, folder: Path, realm_hash: bytes) -> None:
        self._path = folder / f"{realm_hash.hex()}.json"

    def load(self) -> PinState:
        data = files.find_file(self._path, FILE_BYTES, "file of pins")
        if data is None:
            return PinState()
        try:
            return _decode(data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, E2eksError):
            what = f"{self._path}, the heads seen so far, cannot be read; restore it, or move it away"
            raise ConfigError(
                f"{what} and lose the protection against rollback and forks until now"
            ) from None

    def swap(self, before: PinState, after: PinState) -> bool:
        with files.locked(self._path):
            if self.load() != before:
                return False
            if after != before:
                files.store_private(self._path, _encode(after))
            return True


def _encode(state: PinState) -> bytes:
    document = {
        "schema": SCHEMA,
        "heads": [{"head": _base64(held.signed.encoded), "linked": held.linked} for held in state.heads],
        "epochs": dict(state.epochs),
        "policy_heads": [_base64(change.encoded) for change in state.changes],
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _decode(data: bytes) -> PinState:
    document = json.loads(data)
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    heads = (HeldHead(_signed_head(held["head"]), bool(held["linked"])) for held in document["heads"])
    return PinState(
        heads=tuple(sorted(heads, key=lambda held: held.epoch)),
        epochs={str(name): int(epoch) for name, epoch in document["epochs"].items()},
        changes=tuple(_signed_head(change) for change in document["policy_heads"]),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _signed_head(text: str) -> SignedHead:
    try:
        return encoding.decode_signed_head(base64.b64decode(text, validate=True))
    except binascii.Error:
        raise ValueError("not base64") from None
