"""One history: what a client must be shown before it moves its pins, and the chain of the replicas' policies.

Asks a keyserver for consistency proofs and policy heads, and judges them by `verifier.consistency` and
`verifier.epoch`. Nothing unverified reaches the pins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from e2eks.v1 import client_pb2

from verifier import consistency, encoding, limits, lookup, proof_encoding
from verifier import epoch as epoch_law
from verifier import policy as quorums
from verifier.client.outcome import Unreachable
from verifier.client.pins import CHANGES_HELD, Pins, PinState
from verifier.client.transport import Transport
from verifier.errors import (
    ConfigError,
    HistoryConflict,
    Malformed,
    NotRatified,
    Reason,
    Refused,
    VerificationError,
)
from verifier.lookup import Trust
from verifier.types import ConsistencyProof, QuorumExpr, Realm, SignedHead

RACES = 16  # other processes of the same user may move the pins between our look and our write
BEHIND = frozenset({Reason.NO_SUCH_EPOCH, Reason.EPOCH_PENDING})  # of an epoch seen before: an older answer


class BadAnswer(VerificationError):
    """An answer that does not prove what it claims; `received` are its messages, the evidence."""

    def __init__(self, check: str, what: str, method: str, received: tuple[bytes, ...]) -> None:
        super().__init__(check, what)
        self.method = method
        self.received = received


class BrokenHistory(HistoryConflict):
    """Two validly signed heads of different epochs, and the paths that fail to join them."""

    def __init__(self, conflict: HistoryConflict, proof: ConsistencyProof) -> None:
        super().__init__(conflict.what, conflict.first, conflict.second)
        self.inclusion = proof.inclusion
        self.consistency = proof.consistency


@contextmanager
def judging(method: str, *received: bytes) -> Iterator[None]:
    """Turns what is wrong with an answer into BadAnswer; forks and missing ratifications pass."""
    try:
        yield
    except BadAnswer:
        raise
    except VerificationError as error:
        raise BadAnswer(error.check, error.what, method, received) from None
    except Malformed as error:
        raise BadAnswer("encoding", error.what, method, received) from None
    except Refused as error:  # about a user id that is none of this realm
        raise BadAnswer("user-id", error.what, method, received) from None


class Historian:
    """The history of one realm as one client has seen it, under one quorum."""

    def __init__(self, realm: Realm, quorum: QuorumExpr, transport: Transport, pins: Pins) -> None:
        self._realm = realm
        self._quorum = quorum
        self._transport = transport
        self._pins = pins

    def state(self) -> PinState:
        """What is remembered now."""
        return self._pins.load()

    def trust(self, epoch: int, state: PinState | None = None) -> Trust:
        """What a head of `epoch` is judged by, as far as the policy chain is known."""
        state = state or self.state()
        policies = epoch_law.policies_until(self._realm, state.changes, epoch)
        return Trust(
            realm=self._realm,
            quorum=quorums.succeed(self._quorum, policies),
            replicas=policies[-1],
            pinned=state.head_at(epoch),
            pinned_epoch=state.epoch_of(self._quorum),
        )

    # Heads

    def settle(self, address: str, head: SignedHead) -> PinState:
        """Pin a verified `head` once it is proven to lie in the history seen so far; the state before.

        Raises HistoryConflict, VerificationError, NotRatified, Refused, Unreachable; then nothing is pinned.
        """
        for _ in range(RACES):
            state = self.state()
            proven = self._link(address, state, head)
            after = state.holding(head, linked=True, proven=proven).accepting(self._quorum, head.head.epoch)
            if self._pins.swap(state, after):
                return state
        raise ConfigError("other processes keep moving the pins of this realm; run the command again")

    def hold(self, head: SignedHead) -> PinState:
        """Remember a verified `head` that no server has linked yet; the state before.

        Raises HistoryConflict.
        """
        for _ in range(RACES):
            state = self.state()
            _check_same(state.head_at(head.head.epoch), head)
            if self._pins.swap(state, state.holding(head, linked=False)):
                return state
        raise ConfigError("other processes keep moving the pins of this realm; run the command again")

    def reveal_fork(self, address: str, head: SignedHead) -> None:
        """Raise HistoryConflict if the server shows that `head`, signed but stale, contradicts it."""
        with suppress(VerificationError, NotRatified, Refused, Unreachable):
            self._link(address, self.state(), head)

    def newest_after(self, address: str, held: SignedHead) -> SignedHead:
        """The newest head the server has, proven to continue `held`, and not older than accepted before."""
        proof, raw = self._ask(address, held.head.epoch, 0)
        epoch = proof.new_head.head.epoch
        try:
            with judging("Consistency", raw):
                newest = _verified(self.trust(epoch), held, proof)
        except (BadAnswer, NotRatified):
            if not self.learn_policy(address):
                raise
            with judging("Consistency", raw):
                newest = _verified(self.trust(epoch), held, proof)
        trust = self.trust(epoch)
        if epoch < trust.pinned_epoch:
            what = f"epoch {epoch} was answered, epoch {trust.pinned_epoch} was seen before"
            raise NotRatified("rollback", what)
        return newest

    def prove(self, address: str, older: SignedHead, newer: SignedHead) -> None:
        """Have the server show that `newer` continues `older`, both held and verified."""
        proof, raw = self._ask(address, older.head.epoch, newer.head.epoch)
        with judging("Consistency", raw):
            self._check_ends(older, newer, proof)
            # The signatures on `newer` were judged when it was verified; the proof may come with others.
            _verified(self.trust(newer.head.epoch), older, replace(proof, new_head=newer))

    def _link(self, address: str, state: PinState, head: SignedHead) -> list[int]:
        """Epochs of the held heads that `head` is proven to share a history with."""
        proven = []
        for held in state.heads:
            if held.epoch == head.head.epoch:
                _check_same(held.signed, head)
            elif held.linked and held.signed is not state.newest:
                continue  # joined to the pin before
            elif held.epoch < head.head.epoch:
                self.prove(address, held.signed, head)
            elif held.linked:
                self.prove(address, head, held.signed)
            else:
                continue  # from a saved proof, newer than this answer: a later answer will link it
            proven.append(held.epoch)
        return proven

    def _check_ends(self, older: SignedHead, newer: SignedHead, proof: ConsistencyProof) -> None:
        """The proof's own heads are ours; if another one is validly signed, that is a fork."""
        for ours, theirs in ((older, proof.old_head), (newer, proof.new_head)):
            if ours.head.encoded != theirs.head.encoded:
                trust = replace(self.trust(ours.head.epoch), pinned=ours)
                with suppress(NotRatified):
                    lookup.verify_head(trust, theirs, now_ms=None)
                raise VerificationError(
                    "history", "a consistency proof is about another head than the one asked"
                )

    def _ask(self, address: str, old: int, new: int) -> tuple[ConsistencyProof, bytes]:
        request = client_pb2.ConsistencyRequest(old_epoch=old, new_epoch=new)
        try:
            raw = self._transport.call(address, "Consistency", encoding.canonical(request))
        except Refused as refusal:
            if refusal.reason in BEHIND:
                what = f"the server lacks epoch {max(old, new)}, which was seen before"
                raise NotRatified("rollback", what) from None
            raise
        with judging("Consistency", raw):
            return proof_encoding.decode_consistency_proof(raw), raw

    # The policy chain

    def learn_policy(self, address: str) -> bool:
        """Whether the server showed changes of the replicas' policy that were unknown here, now remembered.

        The chain is verified from genesis. A chain that contradicts the known one is a HistoryConflict.
        """
        request = client_pb2.PolicyHeadsRequest(start_epoch=1)
        try:
            received = self._transport.stream(address, "PolicyHeads", encoding.canonical(request))
        except (Refused, Unreachable):
            return False
        with judging("PolicyHeads", *received):
            if len(received) > CHANGES_HELD:
                raise VerificationError("policy", f"more than {CHANGES_HELD} changes of the replicas' policy")
            changes = tuple(encoding.decode_signed_head(raw) for raw in received)
            epoch_law.policy_at(self._realm, changes, limits.MAX_U64)
        return self._remember_changes(changes)

    def _remember_changes(self, changes: Sequence[SignedHead]) -> bool:
        for _ in range(RACES):
            state = self.state()
            for known, shown in zip(state.changes, changes, strict=False):
                if known.head.encoded != shown.head.encoded:
                    what = f"two chains of replicas' policies differ from epoch {shown.head.epoch} on"
                    raise HistoryConflict(what, known.encoded, shown.encoded)
            new = changes[len(state.changes) :]
            if not new:
                return False
            after = replace(state, changes=(*state.changes, *new))
            for change in new:
                _check_same(state.head_at(change.head.epoch), change)
                after = after.holding(change, linked=False)
            if self._pins.swap(state, after):
                return True
        raise ConfigError("other processes keep moving the pins of this realm; run the command again")


def _verified(trust: Trust, held: SignedHead, proof: ConsistencyProof) -> SignedHead:
    try:
        return consistency.verify_consistency(trust, held, proof)
    except HistoryConflict as conflict:
        if held.head.epoch != proof.new_head.head.epoch and conflict.first == held.encoded:
            raise BrokenHistory(conflict, proof) from None
        raise


def _check_same(held: SignedHead | None, head: SignedHead) -> None:
    """Two verified heads of one epoch must be one."""
    if held is not None and held.head.encoded != head.head.encoded:
        what = f"two different heads of epoch {head.head.epoch} are validly signed"
        raise HistoryConflict(what, held.encoded, head.encoded)
