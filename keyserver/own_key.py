"""This replica's key at work where its sign-once register knows nothing of it: a copy of this replica runs
beside it, or this replica is a copy that was put back and has forgotten what it signed.

Where it is noticed
* in what verifiers ratified: each is asked for its newest head before this replica signs anything, then
  again and again. A head that carries this replica's valid signature must be the one in the register.
* in the log: a signature on a head, or an envelope, that is validly this key's and was not made here.

What follows is quarantine: this replica signs nothing more, keeps the evidence, and says what to do. Nobody
else can bring that about, because nobody else can make such a signature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import structlog
import trio
from e2eks.v1 import verification_pb2

from keyserver.machine import commands, notices, views
from keyserver.machine.rows import head_row, policy_of_epoch
from keyserver.machine.tables import Tables
from keyserver.proposer import Clock
from keyserver.quarantine import Evidence, keep_evidence
from keyserver.replica import Batch, Replica
from keyserver.signer import REKEY, Signer
from kv.interface import Reader
from kv.keys import u64
from replication.types import LogEntry
from verifier import encoding, limits
from verifier import epoch as epoch_law
from verifier.crypto import signatures
from verifier.errors import ConfigError, Malformed, VerificationError
from verifier.types import Realm, SignedHead, Verifier

GET = "/e2eks.v1.RatifiedHeads/Get"
NEWEST = verification_pb2.RatifiedHeadRequest().SerializeToString(deterministic=True)
ASK_S = 3.0  # a start waits no longer than this for verifiers that do not answer
LOOK_EVERY_S = 5.0
LOOK_SOONEST_S = 1.0  # however often a verifier shows another head
PROPOSED_KEPT = 4096  # entries under way; a log that is so far behind has long refused new ones

Ask = Callable[[Verifier], bytes]  # its newest ratified head, encoded; raises Unanswered


class Unanswered(Exception):
    """A verifier did not answer in time, or has no head to show."""


def ask_over_tls(realm: Realm) -> Ask:
    """Asks a verifier at the address that the realm lists, believing the realm's TLS roots. Blocks."""
    credentials = grpc.ssl_channel_credentials("\n".join(realm.tls_roots_pem).encode("ascii") or None)
    options = (
        ("grpc.max_receive_message_length", limits.SIGNED_HEAD_BYTES),
        ("grpc.use_local_subchannel_pool", 1),  # a fresh attempt, without the back-off of former ones
        ("grpc.enable_retries", 0),
    )

    def ask(verifier: Verifier) -> bytes:
        with grpc.secure_channel(verifier.address, credentials, options) as channel:
            try:
                call: Any = channel.unary_unary(GET)
                answer: bytes = call(NEWEST, timeout=ASK_S)
            except grpc.RpcError as error:
                raise Unanswered(error.code().name) from None
        return answer

    return ask


@dataclass(frozen=True, slots=True)
class Found:
    """A signature by this replica's key that the register does not account for. `head` if it is on one."""

    what: str
    epoch: int = 0
    head: SignedHead | None = None


def unaccounted(reader: Reader, realm: Realm, signer: Signer, shown: SignedHead) -> Found | None:
    """What is wrong with a head somebody shows: this replica's valid signature on it, which it cannot have
    made. None if there is nothing wrong.
    """
    head, own = shown.head, {signer.key_id: signer.public_key}
    if head.realm_hash != realm.hash or not epoch_law.signers(shown, own, {}, own).replicas:
        return None
    row = signer.signed(head.epoch)  # AFTER the head arrived: the row is written before its signature leaves
    if row is not None:
        if row.head_hash == head.hash:
            return None
        return Found("whose epoch the register signed with another head", head.epoch, shown)
    if head.epoch > signer.floor:
        return Found("of which the register knows nothing", head.epoch, shown)
    if composed(reader, head.epoch) in (None, head.encoded):
        return None
    return Found("which is another one than this replica composed", head.epoch, shown)


def composed(reader: Reader, epoch: int) -> bytes | None:
    """The head this replica composed for an epoch, if it has come so far. Raises Halt, StorageError."""
    row = head_row(reader, epoch)
    return None if row is None else row.head


def _digest(payload: bytes) -> bytes:
    """Of the public part: private ones may be blanked by another replica before an entry arrives here."""
    return sha256(commands.public_part(payload)).digest()


