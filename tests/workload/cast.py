"""Who acts in a test log: keys, users and realms, all from seeds; real signatures everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypedDict, Unpack

from e2eks.v1 import types_pb2 as pb

from keyserver.machine import commands, private_parts
from keyserver.machine.commands import Endorsement, Erase, SubmitUpdate
from verifier import encoding, policy
from verifier.crypto import commitment, hashing
from verifier.crypto.signatures import SigningKey
from verifier.erasure import erasure_message
from verifier.realm import realm_from
from verifier.types import AuthorizationPolicy, QuorumExpr, Realm, Signature
from verifier.update import update_message

TTL_MS = 3_600_000


def derive(*names: object) -> bytes:
    """32 bytes that depend on all names."""
    return sha256("/".join(map(str, names)).encode()).digest()


class Key:
    """An Ed25519 key with its id."""

    def __init__(self, *names: object) -> None:
        secret = SigningKey(derive("key", *names))
        self.public_key = secret.public_key
        self.id = hashing.key_id(secret.public_key)
        self.sign = secret.sign

    def signature(self, message: bytes) -> Signature:
        return Signature(self.id, self.sign(message))


def policy_of(keys: Sequence[Key], threshold: int = 1) -> AuthorizationPolicy:
    """`threshold` of the keys."""
    expr = QuorumExpr(threshold=threshold, candidates=tuple(key.id for key in keys))
    return encoding.make_policy([key.public_key for key in keys], expr)


def majority_of(keys: Sequence[Key]) -> AuthorizationPolicy:
    return policy_of(keys, len(keys) // 2 + 1)


def make_realm(replicas: Sequence[Key], verifiers: Sequence[Key], name: str = "example.org") -> Realm:
    """A realm with these replicas at epoch 1; verifiers are listed in its file, not yet in any log."""
    both = [*replicas, *verifiers]
    quorum = policy.default_quorum([r.id for r in replicas], [v.id for v in verifiers])
    message = pb.RealmConfig(
        realm=name,
        domains=[name],
        addresses=["127.0.0.1:4625"],
        vrf_public_key=Key("vrf", name).public_key,
        verification_policy=encoding.policy_message(
            encoding.make_policy([key.public_key for key in both], quorum)
        ),
        epoch_ttl_ms=TTL_MS,
        suite=1,
        genesis_policy=encoding.policy_message(majority_of(replicas)),
        verifiers=[
            pb.VerifierInfo(name=f"verifier-{number}", public_key=pb.PublicKey(ed25519=key.public_key))
            for number, key in enumerate(verifiers)
        ],
    )
    return realm_from(message)


@dataclass
class User:
    """A user with a device key. `version` and `previous` are of the last entry the log accepted, None
    before.
    """

    index: bytes
    user_id: str
    keys: list[Key]
    version: int | None = None
    previous: bytes = b""
    revoked: bool = False
    history: list[bytes] = field(default_factory=list)

    @classmethod
    def named(cls, name: str) -> "User":
        return cls(derive("index", name), f"{name}@example.org", [Key("device", name)])

    @property
    def next_version(self) -> int:
        return 0 if self.version is None else self.version + 1

    def accepted(self, entry: bytes) -> None:
        """The log accepted this entry."""
        decoded = encoding.decode_entry(entry)
        self.version, self.previous, self.revoked = decoded.version, decoded.hash, decoded.revocation
        self.history.append(entry)


@dataclass(frozen=True)
class Draft:
    """An update on its way into the log, with all that belongs to it."""

    command: SubmitUpdate
    part: bytes
    entry: bytes


class Changes(TypedDict, total=False):
    """How a draft differs from a lawful update by the user's own keys."""

    endorsers: Sequence[Key]
    not_after_ms: int
    signers: Sequence[Key]  # instead of the user's keys and the new ones
    new_keys: Sequence[Key]  # of the new policy
    version: int
    previous: bytes
    revocation: bool
    proof: bytes  # proof id
    label: object  # makes another profile, nonce and proof id
    padding: int  # bytes more in the profile


def draft(realm: Realm, user: User, **changes: Unpack[Changes]) -> Draft:
    """An update of `user`, lawful unless changed; endorsed when `endorsers` are given."""
    number, label = changes.get("version", user.next_version), changes.get("label", "")
    keys, endorsers = changes.get("new_keys", user.keys), changes.get("endorsers", ())
    key = f"{user.user_id}:{number}:{label}".encode() + bytes(changes.get("padding", 0))
    profile = encoding.encode_profile({"ssh": key})
    nonce, salt = derive("nonce", user.user_id, number, label), derive("salt", user.user_id, number, label)
    if changes.get("revocation"):
        entry = encoding.encode_entry(index=user.index, version=number, update_policy=None, revocation=True)
    else:
        entry = encoding.encode_entry(
            index=user.index,
            version=number,
            update_policy=policy_of(keys),
            profile_commitment=commitment.commit(nonce, user.index, number, profile),
            previous_entry_hash=changes.get("previous", user.previous),
        )
    message = update_message(realm.hash, entry)
    by = changes.get("signers", [*user.keys, *keys])
    made = {key.id: key.signature(message) for key in by}
    update = encoding.decode_update(encoding.encode_update(entry, list(made.values())))
    contents = private_parts.encode_private_contents(user.user_id, profile, nonce)
    hashed = private_parts.private_hash(salt, contents)
    proof_id = changes.get("proof", derive("proof", user.user_id, number, label))
    until = changes.get("not_after_ms", 2**63)
    endorsed = tuple(
        endorse(realm, key, hashed, update.entry.index, update.entry.hash, proof_id, until)
        for key in endorsers
    )
    command = SubmitUpdate(update, hashed, endorsed, proof_id if endorsers else b"")
    return Draft(command, private_parts.encode_private_part(salt, contents), entry)


def erasure(
    realm: Realm, user: User, *, signers: Sequence[Key] | None = None, entry_hash: bytes | None = None
) -> Erase:
    """What erases a user, by the user's keys and for the last accepted entry unless said otherwise."""
    hashed = user.previous if entry_hash is None else entry_hash
    message = erasure_message(realm.hash, user.index, hashed)
    by = user.keys if signers is None else signers
    return Erase(user.index, hashed, tuple(key.signature(message) for key in by))


def endorse(
    realm: Realm,
    key: Key,
    private_hash: bytes,
    index: bytes,
    entry_hash: bytes,
    proof_id: bytes,
    not_after_ms: int,
) -> Endorsement:
    """What a replica signs after it verified a registration proof."""
    message = commands.endorsement_message(
        realm.hash, private_hash, index, entry_hash, proof_id, not_after_ms
    )
    return Endorsement(key.id, not_after_ms, key.sign(message))
