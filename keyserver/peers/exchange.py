"""Heads shown from replica to replica, beside the log.

Raft tolerates crashes, not lies: a lying leader may show followers different logs, and each would sign what
follows from its own. So every replica shows each head it signs to the others directly. One that is shown
another head of an epoch than its own, by another replica's signature, keeps both as evidence and signs
nothing more: no head, no log entry, no endorsement.

It goes on when a majority of the replicas, itself included, has stated that very head, or a later one of its
own past: heads are chained, so all of the past is the same. Then the other one stands alone, and a single
liar stops nobody. For this a replica says which head it composed even while it may not sign it. After a
restart, evidence that is kept means holding again until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from e2eks.v1 import peers_pb2

from keyserver.machine.rows import head_row, policy_of_epoch
from keyserver.metrics import Metrics
from keyserver.proposer import Clock, Proposer
from keyserver.quarantine import DIFFERENT, Evidence, keep_evidence
from keyserver.replica import Replica
from keyserver.signer import Signer, composed_message
from keyserver.waiters import Signal
from verifier import encoding, policy
from verifier import epoch as epoch_law
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError, Malformed, Reason, Refused
from verifier.types import Ratification, Signature

HOLD = "heads"  # by this name the proposer is held
EARLY_HEADS = 16  # of one replica, of epochs that this one has not come to: a head each, 8 KiB at most
EVIDENCE_FILES = 16  # of one life: more would say the same


@dataclass(frozen=True, slots=True)
class Difference:
    """Another head of an epoch than this replica's, by whose key, and where the evidence is (or "")."""

    epoch: int
    path: str


