"""A replica inside a test: a small realm from fixed seeds, on memory that outlives the replica, and people
who use it.

Nothing here listens anywhere: tests call the service. The clock is the machine's unless a test brings its
own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import trio
from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb

from keyserver.admission.gate import Gate
from keyserver.config import Epochs, Registration
from keyserver.data_directory import check_register
from keyserver.lives import Lives
from keyserver.machine import commands
from keyserver.run import Parts, Surroundings, assemble, run_parts
from keyserver.signer import Signer
from kv.interface import Store
from kv.memory import MemoryDisk, MemoryStore
from replication.local import LocalLog
from verifier import encoding, policy
from verifier import epoch as epoch_law
from verifier import realm as realms
from verifier.crypto import commitment, hashing, signatures, vrf
from verifier.signonce import SignOnceRegister
from verifier.types import Entry, QuorumExpr, Ratification, Realm, Signature, SignedHead, Verifier
from verifier.update import update_message

REALM = "example.org"
TTL_MS = 3_600_000
FAST = Epochs(min_interval_ms=1, max_interval_ms=3_000_000, retry_interval_ms=200)
OPEN = Registration(insecure_skip_registration_proof=True, client_certificate=())


def seed(name: str) -> bytes:
    """32 bytes from a name."""
    return sha256(name.encode()).digest()


@dataclass(frozen=True, slots=True)
class SmallRealm:
    """A realm of one replica with its secrets. Verifiers' seeds are in the order of `realm.verifiers`."""

    realm: Realm
    head_seed: bytes
    vrf_seed: bytes
    verifier_seeds: tuple[bytes, ...]

    @property
    def replica(self) -> bytes:
        """Key id of the replica."""
        return hashing.key_id(signatures.public_key(self.head_seed))

    def index_of(self, user_id: str) -> bytes:
        proof = vrf.prove(vrf.VrfKey(self.vrf_seed), realms.user_id_alpha(self.realm.name, user_id))
        return vrf.index(vrf.proof_to_hash(proof))

    def ratify(self, verifier: int, head: SignedHead | bytes, time_ms: int) -> bytes:
        """What a verifier pushes: the head with its one signature."""
        encoded = head if isinstance(head, bytes) else head.head.encoded
        secret = self.verifier_seeds[verifier]
        made = signatures.sign(secret, epoch_law.verifier_message(encoded, time_ms))
        signature = Signature(self.realm.verifiers[verifier].key_id, made)
        return encoding.encode_signed_head(encoded, [Ratification(time_ms, (signature,))])


def small_realm(verifiers: int = 0, *, ttl_ms: int = TTL_MS) -> SmallRealm:
    """The realm example.org with so many verifiers, the same in every run."""
    head_seed, vrf_seed = seed("replica"), seed("vrf")
    verifier_seeds = tuple(seed(f"verifier {number}") for number in range(verifiers))
    replica_key = signatures.public_key(head_seed)
    keys = [signatures.public_key(secret) for secret in verifier_seeds]
    ids = [hashing.key_id(key) for key in keys]
    genesis = encoding.make_policy([replica_key], policy.majority([hashing.key_id(replica_key)]))
    quorum = policy.default_quorum([hashing.key_id(replica_key)], ids)
    vrf_key = vrf.VrfKey(vrf_seed).public_key
    realm = Realm(
        name=REALM,
        domains=(REALM,),
        addresses=("127.0.0.1:4625",),
        vrf_public_key=vrf_key,
        verification_policy=encoding.make_policy([replica_key, *keys], quorum),
        epoch_ttl_ms=ttl_ms,
        suite=1,
        tls_roots_pem=(),
        genesis_policy=genesis,
        verifiers=tuple(Verifier(f"v{n}", key, ids[n], "") for n, key in enumerate(keys)),
        hash=realms.realm_hash(REALM, 1, vrf_key, genesis),
    )
    return SmallRealm(realm, head_seed, vrf_seed, verifier_seeds)


@dataclass
class Disk:
    """What outlives a replica. `folder` holds the sign-once register."""

    folder: Path
    database: MemoryDisk = field(default_factory=MemoryDisk)
    log: MemoryDisk = field(default_factory=MemoryDisk)

    def signer(self, small: SmallRealm) -> Signer:
        """The replica's signer; its register is made the first time."""
        path = self.folder / "register"
        opened = SignOnceRegister.open if path.exists() else SignOnceRegister.create
        return Signer(small.realm, small.head_seed, small.vrf_seed, opened(path, key_id=small.replica))


