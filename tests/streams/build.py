"""Valid verifier streams, and the means to make them invalid in one place at a time.

A Stream grows like a realm does: users register, update, revoke; `close_epoch` makes and signs the head.
Everything is made from one seed. `copy` gives the start of a fork.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

from e2eks.v1 import types_pb2 as pb
from e2eks.v1 import verification_pb2
from streams.realms import Party, make_realm, party
from streams.twins import history_root, prefix_root

from verifier import encoding, epoch
from verifier.types import AuthorizationPolicy, Entry, Realm, SignedHead
from verifier.update import update_message

START_MS = 1_700_000_000_000
EPOCH_MS = 1_000


def steps_message(*steps: bytes) -> bytes:
    """One streamed VerifierSteps message of encoded steps."""
    message = verification_pb2.VerifierSteps()
    for step in steps:
        message.steps.add().ParseFromString(step)
    return message.SerializeToString(deterministic=True)


@dataclass
class Stream:
    """A realm's verifier log so far. `steps[i]` is the encoded VerifierStep i + 1."""

    seed: int = 1
    replica_count: int = 3
    realm: Realm = field(init=False)
    replicas: list[Party] = field(init=False)
    verifiers: list[Party] = field(init=False)
    chain: epoch.Chain = field(init=False)
    steps: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    leaves: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replicas = [party(self.seed, f"replica-{n}") for n in range(self.replica_count)]
        self.verifiers = [party(self.seed, f"verifier-{n}") for n in range(2)]
        self.use(make_realm(self.replicas, self.verifiers))

    def use(self, realm: Realm) -> None:
        """Start in another realm of the same keys; before the first step only."""
        self.realm = realm
        self.chain = epoch.genesis_chain(realm)

    def copy(self) -> Stream:
        twin = copy.copy(self)
        for name in ("steps", "heads", "leaves", "entries", "replicas"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        return twin

    # Updates

    def user(self, name: str) -> Party:
        return party(self.seed, f"user-{name}")

    def index(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.seed}/index/{name}".encode()).digest()

    def policy(self, *owners: Party) -> AuthorizationPolicy:
        from verifier.policy import majority

        return encoding.make_policy([o.public_key for o in owners], majority([o.key_id for o in owners]))

    def next_entry(self, name: str, **changes: Any) -> Entry:
        """The lawful next entry of a user, with `changes` to its fields."""
        current = self.entries.get(name)
        fields: dict[str, Any] = {
            "index": self.index(name),
            "version": current.version + 1 if current else 0,
            "update_policy": self.policy(self.user(name)),
            "profile_commitment": hashlib.sha256(f"{name}{current}".encode()).digest(),
            "previous_entry_hash": current.hash if current else b"",
        }
        return encoding.decode_entry(encoding.encode_entry(**(fields | changes)))

    def revocation(self, name: str, version: int = 1_000_000) -> Entry:
        return self.next_entry(
            name, version=version, profile_commitment=b"", previous_entry_hash=b"", revocation=True
        )

    def sign_update(self, entry: Entry, *signers: Party, realm_hash: bytes | None = None) -> bytes:
        message = update_message(realm_hash or self.realm.hash, entry.encoded)
        signed = pb.SignedEntryUpdate(entry=entry.encoded, signatures=[s.sign(message) for s in signers])
        return signed.SerializeToString(deterministic=True)

    def append_update(self, update: bytes, name: str) -> None:
        """Put a signed update into the log as it is."""
        entry = encoding.decode_update(update).entry
        self.leaves[entry.index] = entry.hash
        self.entries[name] = entry
        self.append(update=update)

    def put(self, name: str) -> None:
        """Register the user, or update it."""
        self.append_update(self.sign_update(self.next_entry(name), self.user(name)), name)

    def revoke(self, name: str) -> None:
        self.append_update(self.sign_update(self.revocation(name), self.user(name)), name)

    # Heads

    def compose(self, **changes: Any) -> bytes:
        """The lawful next head, with `changes` to the fields of EpochHead."""
        fields: dict[str, Any] = {
            "root_hash": prefix_root(self.leaves),
            "issue_time_ms": START_MS + EPOCH_MS * (self.chain.epoch + 1),
            "history_root": history_root(self.heads),
            "state_digest": hashlib.sha256(b"digest" + bytes(self.chain.epoch)).digest(),
        }
        policy = changes.pop("next_epoch_policy", None)
        head = pb.EpochHead.FromString(
            epoch.compose_head(self.realm, self.chain, next_epoch_policy=policy, **fields)
        )
        for name, value in changes.items():
            setattr(head, name, value)
        return head.SerializeToString(deterministic=True)

    def sign_head(self, head: bytes, *signers: Party) -> bytes:
        """The head with one ratification by the replicas, at its issue time."""
        issued = pb.EpochHead.FromString(head).issue_time_ms
        message = epoch.replica_message(head, issued)
        ratification = pb.Ratification(
            timestamp_ms=issued, signatures=[s.sign(message) for s in signers or self.replicas]
        )
        signed = pb.SignedEpochHead(head=head, ratifications=[ratification])
        return signed.SerializeToString(deterministic=True)

    def append_head(self, signed: bytes) -> None:
        """Put a signed head into the log as it is."""
        head = encoding.decode_signed_head(signed).head
        self.heads.append(head.encoded)
        self.chain = epoch.follow(self.chain, head)
        self.append(epoch=signed)

    def close_epoch(self, *signers: Party, **changes: Any) -> SignedHead:
        signed = self.sign_head(self.compose(**changes), *signers)
        self.append_head(signed)
        return encoding.decode_signed_head(signed)

    # Steps

    def append(self, *, update: bytes = b"", epoch: bytes = b"") -> None:
        self.steps.append(make_step(len(self.steps) + 1, update=update, epoch=epoch))

    def message(self, start: int = 1, stop: int | None = None) -> bytes:
        """One message of the steps start … stop - 1, numbered from 1."""
        return steps_message(*self.steps[start - 1 : None if stop is None else stop - 1])

    def grow(self, epochs: int, users: tuple[str, ...] = ("alice", "bob")) -> Stream:
        """`epochs` epochs; in each, every user makes an update."""
        for _ in range(epochs):
            for name in users:
                self.put(name)
            self.close_epoch()
        return self


def make_step(index: int, *, update: bytes = b"", epoch: bytes = b"") -> bytes:
    step = verification_pb2.VerifierStep(index=index)
    if update:
        step.update.ParseFromString(update)
    else:
        step.epoch.ParseFromString(epoch)
    return step.SerializeToString(deterministic=True)