class Exchange:
    """What others have shown, compared with what this replica has. On the trio thread."""

    def __init__(
        self,
        replica: Replica,
        signer: Signer,
        proposer: Proposer,
        metrics: Metrics,
        clock: Clock,
        evidence: Path | None = None,
    ) -> None:
        """`evidence`: a folder; None keeps no files."""
        self._replica = replica
        self._realm = replica.machine.realm
        self._signer = signer
        self._proposer = proposer
        self._metrics = metrics
        self._clock = clock
        self._evidence = evidence
        self.signed = Signal()  # this replica has signed a head, or holds and has one to speak of
        self._agreed: dict[bytes, int] = {}  # key id -> newest epoch of which it has shown this very head
        self._early: dict[bytes, dict[int, peers_pb2.ShownHead]] = {}
        self._different: dict[bytes, Difference] = {}  # the latest by key id
        self._files = 0
        self._log = structlog.get_logger("heads")

    def remember(self, kept: list[Path]) -> None:
        """Hold because of evidence that a former life kept, until a majority shows this replica's heads."""
        if kept:
            self._different[b""] = Difference(self._replica.state.epoch, str(kept[-1]))
            self._judge()

    def word(self, epoch: int) -> peers_pb2.ShownHead | None:
        """This replica's word on the head of an epoch; None if it has not composed it, or may not sign.

        Raises StorageError, Halt.
        """
        row, signed = head_row(self._replica.store, epoch), self._signer.signed(epoch)
        if row is None or self._signer.quarantined or self._signer.key_id not in self._keys(epoch):
            return None
        composed = self._signer.state_composed(epoch, hashing.head_hash(row.head))
        made = signed.signature if signed else b""
        return peers_pb2.ShownHead(
            head=row.head, key_id=self._signer.key_id, composed=composed, signature=made
        )

    @property
    def newest(self) -> int:
        """The newest epoch to speak of: signed, or composed while nothing is signed for a difference."""
        if self._proposer.holds(HOLD):
            return self._replica.state.epoch
        signed = self._signer.newest_signed()
        return signed.epoch if signed else 0

    def see(self, shown: peers_pb2.ShownHead) -> int:
        """Another replica's word; the epoch it is about. Raises Refused for one that nobody stands for."""
        head = encoding.decode_head(shown.head)
        if head.realm_hash != self._realm.hash:
            raise Malformed("the head is of another realm")
        public_key = self._keys(head.epoch).get(shown.key_id)
        message = composed_message(self._realm.hash, head.epoch, head.hash)
        if (
            public_key is None
            or shown.key_id == self._signer.key_id
            or not signatures.verify(public_key, message, shown.composed)
        ):
            raise Refused(Reason.NOT_AUTHORIZED, "no other replica of this epoch stands for the head")
        self._compare(shown.key_id, head.epoch, shown)
        self._judge()
        return head.epoch

    def _keys(self, epoch: int) -> Mapping[bytes, bytes]:
        store, state = self._replica.store, self._replica.state
        law = policy_of_epoch(store, self._realm.genesis_policy, min(epoch, state.epoch + 1))
        return {**law.keys, **state.policy.keys}

    def advanced(self) -> None:
        """This replica has composed further heads: compare what was shown early."""
        epoch = self._replica.state.epoch
        for key_id, early in self._early.items():
            for number in sorted(number for number in early if number <= epoch):
                self._compare(key_id, number, early.pop(number))
        self._judge()

    def _compare(self, key_id: bytes, epoch: int, shown: peers_pb2.ShownHead) -> None:
        row = head_row(self._replica.store, epoch)
        if row is None:
            early = self._early.setdefault(key_id, {})
            early[epoch] = shown
            if len(early) > EARLY_HEADS:
                del early[min(early)]
        elif row.head == shown.head:
            self._agreed[key_id] = max(epoch, self._agreed.get(key_id, 0))
        else:
            self._differs(key_id, epoch, shown)

    def _differs(self, key_id: bytes, epoch: int, shown: peers_pb2.ShownHead) -> None:
        before = self._different.get(key_id)
        if before is not None and before.epoch >= epoch:
            return
        self._metrics.count("contradictions")
        what = f"replica {key_id.hex()} has another head of epoch {epoch} than this replica composed"
        ours = self.word(epoch)
        keys = self._keys(epoch)
        path = self._keep(what, tuple(_signed_head(word, keys) for word in (ours, shown) if word is not None))
        self._different[key_id] = Difference(epoch, path)
        self._log.critical("another head was shown", epoch=epoch, by=key_id.hex(), evidence=path)

    def _keep(self, what: str, heads: tuple[bytes, ...]) -> str:
        if self._evidence is None or self._files >= EVIDENCE_FILES:
            return ""
        self._files += 1
        made = Evidence(DIFFERENT, what, self._clock(), heads)
        try:
            return str(keep_evidence(self._evidence, self._realm, self._signer.key_id, made, about=DIFFERENT))
        except ConfigError as error:
            self._log.error("the evidence could not be kept", why=str(error))
            return ""

    def _judge(self) -> None:
        """Hold this replica, or let it go on, by what is known now."""
        why = next((self._words(key_id, found) for key_id, found in self._open()), "")
        if why:
            if not self._proposer.holds(HOLD):
                self.signed.wake()  # others that hold as well wait for its word
            self._proposer.hold(HOLD, why, stop=True)
        elif self._proposer.holds(HOLD):
            self._proposer.release(HOLD)
            self._replica.applied.wake()

    def _open(self) -> list[tuple[bytes, Difference]]:
        """The differences that no majority has outvoted."""
        return [pair for pair in self._different.items() if not self._outvoted(*pair)]

    def _outvoted(self, key_id: bytes, found: Difference) -> bool:
        agreed = {key for key, epoch in self._agreed.items() if epoch >= found.epoch and key != key_id}
        law = self._replica.state.policy
        return policy.satisfied(law.quorum, (agreed | {self._signer.key_id}) & set(law.keys))

    def _words(self, key_id: bytes, found: Difference) -> str:
        whose = f"replica {key_id.hex()[:16]} has signed" if key_id else "a replica had signed"
        kept = f" (evidence: {found.path})" if found.path else ""
        return (
            f"{whose} another head of epoch {found.epoch} than this replica{kept}. This one signs nothing "
            "until a majority of the replicas has shown it the head it has itself"
        )

    @property
    def differences(self) -> dict[str, int]:
        """Key id (hex) -> newest epoch of which that replica has shown another head."""
        return {key_id.hex(): found.epoch for key_id, found in self._different.items() if key_id}


def _signed_head(word: peers_pb2.ShownHead, keys: Mapping[bytes, bytes]) -> bytes:
    """The head as evidence: with the replica's signature on it, where it gave one by its key in `keys`."""
    time_ms = encoding.decode_head(word.head).issue_time_ms
    public_key = keys.get(word.key_id)
    signed = epoch_law.replica_message(word.head, time_ms)
    if public_key is None or not signatures.verify(public_key, signed, word.signature):
        return encoding.encode_signed_head(word.head, [])
    made = Ratification(time_ms, (Signature(word.key_id, word.signature),))
    return encoding.encode_signed_head(word.head, [made])
