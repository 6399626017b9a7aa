"""A change of the replicas as operators carry it around: a file that gathers approvals until it may be
submitted (docs/operations/cluster.md).

A file may be copied, approved in several places and given together: approvals of one change add up. Nothing
in it is secret, and nothing in it counts but the signatures (verifier.replica_set).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from verifier import replica_set
from verifier.crypto import hashing
from verifier.crypto.signatures import SigningKey
from verifier.encoding import decode_policy
from verifier.errors import ConfigError, Malformed
from verifier.files import read_file
from verifier.limits import VERIFICATION_POLICY_KEYS
from verifier.replica_set import Approvals, ReplicaSetChange
from verifier.types import AuthorizationPolicy, Realm, Signature

SCHEMA = "e2eks.replica-change/1"
SET_SCHEMA = "e2eks.replica-set/1"
FILE_BYTES = 64 * 1024


class _Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key_id: bytes
    signature: bytes


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: str
    realm: str
    realm_hash: str
    present: bytes  # the policy that is changed
    change: bytes
    approvals: tuple[_Approval, ...] = ()


class PresentSet(msgspec.Struct, frozen=True):
    """The replicas of this moment, as a running replica tells them. `base` as in ReplicaSetChange."""

    schema: str
    realm_hash: str
    base: bytes
    policy: bytes
    log_time_ms: int
    epoch: int
    pending: bool  # a change waits for the next delimiter
    names: dict[str, str] = {}  # key id (hex) -> member, as far as known


@dataclass(frozen=True, slots=True)
class Proposed:
    """A change and who has approved it so far. `present`: the policy that it changes."""

    present: AuthorizationPolicy
    change: ReplicaSetChange
    made: tuple[Signature, ...] = ()

    def approvals(self, realm: Realm) -> Approvals:
        """What the approvals amount to."""
        return replica_set.approvals(realm.hash, self.present, self.change, self.made)

    @property
    def added(self) -> tuple[bytes, ...]:
        """Key ids that the change brings in."""
        return tuple(key for key in self.change.policy.keys if key not in self.present.keys)

    @property
    def removed(self) -> tuple[bytes, ...]:
        """Key ids that it takes away."""
        return tuple(key for key in self.present.keys if key not in self.change.policy.keys)


def encode_present(told: PresentSet) -> bytes:
    """What a running replica answers."""
    return msgspec.json.encode(told)


def decode_present(data: bytes) -> PresentSet:
    """The replicas as a running replica tells them. Raises ConfigError."""
    try:
        return msgspec.json.decode(data, type=PresentSet)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the replica's answer is not understood: {error}") from None


def present_policy(told: PresentSet) -> AuthorizationPolicy:
    """The policy a replica told. Raises Malformed."""
    return decode_policy(told.policy, VERIFICATION_POLICY_KEYS, "replicas' policy")


def propose(told: PresentSet, *, add: bytes | None, remove: bytes | None, not_after_ms: int) -> Proposed:
    """A change of the present replicas, approved by nobody. Raises Refused."""
    present = present_policy(told)
    change = replica_set.make_change(told.base, present, add=add, remove=remove, not_after_ms=not_after_ms)
    return Proposed(present, change)


def approve(proposed: Proposed, realm: Realm, key: SigningKey) -> Proposed:
    """With one approval more, or with none if the key has approved already.

    Raises ConfigError for a key whose approval would count for nothing.
    """
    key_id = hashing.key_id(key.public_key)
    if key_id not in proposed.present.keys and key_id not in proposed.change.policy.keys:
        raise ConfigError(
            f"the key {key_id.hex()} is neither a present replica's nor the one to be added: its approval "
            "would count for nothing"
        )
    made = replica_set.approve(key, realm.hash, proposed.change)
    return merge([proposed, Proposed(proposed.present, proposed.change, (made,))])


def merge(files: Sequence[Proposed]) -> Proposed:
    """One change with the approvals of all. Raises ConfigError if they are not of one change."""
    first = files[0]
    if any(other.change.encoded != first.change.encoded for other in files):
        raise ConfigError("the files are about different changes. Give copies of one file")
    made = {signature.key_id: signature for other in files for signature in other.made}
    return Proposed(first.present, first.change, tuple(made.values()))


def encode_file(proposed: Proposed, realm: Realm) -> bytes:
    """The bytes of the file."""
    rows = tuple(_Approval(made.key_id, made.signature) for made in proposed.made)
    file = _File(
        SCHEMA, realm.name, realm.hash.hex(), proposed.present.encoded, proposed.change.encoded, rows
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def decode_file(data: bytes, realm: Realm) -> Proposed:
    """A change out of a file's bytes. Raises ConfigError."""
    try:
        file = msgspec.json.decode(data, type=_File)
        if file.schema != SCHEMA:
            raise Malformed(f"its schema is not {SCHEMA}")
        present = decode_policy(file.present, VERIFICATION_POLICY_KEYS, "present replicas")
        change = replica_set.decode_change(file.change)
        made = replica_set.check_approvals([Signature(row.key_id, row.signature) for row in file.approvals])
    except (msgspec.MsgspecError, Malformed) as error:
        raise ConfigError(f"this is no change of replicas: {error}") from None
    if file.realm_hash != realm.hash.hex():
        raise ConfigError(f"the change is of the realm {file.realm} with another realm hash than this one's")
    return Proposed(present, change, made)


def read_files(paths: Iterable[Path], realm: Realm) -> Proposed:
    """The change in these files, with all their approvals. Raises ConfigError."""
    found = []
    for path in paths:
        try:
            found.append(decode_file(read_file(path, FILE_BYTES, "change of the replicas"), realm))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return merge(found)
