"""A realm in memory behind the client's transport: real keys and proofs, a test's hand on every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from e2eks.v1 import client_pb2
from samples import ALICE, REALM, REPLICAS, VERIFIERS, Key, make_revocation, nonce_of
from samples.directory import Directory

from verifier import encoding, erasure, update
from verifier import policy as quorums
from verifier import realm as realms
from verifier.client.outcome import Unreachable
from verifier.crypto.signatures import SigningKey
from verifier.errors import Reason, Refused
from verifier.types import AuthorizationPolicy, Entry, QuorumExpr, Realm, SignedHead

ADDRESSES = ("one.test:4625", "two.test:4625", "three.test:4625")
ANSWER_DELAY_MS = 2000  # from a head's issue to the lookups of a test


def signing_key(key: Key) -> SigningKey:
    """A sample key as the client holds it."""
    return SigningKey(key.seed)


class SimulatedRealm:
    """Transport and realm in one. `put`, `revoke`, `erase` change entries, `close` ends an epoch.

    A test may take addresses `down`, hold them `behind` (address -> newest epoch it knows), have a
    method refuse (`refusals`) or rewrite its answers (`tampering`). `calls` and `requests` are recorded.
    """

    def __init__(
        self,
        realm: Realm = REALM,
        addresses: Sequence[str] = ADDRESSES,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """`clock` dates the heads, for a client that looks at its own; else a second apart since START_MS."""
        self.realm = realm
        self.addresses: Sequence[str] = addresses
        self.clock = clock
        self.directory = Directory(realm)
        self.replicas: list[tuple[Key, ...]] = []  # who signs head n, at n - 1
        self.verifiers: tuple[Key, ...] = VERIFIERS
        self.nonces: dict[bytes, bytes] = {}  # entry hash -> profile nonce
        self.down: set[str] = set()
        self.behind: dict[str, int] = {}
        self.refusals: dict[str, Refused] = {}
        self.tampering: dict[str, Callable[[bytes], bytes]] = {}
        self.calls: list[tuple[str, str]] = []
        self.requests: list[tuple[str, bytes]] = []
        self.closes_on_update = True
        self.late_ms = 0
        self._current_replicas = REPLICAS

    # The realm

    def now_ms(self) -> int:
        """A clock shortly after the newest head, plus what the test adds in `late_ms`."""
        return self.head(self.epoch).head.issue_time_ms + ANSWER_DELAY_MS + self.late_ms

    @property
    def epoch(self) -> int:
        return len(self.directory.heads)

    def put(self, user_id: str, keys: dict[str, bytes], owner: Key = ALICE) -> Entry:
        return self.directory.put(user_id, encoding.encode_profile(keys), owner)

    def revoke(self, user_id: str) -> Entry:
        current, _ = self.directory.entries[user_id]
        entry = make_revocation(user_id, current.version + 1)
        self.directory.entries[user_id] = (entry, b"")
        return entry

    def erase(self, user_id: str) -> None:
        """Forget the profile of the current entry and its nonce."""
        entry, _ = self.directory.entries[user_id]
        self.directory.entries[user_id] = (entry, b"")
        self.nonces[entry.hash] = b""

    def close(self, next_replicas: tuple[Key, ...] = (), **changes: object) -> int:
        """End the epoch; `next_replicas` become the replicas of the next one. Its number."""
        signers = self._current_replicas
        if self.clock is not None:
            changes.setdefault("issue_time_ms", max(self.clock(), self.directory.chain.issue_time_ms + 1))
        if next_replicas:
            changes["next_epoch_policy"] = self._majority(next_replicas)
            signers = (*signers, *(key for key in next_replicas if key not in signers))
            self._current_replicas = next_replicas
        self.directory.close(**changes)
        self.replicas.append(signers)
        return self.epoch

    def head(self, epoch: int) -> SignedHead:
        return self.directory.signed(epoch, replicas=self.replicas[epoch - 1], verifiers=self.verifiers)

    def fork(self) -> SimulatedRealm:
        """A second world with the same past and the same keys."""
        other = SimulatedRealm(self.realm, self.addresses, self.clock)
        mine, theirs = self.directory, other.directory
        theirs.chain, theirs.entries = mine.chain, dict(mine.entries)
        theirs.heads, theirs.states = list(mine.heads), [dict(state) for state in mine.states]
        other.replicas, other.nonces = list(self.replicas), dict(self.nonces)
        other._current_replicas = self._current_replicas
        return other

    def without_last(self) -> SimulatedRealm:
        """A second world that differs from the last head on."""
        other = self.fork()
        heads = other.directory.heads
        heads.pop(), other.directory.states.pop(), other.replicas.pop()
        last = encoding.decode_head(heads[-1])
        other.directory.chain = replace(
            self.directory.chain,
            epoch=last.epoch,
            head_hash=last.hash,
            issue_time_ms=last.issue_time_ms,
        )
        return other

    def lookup(self, user_id: str, epoch: int, **changes: object) -> bytes:
        """The bytes of a LookupProof."""
        directory = self.directory
        if user_id in directory.states[epoch - 1]:
            entry, _ = directory.states[epoch - 1][user_id]
            nonce = self.nonces.get(entry.hash, nonce_of(user_id, entry.version))
            if not entry.revocation:
                changes.setdefault("profile_nonce", nonce)
        return directory.lookup(user_id, epoch, self.head(epoch), **changes)

    @staticmethod
    def _majority(replicas: tuple[Key, ...]) -> AuthorizationPolicy:
        keys = [key.public for key in replicas]
        return encoding.make_policy(keys, quorums.majority([key.id for key in replicas]))

    # The transport

    def call(self, address: str, method: str, request: bytes) -> bytes:
        self.requests.append((method, request))
        return self._answered(address, method, lambda: HANDLERS[method](self, address, request))

    def stream(self, address: str, method: str, request: bytes) -> Sequence[bytes]:
        self._check(address, method)
        asked = client_pb2.PolicyHeadsRequest.FromString(request)
        heads = [self.head(epoch) for epoch in range(asked.start_epoch, self._newest(address) + 1)]
        changes = [head.encoded for head in heads if head.head.next_epoch_policy is not None]
        return [self.tampering.get(method, bytes)(change) for change in changes]

    def _check(self, address: str, method: str) -> None:
        self.calls.append((address, method))
        if address in self.down:
            raise Unreachable(f"{address}: UNAVAILABLE: taken down by the test")
        if method in self.refusals:
            raise self.refusals[method]

    def _answered(self, address: str, method: str, answer: Callable[[], bytes]) -> bytes:
        self._check(address, method)
        return self.tampering.get(method, bytes)(answer())

    def _newest(self, address: str) -> int:
        return min(self.epoch, self.behind.get(address, self.epoch))

    def _lookup(self, address: str, request: bytes) -> bytes:
        asked = client_pb2.LookupRequest.FromString(request)
        newest = self._newest(address)
        if max(asked.epoch, asked.min_epoch) > newest:
            raise Refused(Reason.NO_SUCH_EPOCH, "that epoch is not here")
        return self.lookup(asked.user_id, asked.epoch or newest)

    def _consistency(self, address: str, request: bytes) -> bytes:
        asked = client_pb2.ConsistencyRequest.FromString(request)
        old, new = asked.old_epoch, asked.new_epoch or self._newest(address)
        if not 1 <= old <= new <= self._newest(address):
            raise Refused(Reason.NO_SUCH_EPOCH, "that epoch is not here")
        ends = {"old_head": self.head(old).encoded, "new_head": self.head(new).encoded}
        return self.directory.consistency(old, new, **ends)

    def _update(self, address: str, request: bytes) -> bytes:
        asked = client_pb2.UpdateRequest.FromString(request)
        user_id = asked.lookup_parameters.user_id
        signed = encoding.update_from(asked.update)
        current, _ = self.directory.entries.get(user_id, (None, b""))
        if update.verify_update(current, signed, realm_hash=self.realm.hash) is not update.Change.UNCHANGED:
            self.directory.entries[user_id] = (signed.entry, asked.profile)
            self.nonces[signed.entry.hash] = asked.profile_nonce
            if self.closes_on_update:
                self.close()
        return self.lookup(user_id, self._newest(address))

    def _erase(self, address: str, request: bytes) -> bytes:
        asked = client_pb2.EraseRequest.FromString(request)
        entry, _ = self.directory.entries[asked.user_id]
        if (asked.index, asked.entry_hash) != (entry.index, entry.hash):
            raise Refused(Reason.VERSION_MISMATCH, "another entry")
        known = [state[asked.user_id][0] for state in self.directory.states if asked.user_id in state]
        law = [one.update_policy for one in (*known, entry) if one.update_policy][-1]
        message = erasure.erasure_message(self.realm.hash, entry.index, entry.hash)
        erasure.verify_erasure(law, message, [encoding.signature_from(made) for made in asked.signatures])
        for state in (*self.directory.states, self.directory.entries):
            if asked.user_id in state:
                then, _ = state[asked.user_id]
                state[asked.user_id], self.nonces[then.hash] = (then, b""), b""
        return client_pb2.EraseResponse().SerializeToString()

    def _get_realm(self, address: str, request: bytes) -> bytes:
        answer = client_pb2.GetRealmResponse(realm_json=realms.realm_json(self.realm))
        return answer.SerializeToString(deterministic=True)


HANDLERS: dict[str, Callable[[SimulatedRealm, str, bytes], bytes]] = {
    "Lookup": SimulatedRealm._lookup,
    "Consistency": SimulatedRealm._consistency,
    "Update": SimulatedRealm._update,
    "Erase": SimulatedRealm._erase,
    "GetRealm": SimulatedRealm._get_realm,
}


def one_of_each() -> QuorumExpr:
    """A user's own quorum: any replica and any verifier."""
    sides = tuple(QuorumExpr(1, tuple(key.id for key in keys)) for keys in (REPLICAS, VERIFIERS))
    return QuorumExpr(threshold=2, subexpressions=sides)
