"""What lookups see of a replica: an immutable view of its epochs and their signatures, replaced after each
batch.

A view is used from any thread without entering the run loop. It reads rows as they are now, which is safe
because it asks only for what never changes again: heads, trees and entries of epochs that its state knows.
Signatures do grow; what is remembered about them belongs to one view and is dropped with it when a batch
brings new ones.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from keyserver.machine import views
from keyserver.machine.state import ReplicaState
from kv.interface import Reader
from verifier import encoding, policy
from verifier.errors import Reason, Refused
from verifier.types import AuthorizationPolicy, QuorumExpr, Realm

LOOKBACK_EPOCHS = 4096  # a lookup walks back no further, however long the realm's TTL is
REMEMBERED_HEADS = 1024  # encoded heads by (epoch, quorum): a few KiB each
REMEMBERED_EPOCHS = 2 * LOOKBACK_EPOCHS


class EpochSigners(NamedTuple):
    """When a head was issued, and the key ids whose signature on it is stored."""

    issue_time_ms: int
    signers: frozenset[bytes]


class Published:
    """The epochs of one moment. `reader` is the live store, `state` the one after the newest batch."""

    def __init__(self, realm: Realm, reader: Reader, state: ReplicaState) -> None:
        self.realm = realm
        self.reader = reader
        self.state = state
        self._epochs: dict[int, EpochSigners] = {}
        self._newest: dict[bytes, tuple[int | None, int]] = {}  # found or not; heads since when were searched
        self._heads: dict[tuple[int, bytes], bytes] = {}
        self._known: frozenset[bytes] | None = None
        self._policies: tuple[tuple[int, AuthorizationPolicy], ...] | None = None
        self._meant: dict[tuple[bytes, int], QuorumExpr] = {}

    def after(self, state: ReplicaState, changed: Collection[int], *, listed: bool) -> Published:
        """The view after a batch that brought signatures on the heads of `changed`; `listed`: a verifier
        too.
        """
        view = Published(self.realm, self.reader, state)
        if state.policy is self.state.policy:
            view._known = None if listed else self._known
            view._policies, view._meant = self._policies, self._meant
        if changed:
            known = self._epochs.copy()  # at once: other threads go on asking this view
            view._epochs = {epoch: kept for epoch, kept in known.items() if epoch not in changed}
        else:
            view._epochs, view._newest, view._heads = self._epochs, self._newest, self._heads
        return view

    def is_satisfiable(self, quorum: QuorumExpr) -> bool:
        """Whether the replicas and verifiers of today could satisfy the quorum at all."""
        if self._known is None:
            listed = [key_id for key_id, row in views.verifiers(self.reader).items() if row.listed]
            named = [verifier.key_id for verifier in self.realm.verifiers]
            self._known = frozenset((*self.state.policy.keys, *listed, *named))
        return policy.satisfied(self.meant(quorum, self.state.epoch + 1), self._known)

    def meant(self, quorum: QuorumExpr, epoch: int) -> QuorumExpr:
        """What a quorum asks of the head of `epoch`: who meant the replicas before a change means those
        after it.
        """
        if self._policies is None:
            self._policies = views.policies(self.reader, self.realm.genesis_policy)
        until = [law for first, law in self._policies if first <= epoch]
        if len(until) == 1:
            return quorum
        key = encoding.encode_quorum(quorum), len(until)
        meant = self._meant.get(key)
        if meant is None:
            if len(self._meant) >= REMEMBERED_HEADS:
                self._meant = {}
            meant = self._meant[key] = policy.succeed(quorum, until)
        return meant

    def signers(self, epoch: int) -> EpochSigners:
        """The stored signatures of an epoch that has its majority."""
        kept = self._epochs.get(epoch)
        if kept is None:
            issue_time_ms = views.head_at(self.reader, epoch).issue_time_ms
            kept = EpochSigners(issue_time_ms, views.signers_at(self.reader, epoch))
            if len(self._epochs) >= REMEMBERED_EPOCHS:
                self._epochs = {}
            self._epochs[epoch] = kept
        return kept

    def is_ratified(self, epoch: int, quorum: QuorumExpr) -> bool:
        """Whether the head of `epoch` has its majority and satisfies `quorum`."""
        if not 1 <= epoch <= self.state.signed_epoch:
            return False
        return policy.satisfied(self.meant(quorum, epoch), self.signers(epoch).signers)

    def newest(self, quorum: QuorumExpr, not_before_ms: int) -> int | None:
        """The newest epoch that satisfies `quorum` and was issued at `not_before_ms` or later, or None."""
        key = encoding.encode_quorum(quorum)
        kept = self._newest.get(key)
        if kept is None or (kept[0] is None and not_before_ms < kept[1]):  # this clock was set back
            if len(self._newest) >= REMEMBERED_HEADS:
                self._newest = {}
            kept = self._newest[key] = self._walk_back(quorum, not_before_ms), not_before_ms
        epoch = kept[0]
        if epoch is None or self.signers(epoch).issue_time_ms < not_before_ms:
            return None
        return epoch

    def _walk_back(self, quorum: QuorumExpr, not_before_ms: int) -> int | None:
        newest = self.state.signed_epoch
        for epoch in range(newest, max(newest - LOOKBACK_EPOCHS, 0), -1):
            kept = self.signers(epoch)
            if kept.issue_time_ms < not_before_ms:
                return None
            if policy.satisfied(self.meant(quorum, epoch), kept.signers):
                return epoch
        return None

    def choose(self, quorum: QuorumExpr, epoch: int, min_epoch: int, not_before_ms: int) -> int:
        """The epoch that answers a lookup for `epoch` (0 = the newest there is).

        Raises Refused: NO_SUCH_EPOCH beyond the newest, EPOCH_PENDING when the signatures are not there yet,
        QUORUM_UNSATISFIABLE when they cannot come.
        """
        wanted = max(epoch, min_epoch)
        if wanted > self.state.epoch:
            raise Refused(
                Reason.NO_SUCH_EPOCH, f"epoch {wanted} is not there yet; the newest is {self.state.epoch}"
            )
        if epoch:
            if self.is_ratified(epoch, quorum):
                return epoch
            raise Refused(Reason.EPOCH_PENDING, f"epoch {epoch} is not ratified by that quorum")
        newest = self.newest(quorum, not_before_ms)
        if newest is not None and newest >= min_epoch:
            return newest
        self.require_satisfiable(quorum)
        raise Refused(Reason.EPOCH_PENDING, "no epoch is recent enough and ratified by that quorum yet")

    def require_satisfiable(self, quorum: QuorumExpr) -> None:
        """Raises Refused (QUORUM_UNSATISFIABLE) for a quorum of keys that nobody has."""
        if not self.is_satisfiable(quorum):
            what = "the quorum names keys that no replica and no verifier of this realm has"
            raise Refused(Reason.QUORUM_UNSATISFIABLE, what)

    def signed_head(self, epoch: int, quorum: QuorumExpr) -> bytes:
        """The encoded head of a ratified epoch, with the signatures by keys that the quorum names."""
        key = epoch, encoding.encode_quorum(quorum)
        head = self._heads.get(key)
        if head is None:
            wanted = frozenset(self.meant(quorum, epoch).all_candidates())
            head = views.signed_head(self.reader, epoch, wanted)
            if len(self._heads) >= REMEMBERED_HEADS:
                self._heads = {}
            self._heads[key] = head
        return head
