"""The client: asks keyservers, believes none, and remembers what it has seen.

Every answer is decoded strictly, verified against the realm the user chose, and shown to continue the history
seen so far BEFORE it is returned. The laws are in `verifier.lookup` and `verifier.consistency`; here is the
order of questions. Precedence of what can be wrong: a proof that fails, a fork, missing ratifications.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb

from verifier import encoding, limits, proof_encoding
from verifier import realm as realms
from verifier.client import drafts, notices
from verifier.client.drafts import Draft
from verifier.client.evidence import EvidenceFolder, evidence_of
from verifier.client.historian import BEHIND, BadAnswer, Historian, judging
from verifier.client.notices import Ended
from verifier.client.outcome import UNRATIFIED, Unreachable
from verifier.client.pins import Pins
from verifier.client.transport import Transport
from verifier.crypto.signatures import SigningKey
from verifier.errors import (
    ConfigError,
    E2eksError,
    HistoryConflict,
    Malformed,
    NotRatified,
    Reason,
    Refused,
    VerificationError,
)
from verifier.lookup import Absent, LookupResult, Present, Revoked, verify_lookup
from verifier.types import AuthorizationPolicy, Entry, QuorumExpr, Realm, SignedHead

T = TypeVar("T")

# Refusals of a lookup that another replica may not share.
ELSEWHERE = UNRATIFIED | {Reason.NOT_READY, Reason.NO_SUCH_EPOCH}
# Which failure to report when all addresses failed: the first kind met here.
REPORTED_FIRST: tuple[type[E2eksError], ...] = (NotRatified, Refused, Unreachable)

Admission = Callable[[Entry], bytes]


def now_ms() -> int:
    """This machine's clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A verified result and how it stands in the history.

    `newest_epoch` is that of the newest head verified for it (its own, unless historic); `seen_epoch` the
    newest seen of the realm before, 0 at first contact; `address` answered, empty for a saved proof.
    """

    result: LookupResult
    newest_epoch: int
    seen_epoch: int
    address: str


class Client:
    """A client of one realm, under the realm's quorum or the user's own.

    >>> client = Client(realm, transport, MemoryPins(), clock=clock)
    >>> match client.lookup("alice@example.test"):
    ...     case Present(profile=profile, head=signed):
    ...         print(profile.keys["ssh"].decode(), "in epoch", signed.head.epoch)
    ...     case Absent() | Erased() | Revoked() as result:
    ...         print("no keys:", type(result).__name__)
    ssh-ed25519 AAAA alice in epoch 1
    >>> client.lookup("nobody@example.test").__class__.__name__
    'Absent'
    """

    def __init__(
        self,
        realm: Realm,
        transport: Transport,
        pins: Pins,
        *,
        clock: Callable[[], int] = now_ms,
        quorum: QuorumExpr | None = None,
        evidence: EvidenceFolder | None = None,
        randomness: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`clock` gives Unix milliseconds; `quorum` replaces the realm's; `evidence` keeps failed proofs."""
        self.realm = realm
        self.quorum = quorum or realm.verification_policy.quorum
        self.evidence = evidence or EvidenceFolder(None)
        self._transport = transport
        self._clock = clock
        self._randomness = randomness
        self._historian = Historian(realm, self.quorum, transport, pins)

    # Lookups

    def lookup(self, user_id: str, epoch: int = 0) -> LookupResult:
        """The verified answer for `user_id`: in the latest epoch, or as it was in `epoch`.

        Raises Malformed or Refused for a user id that is none of this realm; VerificationError,
        HistoryConflict, NotRatified, Refused, Unreachable.
        """
        return self.ask(user_id, epoch).result

    def ask(self, user_id: str, epoch: int = 0) -> Answer:
        """Like `lookup`, with how the result stands in the history."""
        realms.check_user_id(user_id, self.realm.domains)
        if epoch:
            return self._first(ELSEWHERE, lambda address: self._historic(address, user_id, epoch))
        return self._first(ELSEWHERE, lambda address: self._latest(address, user_id))

    def verify_saved(self, proof: bytes, *, user_id: str | None = None, at_ms: int | None = None) -> Answer:
        """What a saved LookupProof proves at `at_ms` (now), for `user_id` or whom it names, without a server.

        The rules are those of a latest lookup, but a file may be older than what was seen since.
        """
        with self._keeping_evidence():
            with judging("saved", proof):
                value = proof_encoding.decode_lookup_proof(proof)
                trust = self._historian.trust(value.head.head.epoch)
                at = self._clock() if at_ms is None else at_ms
                result = verify_lookup(trust, user_id or value.user_id, proof, now_ms=at, saved=True)
            before = self._historian.hold(result.head)
        return Answer(result, result.head.head.epoch, before.newest_epoch, "")

    def verify_notice(self, notice: bytes) -> Ended:
        """What a notice that the realm's history ends is worth, by the replicas' policies known here; if
        those do not fit, servers are asked for newer ones.

        Raises VerificationError, HistoryConflict, NotRatified.
        """
        with self._keeping_evidence():
            return notices.judge(self.realm, self._historian, self._transport.addresses, notice)

    def fetch_realm(self) -> Realm:
        """The realm's file as a server has it now, if it is of the realm this client trusts.

        Addresses, TLS roots and verifiers may be new; who uses them compares the fingerprint first.
        Raises VerificationError.
        """
        return self._first(ELSEWHERE, self._fetched)

    def replicas_at(self, epoch: int) -> AuthorizationPolicy:
        """The replicas' policy of an epoch, as far as the chain of policies is known here."""
        return self._historian.trust(epoch).replicas

    def _fetched(self, address: str) -> Realm:
        raw = self._transport.call(address, "GetRealm", b"")
        with self._keeping_evidence(), judging("GetRealm", raw):
            message = encoding.parse(client_pb2.GetRealmResponse, raw, limits.REALM_JSON_BYTES + 16, "realm")
            fetched = realms.parse_realm_json(message.realm_json)
            if fetched.hash != self.realm.hash:
                raise VerificationError("realm", "the server publishes another realm")
        return fetched

    def _latest(self, address: str, user_id: str) -> Answer:
        request = self._lookup_request(user_id)
        try:
            raw = self._transport.call(address, "Lookup", encoding.canonical(request))
        except Refused as refusal:
            if request.min_epoch and refusal.reason in BEHIND:
                what = f"the server has not reached epoch {request.min_epoch}, which was seen before"
                raise NotRatified("rollback", what) from None
            raise
        return self._accepted(address, user_id, "Lookup", raw)

    def _historic(self, address: str, user_id: str, epoch: int) -> Answer:
        """Epoch `epoch` under the quorum, whatever its age, and its place in the newest history."""
        request = self._lookup_request(user_id)
        request.epoch, request.min_epoch = epoch, 0
        raw = self._transport.call(address, "Lookup", encoding.canonical(request))
        with self._keeping_evidence():
            result = self._verified(address, user_id, "Lookup", raw, epoch)
            if self.quorum == self.realm.verification_policy.quorum:
                newest = self._historian.newest_after(address, result.head)
            else:  # The server offers the newest head of the realm's quorum; ours may need other signatures.
                newest = self._latest(address, user_id).result.head
                self._historian.prove(address, result.head, newest)
            before = self._historian.settle(address, newest)
        return Answer(result, newest.head.epoch, before.newest_epoch, address)

    def _lookup_request(self, user_id: str) -> client_pb2.LookupRequest:
        return client_pb2.LookupRequest(
            user_id=user_id,
            quorum_requirement=encoding.quorum_message(self.quorum),
            min_epoch=self._historian.state().epoch_of(self.quorum),
        )

    # Judging an answer

    def _accepted(
        self, address: str, user_id: str, method: str, raw: bytes, expected: Draft | None = None
    ) -> Answer:
        """The answer in `raw`, verified as the latest and pinned; `expected`: the update it must contain."""
        with self._keeping_evidence():
            result = self._verified(address, user_id, method, raw)
            if expected is not None:
                with judging(method, raw):
                    _check_contains(result, expected)
            before = self._historian.settle(address, result.head)
        return Answer(result, result.head.head.epoch, before.newest_epoch, address)

    def _verified(self, address: str, user_id: str, method: str, raw: bytes, epoch: int = 0) -> LookupResult:
        with judging(method, raw):
            head = proof_encoding.decode_lookup_proof(raw).head
        try:
            return self._judge(user_id, method, raw, head, epoch)
        except (VerificationError, NotRatified) as error:
            unknown_signers = _cause(error) in {"signature", "quorum"}
            if not unknown_signers or not self._historian.learn_policy(address):
                if isinstance(error, NotRatified) and not unknown_signers:
                    self._historian.reveal_fork(address, head)
                raise
        return self._judge(user_id, method, raw, head, epoch)

    def _judge(self, user_id: str, method: str, raw: bytes, head: SignedHead, epoch: int) -> LookupResult:
        with judging(method, raw):
            trust = self._historian.trust(head.head.epoch)
            return verify_lookup(trust, user_id, raw, now_ms=self._clock(), epoch=epoch)

    @contextmanager
    def _keeping_evidence(self) -> Iterator[None]:
        """Write down what was received BEFORE the error reaches anybody."""
        try:
            yield
        except (BadAnswer, HistoryConflict) as error:
            found = evidence_of(error, self._historian.state().changes)
            self.evidence.keep(found, self.realm, self._clock())
            raise

    def _first(self, elsewhere: Collection[Reason], ask: Callable[[str], T]) -> T:
        """What the first address gives that is reachable, up to date and ready."""
        failures: list[E2eksError] = []
        for address in self._transport.addresses:
            try:
                return ask(address)
            except (Unreachable, NotRatified) as failure:
                failures.append(failure)
            except Refused as refusal:
                if isinstance(refusal, Malformed) or refusal.reason not in elsewhere:
                    raise
                failures.append(refusal)
        if not failures:
            raise ConfigError("the realm names no address of a keyserver")
        raise next(f for kind in REPORTED_FIRST for f in failures if isinstance(f, kind))

    # Updates

    def register(
        self,
        user_id: str,
        keys: Mapping[str, bytes],
        signers: Collection[SigningKey],
        *,
        policy: AuthorizationPolicy | None = None,
        admission: Admission | None = None,
    ) -> LookupResult:
        """Give a free name its first keys, by application; returns once the quorum has ratified them.

        `policy` says who may change them: any one of `signers` if not given. `admission` makes the encoded
        RegistrationProof for the entry. Raises like `lookup`; Refused if the name is taken.
        """
        draft = self.draft_registration(user_id, keys, signers, policy=policy)
        return self.submit(draft, admission(draft.update.entry) if admission else b"").result

    def update(
        self,
        user_id: str,
        keys: Mapping[str, bytes],
        signers: Collection[SigningKey],
        *,
        policy: AuthorizationPolicy | None = None,
    ) -> LookupResult:
        """Replace the user's keys; `policy` None leaves it as it is. Raises like `register`."""
        return self.submit(self.draft_update(user_id, keys, signers, policy=policy)).result

    def revoke(self, user_id: str, signers: Collection[SigningKey]) -> LookupResult:
        """End the user's entry; only a new registration can follow. Raises like `register`."""
        return self.submit(self.draft_revocation(user_id, signers)).result

    def erase(self, user_id: str, signers: Collection[SigningKey]) -> LookupResult:
        """Have name and keys forgotten, in every epoch; what is proven then: Erased, or Revoked.

        The entry itself stays and can be updated. Raises like `register`; Refused (NOT_READY) if the server
        says it is done and still shows the keys.
        """
        request = drafts.erasure(self.realm, user_id, self._current(user_id), signers, self._randomness)
        self._first({Reason.NOT_READY}, lambda address: self._transport.call(address, "Erase", request))
        found = self.lookup(user_id)
        if isinstance(found, Present):
            raise Refused(Reason.NOT_READY, "accepted, but the server that answers now still shows the keys")
        return found

    def draft_registration(
        self,
        user_id: str,
        keys: Mapping[str, bytes],
        signers: Collection[SigningKey],
        *,
        policy: AuthorizationPolicy | None = None,
    ) -> Draft:
        """The signed registration, not sent: `submit` sends it, as often as it takes."""
        found = self.lookup(user_id)
        if not isinstance(found, Absent | Revoked):
            raise Refused(Reason.VERSION_MISMATCH, "the name is registered already: update it")
        return drafts.registration(
            self.realm,
            user_id,
            found.proof.index,
            keys,
            signers,
            policy=policy or drafts.any_of([signer.public_key for signer in signers]),
            revoked=found.entry if isinstance(found, Revoked) else None,
            randomness=self._randomness,
        )

    def draft_update(
        self,
        user_id: str,
        keys: Mapping[str, bytes],
        signers: Collection[SigningKey],
        *,
        policy: AuthorizationPolicy | None = None,
    ) -> Draft:
        """The signed next version of the user's entry, not sent."""
        current = self._current(user_id)
        return drafts.change(
            self.realm, user_id, current, keys, signers, policy=policy, randomness=self._randomness
        )

    def draft_revocation(self, user_id: str, signers: Collection[SigningKey]) -> Draft:
        """The signed end of the user's entry, not sent."""
        signed = drafts.revocation(self.realm, self._current(user_id), signers)
        return drafts.revocation_draft(user_id, signed, self._randomness)

    def _current(self, user_id: str) -> Entry:
        found = self.lookup(user_id)
        if isinstance(found, Absent):
            raise Refused(Reason.VERSION_MISMATCH, "the name is not registered: register it first")
        return found.entry

    def submit(self, draft: Draft, registration_proof: bytes = b"") -> Answer:
        """Send an update and wait until the quorum has ratified it; the answer contains exactly this entry.

        Sending a draft again, to any address, is safe. `registration_proof` is an encoded RegistrationProof.
        """
        request = client_pb2.UpdateRequest(
            update=pb.SignedEntryUpdate.FromString(draft.update.encoded),
            profile=draft.profile,
            profile_nonce=draft.nonce,
            request_id=draft.request_id,
            lookup_parameters=self._lookup_request(draft.user_id),
        )
        if registration_proof:
            request.registration_proof.MergeFromString(registration_proof)
        encoded = encoding.canonical(request)

        def send(address: str) -> Answer:
            raw = self._transport.call(address, "Update", encoded)
            return self._accepted(address, draft.user_id, "Update", raw, draft)

        return self._first({Reason.NOT_READY}, send)


def _cause(error: VerificationError | NotRatified) -> str:
    return error.check if isinstance(error, VerificationError) else error.cause


def _check_contains(result: LookupResult, draft: Draft) -> None:
    """The answer to an update shows exactly the entry and the profile that were sent."""
    if isinstance(result, Absent) or result.entry.encoded != draft.update.entry.encoded:
        raise VerificationError("entry", "the answer to an update does not contain exactly the entry sent")
    shown = result.profile.encoded if isinstance(result, Present) else b""
    if shown != draft.profile:
        raise VerificationError("commitment", "the answer to an update does not contain the profile sent")
