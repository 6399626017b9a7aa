"""What a replica does for those who ask: one method for each call, on bytes, whatever front it came
through.

`lookup`, `get_realm` and `consistency` answer at once from the published view, in any thread. The others
are for the trio thread: an update is checked here for a clear refusal, then decided by the log, then waits
for its quorum. Refusals are `Refused`, with a reason that is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from e2eks.v1 import client_pb2, verification_pb2

from keyserver import quarantine, requests
from keyserver.machine import commands, erasure, views
from keyserver.machine.codes import Code, reason_of
from keyserver.machine.commands import AddRatification, ChangeReplicas, Erase, SubmitUpdate
from keyserver.peers.endorsing import Endorser, private_of
from keyserver.proposer import Clock, Proposer
from keyserver.published import Published
from keyserver.rate_limits import Later, Limits, RateLimits
from keyserver.replica import Replica
from keyserver.verifier_log import VerifierLog
from keyserver.vrf_cache import IndexProof
from kv import crash_points
from verifier import encoding, epoch, limits, policy, proof_encoding
from verifier.crypto import signatures
from verifier.errors import Malformed, Reason, Refused
from verifier.merkle.tree import PageCache
from verifier.replica_set import ReplicaSetChange
from verifier.types import Signature, SignedHead
from verifier.update import Change, verify_update

NextPage = Callable[[], Awaitable[bytes | None]]

LAG_S = 2.0  # a replica that is further behind is not the one to ask

REPEATABLE = (AddRatification, ChangeReplicas)  # a duplicate is what was wanted

ERASED = client_pb2.EraseResponse().SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Located:
    """A user's place in the tree, with its proof."""

    user_id: str
    index: bytes
    index_proof: bytes