class KeyWatch:
    """Watches over one replica's key. On the trio thread, except `ask`. `evidence` None keeps no files."""

    def __init__(
        self,
        replica: Replica,
        signer: Signer,
        clock: Clock,
        *,
        log_end: int,
        ask: Ask | None = None,
        evidence: Path | None = None,
        former_ms: int = 0,
    ) -> None:
        """Log entries of this key may be of a former life if they are up to `log_end`, the newest index that
        was stored at the start, or say a time up to `former_ms` or the start.
        """
        self._replica = replica
        self._realm = replica.machine.realm
        self._signer = signer
        self._clock = clock
        self._log_end = log_end
        self._former_ms = max(clock(), former_ms)
        self._ask = ask or ask_over_tls(self._realm)
        self._evidence = evidence
        self._verifiers: Sequence[Verifier] = [v for v in self._realm.verifiers if v.address]
        # Threads of their own: those that wait for silent verifiers must not keep the loop from writing.
        self._askers = trio.CapacityLimiter(limits.VERIFIERS)
        self._suspicion = trio.Event()
        self._proposed: set[bytes] = set()
        self._order: deque[bytes] = deque()
        self._log = structlog.get_logger("key")

    # What verifiers ratified

    async def run(self) -> None:
        """Look for ever, at once when a verifier has shown another head."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._suspicion.wait()
            await trio.sleep(LOOK_SOONEST_S)
            self._suspicion = trio.Event()
            await self.look()

    async def look(self) -> None:
        """Ask every verifier once. Returns within ASK_S, whoever answers."""
        if self._signer.quarantined:
            return
        with trio.move_on_after(ASK_S):
            async with trio.open_nursery() as nursery:
                for verifier in self._verifiers:
                    nursery.start_soon(self._look_at, verifier)

    async def _look_at(self, verifier: Verifier) -> None:
        try:
            answer = await trio.to_thread.run_sync(
                self._ask, verifier, abandon_on_cancel=True, limiter=self._askers
            )
            shown = encoding.decode_signed_head(answer)
        except (Unanswered, Malformed) as error:
            self._log.debug("verifier not asked", verifier=verifier.name, why=str(error))
            return
        found = unaccounted(self._replica.store, self._realm, self._signer, shown)
        if found is not None:
            where = f"verifier {verifier.name} ratified a head of epoch {found.epoch} with this replica's"
            self.accuse(Found(f"{where} signature, {found.what}", found.epoch, found.head))

    # What the log brings

    def proposed(self, payload: bytes) -> None:
        """Remember an entry that this process proposes."""
        digest = _digest(payload)
        self._proposed.add(digest)
        self._order.append(digest)
        while len(self._order) > PROPOSED_KEPT:
            self._proposed.discard(self._order.popleft())

    def see_entries(self, entries: Sequence[LogEntry]) -> None:
        """Entries of the log, after they are written: is one validly this key's and not made here?"""
        for entry in entries:
            if entry.index <= self._log_end or _digest(entry.payload) in self._proposed:
                continue  # remembered still: a cluster may commit one proposal twice
            if self._is_own(entry.payload):
                self.accuse(Found(f"log entry {entry.index} is signed by this replica's key, but not by it"))

    def _is_own(self, payload: bytes) -> bool:
        try:
            entry = commands.decode_log_entry(payload)
        except Malformed:
            return False
        envelope = entry.envelope
        if envelope.replica != self._signer.key_id or envelope.time_ms <= self._former_ms:
            return False  # another's, or of a former life of this replica, still under way when it ended
        message = commands.envelope_message(self._realm.hash, envelope.encoded)
        return signatures.verify(self._signer.public_key, message, entry.signature)

    def see_batch(self, batch: Batch) -> None:
        """What a written batch says about heads: signatures by this key, and heads that differ."""
        for notice in batch.notices:
            match notice:
                case notices.RatificationAdded(epoch, key_id) if key_id == self._signer.key_id:
                    self._check_stored(epoch)
                case notices.ReplicaContradiction(epoch, key_id) if key_id == self._signer.key_id:
                    self.accuse(Found(f"this replica's key signed another head of epoch {epoch}", epoch))
                case notices.VerifierContradiction():
                    self._suspicion.set()

    def _check_stored(self, epoch: int) -> None:
        row, store = self._signer.signed(epoch), self._replica.store
        stored = store.get(Tables.REPLICA_SIGNATURES.key(u64(epoch), self._signer.key_id))
        if (row is None and epoch > self._signer.floor) or (row is not None and row.signature != stored):
            what = f"the log has a signature by this replica's key on epoch {epoch} that it did not make"
            shown = encoding.decode_signed_head(views.signed_head(store, epoch, {self._signer.key_id}))
            self.accuse(Found(what, epoch, shown))

    # What follows

    def accuse(self, found: Found) -> None:
        """Sign nothing more; keep the evidence."""
        if self._signer.quarantined:
            return
        why = f"{found.what}: the key is used elsewhere, or this replica has forgotten what it signed"
        self._signer.quarantine(f"{why}. {REKEY}")
        path = ""
        if self._evidence is not None:
            try:
                evidence = self._made(why, found)
                path = str(keep_evidence(self._evidence, self._realm, self._signer.key_id, evidence))
            except ConfigError as error:
                self._log.error("the evidence could not be kept", why=str(error))
        self._log.critical("quarantined", why=self._signer.quarantined, evidence=path)

    def _made(self, why: str, found: Found) -> Evidence:
        """Two validly signed heads of one epoch are a fork that the file alone proves; all else is not."""
        store, shown = self._replica.store, found.head
        heads = (shown.encoded,) if shown else ()
        changes = tuple(
            change
            for change in views.policy_heads(store, 1)
            if shown is not None and encoding.decode_signed_head(change).head.epoch < shown.head.epoch
        )
        if shown is None or composed(store, found.epoch) in (None, shown.head.encoded):
            return Evidence("register", why, self._clock(), heads, changes)
        ours = encoding.decode_signed_head(views.signed_head(store, found.epoch))
        law = policy_of_epoch(store, self._realm.genesis_policy, found.epoch)
        try:
            for head in (ours, shown):
                epoch_law.check_majority(law, head)
        except VerificationError:
            return Evidence("register", why, self._clock(), (ours.encoded, shown.encoded), changes)
        return Evidence("fork", why, self._clock(), (ours.encoded, shown.encoded), changes)