@asynccontextmanager
async def running(
    small: SmallRealm,
    disk: Disk,
    *,
    epochs: Epochs = FAST,
    registration: Registration = OPEN,
    update_timeout_ms: int = 60_000,
    around: Surroundings | None = None,
    over: Callable[[Store], Store] = lambda store: store,
    signer: Signer | None = None,
    lives: Lives | None = None,
) -> AsyncIterator[Parts]:
    """The parts of a replica at work on `disk`, with epoch 1 signed (unless the signer is in quarantine).

    `over` may put a store of the test's before the real one.
    """
    store = MemoryStore(disk.database)
    log_store = MemoryStore(disk.log)
    own = signer or disk.signer(small)
    try:
        log = LocalLog(log_store, commands.public_part)
        check_register(store, log, own)
        parts = assemble(
            name="r1",
            realm=small.realm,
            realm_json=realms.realm_json(small.realm),
            epochs=epochs,
            update_timeout_ms=update_timeout_ms,
            store=over(store),
            log=log,
            signer=own,
            gate=Gate(registration, small.realm),
            around=around or Surroundings(),
            lives=lives,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(run_parts, parts)
            if not own.quarantined:
                await first_epoch(parts)
            yield parts
            nursery.cancel_scope.cancel()
    finally:
        store.close()
        log_store.close()
        own.close()


async def first_epoch(parts: Parts) -> None:
    """Wait until there is an epoch to look up in."""
    while parts.replica.state.signed_epoch == 0:
        turn = parts.replica.applied.turn()
        if parts.replica.state.signed_epoch == 0:
            await turn.wait()


@dataclass
class Person:
    """Somebody with one signing key, who remembers the last entry made."""

    user_id: str
    small: SmallRealm
    entry: Entry | None = None

    @classmethod
    def named(cls, name: str, small: SmallRealm) -> Person:
        return cls(f"{name}@{REALM}", small)

    @property
    def index(self) -> bytes:
        return self.small.index_of(self.user_id)

    def draft(self, keys: dict[str, bytes], **changes: object) -> client_pb2.UpdateRequest:
        """The request for the next version with these application keys. `changes` are fields of the entry."""
        public_key = signatures.public_key(seed(self.user_id))
        law = encoding.make_policy([public_key], QuorumExpr(1, (hashing.key_id(public_key),)))
        version = self.entry.version + 1 if self.entry else 0
        index, nonce, profile = self.index, seed(f"{self.user_id} {version}"), encoding.encode_profile(keys)
        fields: dict[str, object] = {
            "index": index,
            "version": version,
            "update_policy": law,
            "profile_commitment": commitment.commit(nonce, index, version, profile),
            "previous_entry_hash": self.entry.hash if self.entry else b"",
        }
        entry = encoding.encode_entry(**{**fields, **changes})  # type: ignore[arg-type]
        return client_pb2.UpdateRequest(
            update=pb.SignedEntryUpdate(entry=entry, signatures=[self.sign(entry)]),
            profile=profile,
            profile_nonce=nonce,
            lookup_parameters=client_pb2.LookupRequest(user_id=self.user_id),
        )

    def sign(self, entry: bytes) -> pb.Signature:
        secret = seed(self.user_id)
        made = signatures.sign(secret, update_message(self.small.realm.hash, entry))
        return pb.Signature(key_id=hashing.key_id(signatures.public_key(secret)), signature=made)

    def update(self, keys: dict[str, bytes], **changes: object) -> bytes:
        """The bytes of the request, whose entry is remembered as the last one."""
        request = self.draft(keys, **changes)
        self.entry = encoding.decode_entry(request.update.entry)
        return request.SerializeToString()

    def revocation(self) -> bytes:
        """The bytes of a request that revokes the last entry; remembered."""
        version = self.entry.version + 1 if self.entry else 1
        entry = encoding.encode_entry(index=self.index, version=version, update_policy=None, revocation=True)
        self.entry = encoding.decode_entry(entry)
        request = client_pb2.UpdateRequest(
            update=pb.SignedEntryUpdate(entry=entry, signatures=[self.sign(entry)]),
            lookup_parameters=client_pb2.LookupRequest(user_id=self.user_id),
        )
        return request.SerializeToString()

    def lookup(self, **fields: object) -> bytes:
        """The bytes of a LookupRequest."""
        request = client_pb2.LookupRequest(user_id=self.user_id, **fields)  # type: ignore[arg-type]
        return request.SerializeToString()