class Service:
    """The use cases of one replica. `fresh_salt` returns 32 random bytes."""

    def __init__(
        self,
        replica: Replica,
        proposer: Proposer,
        endorser: Endorser,
        *,
        realm_json: bytes,
        update_timeout_ms: int,
        clock: Clock,
        fresh_salt: Callable[[], bytes],
        rates: RateLimits | None = None,
    ) -> None:
        self._replica = replica
        self._proposer = proposer
        self._endorser = endorser
        self._realm = replica.machine.realm
        self._update_timeout = update_timeout_ms / 1000
        self._clock = clock
        self._fresh_salt = fresh_salt
        self._rates = rates or RateLimits(Limits())
        self._pages = PageCache()
        self._verifier_log = VerifierLog(replica)
        self.stopping = False  # no new update is taken; those that wait are answered
        answer = client_pb2.GetRealmResponse(realm_json=realm_json)
        self._realm_answer = answer.SerializeToString(deterministic=True)

    # In any thread

    def lookup(self, request: bytes, address: str) -> bytes:
        """A LookupRequest's encoded LookupProof. Raises Refused, StorageError, Halt."""
        asked = requests.decode_lookup(request, self._realm)
        self._rates.lookup(address, asked.user_id)
        return self._look_up(asked, self._replica.vrf.locate(asked.user_id, address))

    def lookup_in_turn(self, request: bytes, address: str) -> bytes | Later:
        """The same for a front that can wait, which those who ask for many names without a VRF proof must."""
        asked = requests.decode_lookup(request, self._realm)
        self._rates.lookup(address, asked.user_id)
        vrf = self._replica.vrf
        found = vrf.recall(asked.user_id)
        if found is None:
            self._choose(self._replica.published, asked)  # what will be refused takes nobody's turn
            seconds = self._rates.unknown_lookup(address)
            if seconds:
                return Later(seconds, lambda: self._look_up(asked, vrf.locate(asked.user_id, None)))
            found = vrf.compute(asked.user_id)
        return self._look_up(asked, found)

    def _look_up(self, asked: requests.Lookup, found: IndexProof) -> bytes:
        published = self._replica.published
        chosen = self._choose(published, asked)
        return self._proof(published, Located(asked.user_id, *found), chosen, asked)

    def _choose(self, published: Published, asked: requests.Lookup) -> int:
        return published.choose(asked.quorum, asked.epoch, asked.min_epoch, self._not_before_ms())

    def get_realm(self, request: bytes) -> bytes:
        """The realm's publishable file. Raises Refused."""
        requests.decode_get_realm(request)
        return self._realm_answer

    def consistency(self, request: bytes) -> bytes:
        """A ConsistencyRequest's encoded ConsistencyProof; the heads carry all stored signatures."""
        old, new = requests.decode_consistency(request)
        published = self._replica.published
        quorum = self._realm.verification_policy.quorum
        if new == 0:
            new = published.choose(quorum, 0, old, self._not_before_ms())
        if new > published.state.epoch:
            raise Refused(Reason.NO_SUCH_EPOCH, f"the newest epoch is {published.state.epoch}")
        if new > published.state.signed_epoch:
            raise Refused(Reason.EPOCH_PENDING, f"epoch {new} is not signed yet")
        inclusion, consistency = views.consistency_parts(published.reader, old, new)
        return proof_encoding.encode_consistency_proof(
            old_head=views.signed_head(published.reader, old),
            new_head=views.signed_head(published.reader, new),
            inclusion=inclusion,
            consistency=consistency,
        )

    def policy_heads(self, request: bytes) -> NextPage:
        """The heads that changed the replicas' policy, one a message."""
        heads = views.policy_heads(self._replica.store, requests.decode_policy_heads(request))

        async def next_head() -> bytes | None:
            return next(heads, None)

        return next_head

    def verifier_stream(self, request: bytes) -> NextPage:
        """The pages of the verifier log that a VerifierStreamRequest asks for."""
        start, steps = requests.decode_verifier_stream(request)
        return self._verifier_log.pages(start, steps)

    # On the trio thread

    def _require_staying(self) -> None:
        if self.stopping:
            raise Refused(Reason.NOT_READY, "this replica is stopping; ask another one, or later")
        self._require_replica()

    def _require_replica(self) -> None:
        why = quarantine.outside(self._replica.state, self._endorser.key_id)
        if why:
            raise Refused(Reason.NOT_READY, why)

    async def update(self, request: bytes, address: str) -> bytes:
        """Register, update or revoke; the encoded LookupProof at the epoch that contains exactly this entry.

        Sending the same entry again succeeds. Raises Refused, StorageError, Halt.
        """
        self._require_staying()
        asked = requests.decode_update(request, self._realm)
        self._rates.update(address, asked.lookup.user_id)
        published = self._replica.published
        published.require_satisfiable(asked.lookup.quorum)
        user_id, entry = asked.lookup.user_id, asked.update.entry
        place = Located(user_id, *self._replica.vrf.locate(user_id, address))
        if entry.index != place.index:
            raise Refused(Reason.WRONG_INDEX, "the entry's index is not that of the user id in this realm")
        until = trio.current_time() + self._update_timeout
        await self._come_so_far(asked.lookup.min_epoch)
        change, since = self._early_verdict(asked)
        if change is not Change.UNCHANGED:
            command, private = await self._command(request, asked, change)
            self._rates.signed_update(entry.index)
            crash_points.reach("P1")
            since = await self._decide(command, private, until)
            crash_points.reach("P13")
        self._replica.vrf.keep(user_id, (place.index, place.index_proof))
        proof = await self._ratified_proof(place, asked, since, until, again=change is Change.UNCHANGED)
        crash_points.reach("P14")
        return proof

    async def _come_so_far(self, epoch: int) -> None:
        """Wait for an epoch that the caller has seen elsewhere: judged by older rows, an update that builds
        on it would be refused for reasons that are none. Raises Refused (NOT_READY).
        """
        with trio.move_on_after(LAG_S):
            while True:
                turn = self._replica.applied.turn()  # BEFORE looking
                if self._replica.state.signed_epoch >= epoch:
                    return
                await turn.wait()
        raise Refused(
            Reason.NOT_READY, f"this replica has not come to epoch {epoch}; ask another one, or later"
        )

    def _early_verdict(self, asked: requests.Update) -> tuple[Change, int]:
        """The update law upon the rows of this moment; the step decides. Also the epoch of the current
        entry.
        """
        index = asked.update.entry.index
        with self._replica.store.snapshot() as rows:  # both reads before or both after a batch
            current, pending = views.current_entry(rows, index), views.is_pending(rows, index)
        change = verify_update(
            current.update.entry if current else None,
            asked.update,
            realm_hash=self._realm.hash,
            pending=pending,
        )
        return change, current.since_epoch if current else 0

    async def _command(
        self, request: bytes, asked: requests.Update, change: Change
    ) -> tuple[SubmitUpdate, bytes]:
        """The command and its private part; a registration with the endorsements that it needs."""
        self._proposer.require_signing()
        private = private_of(asked, self._fresh_salt())
        if change is not Change.REGISTRATION:
            return SubmitUpdate(asked.update, private.hash), private.part
        law = self._replica.state.policy
        proof_id, endorsements = await self._endorser.gather(
            request, asked, private, keys=law.keys, needed=policy.tolerated_faults(law) + 1
        )
        return SubmitUpdate(asked.update, private.hash, endorsements, proof_id), private.part

    async def _decide(
        self, command: SubmitUpdate | AddRatification | Erase | ChangeReplicas, private: bytes, until: float
    ) -> int:
        """Propose, wait for the verdict; the epoch it names. Raises Refused with the verdict's reason."""
        command_id = commands.command_id(commands.encode_command(command))
        with self._replica.waiters.expect(command_id) as decision, trio.move_on_at(until):
            self._proposer.submit(command, private, until)
            number, since = await decision.wait()
            code = Code(number)
            if code is Code.APPLIED or (code is Code.DUPLICATE and isinstance(command, REPEATABLE)):
                return since
            raise _refused(code)
        raise Refused(
            Reason.NOT_RATIFIED_IN_TIME, "not decided in time; it may still be. Send it again to know"
        )

    async def _ratified_proof(
        self, place: Located, asked: requests.Update, since: int, until: float, *, again: bool
    ) -> bytes:
        """The proof once the quorum has ratified the epoch that contains the entry.

        What was decided long ago (`again`) is shown in the newest epoch while it still stands there.
        """
        quorum = asked.lookup.quorum
        heads = self._replica.waiters.heads
        with trio.move_on_at(until):
            while True:
                turn = heads.turn()  # BEFORE looking, so that no signature in between is missed
                published = self._replica.published
                newest = published.newest(quorum, self._not_before_ms()) if again else None
                if newest is not None and newest > since and self._stands(place.index, asked, newest):
                    return self._proof(published, place, newest, asked.lookup)
                if published.is_ratified(since, quorum):
                    return self._proof(published, place, since, asked.lookup)
                await turn.wait()
        what = (
            f"accepted for epoch {since}, which the quorum has not ratified in time. Send it again to wait on"
        )
        raise Refused(Reason.NOT_RATIFIED_IN_TIME, what)

    def _stands(self, index: bytes, asked: requests.Update, at: int) -> bool:
        found = views.entry_at(self._replica.store, index, at)
        return found is not None and found.update.entry.hash == asked.update.entry.hash

    async def erase(self, request: bytes, address: str) -> bytes:
        """Forget what is private of the user's index, in all epochs; answers once the log has decided it.

        The same again succeeds. Raises Refused, StorageError, Halt.
        """
        self._require_staying()
        asked = requests.decode_erase(request, self._realm)
        self._rates.update(address, asked.user_id)
        index, _ = self._replica.vrf.locate(asked.user_id, address)
        if asked.index != index:
            raise Refused(Reason.WRONG_INDEX, "the index is not that of the user id in this realm")
        with self._replica.store.snapshot() as rows:
            found, valid = erasure.verify(rows, self._realm.hash, index, asked.entry_hash, asked.signatures)
        if not found.done:
            self._proposer.require_signing()
            self._rates.signed_update(index)
            until = trio.current_time() + self._update_timeout
            await self._decide(Erase(index, asked.entry_hash, valid), b"", until)
        return ERASED

    async def change_replicas(self, change: ReplicaSetChange, approvals: tuple[Signature, ...]) -> None:
        """Propose a change of the replicas; returns once the log has accepted it. Raises Refused."""
        self._require_replica()
        until = trio.current_time() + self._update_timeout
        await self._decide(ChangeReplicas(change, approvals), b"", until)

    async def push_ratification(self, request: bytes, key_id: bytes | None) -> bytes:
        """Take a verifier's ratification; `key_id` is the one its certificate stands for, if it is listed.

        One that is stored already succeeds again. Raises Refused, StorageError, Halt.
        """
        if key_id is None:
            raise Refused(Reason.NOT_AUTHORIZED, "the certificate is not that of a listed verifier")
        self._require_replica()
        if len(request) > limits.SIGNED_HEAD_BYTES:
            raise Malformed("a signed epoch head is too large", Reason.TOO_LARGE)
        pushed = encoding.decode_signed_head(request)
        if self._check_pushed(pushed, key_id):
            until = trio.current_time() + self._update_timeout
            await self._decide(AddRatification(pushed), b"", until)
        return self._standing(key_id)

    def _standing(self, key_id: bytes) -> bytes:
        """The answer to a push: what is stored as the verifier's newest ratification, whoever pushed it."""
        store, answer = self._replica.store, verification_pb2.PushRatificationResponse()
        newest = views.newest_ratified(store, key_id)
        if newest:
            answer.newest.ParseFromString(views.signed_head(store, newest, {key_id}))
        return answer.SerializeToString(deterministic=True)

    def _check_pushed(self, pushed: SignedHead, key_id: bytes) -> bool:
        """Whether the ratification is new. Raises Refused for one that the step would refuse."""
        if [[s.key_id for s in r.signatures] for r in pushed.ratifications] != [[key_id]]:
            what = "a push is one ratification with one signature, by the key of the certificate"
            raise Refused(Reason.NOT_AUTHORIZED, what)
        state, rows, head = self._replica.state, self._replica.store, pushed.head
        if head.epoch > state.epoch:
            raise Refused(Reason.NO_SUCH_EPOCH, f"the newest epoch is {state.epoch}")
        if head.epoch > state.signed_epoch:
            raise Refused(Reason.EPOCH_PENDING, f"epoch {head.epoch} is not signed yet")
        row = views.verifiers(rows).get(key_id)
        if row is None or not row.listed:
            raise Refused(Reason.NOT_READY, "the replicas have not approved this verifier yet")
        made = pushed.ratifications[0]
        message = epoch.verifier_message(head.encoded, made.timestamp_ms)
        if not signatures.verify(row.public_key.ed25519, message, made.signatures[0].signature):
            raise Refused(Reason.NOT_AUTHORIZED, "the signature on the head is not valid")
        if head.encoded == views.head_at(rows, head.epoch).encoded:
            return key_id not in views.signers_at(rows, head.epoch)
        # A validly signed head that is not ours goes to the step, which keeps it as evidence: above all when
        # the verifier has signed ours before. One says it all; more would only fill the log.
        if key_id in self._replica.contradicting:
            raise _refused(Code.HEAD_MISMATCH)
        return True

    # Both

    def _not_before_ms(self) -> int:
        return max(self._clock() - self._realm.epoch_ttl_ms, 0)

    def _proof(self, published: Published, place: Located, at: int, asked: requests.Lookup) -> bytes:
        parts = views.lookup_parts(published.reader, place.index, at, self._pages)
        if parts.profile:  # of an erased name nothing is kept
            self._replica.vrf.keep(place.user_id, (place.index, place.index_proof))
        return proof_encoding.encode_lookup_proof(
            user_id=place.user_id,
            index=place.index,
            index_proof=place.index_proof,
            signed_head=published.signed_head(at, asked.quorum),
            neighbors=parts.neighbors,
            existing=parts.existing,
            entry=parts.entry,
            profile=parts.profile,
            profile_nonce=parts.nonce,
        )


def _refused(code: Code) -> Refused:
    return Refused(reason_of(code), f"refused by the rules of the realm: {code.name}")
