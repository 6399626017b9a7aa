"""The words of the protocol as frozen values. Made by `encoding` from bytes that passed every limit; never
half-checked.

Values that are signed or hashed keep the exact bytes they came from in `encoded`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class QuorumExpr:
    """True for signers S iff |candidates in S| + |true subexpressions| >= threshold."""

    threshold: int
    candidates: tuple[bytes, ...] = ()
    subexpressions: tuple[QuorumExpr, ...] = ()

    def all_candidates(self) -> Iterator[bytes]:
        """Every key id in the expression, in wire order."""
        yield from self.candidates
        for sub in self.subexpressions:
            yield from sub.all_candidates()


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """Keys and the quorum over them. `keys` maps key id to Ed25519 public key, in wire order."""

    keys: Mapping[bytes, bytes]
    quorum: QuorumExpr
    encoded: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))


@dataclass(frozen=True, slots=True)
class Signature:
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A leaf of the directory; `hash` is its entry hash."""

    index: bytes
    version: int
    update_policy: AuthorizationPolicy | None
    profile_commitment: bytes
    previous_entry_hash: bytes
    revocation: bool
    encoded: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class SignedUpdate:
    entry: Entry
    signatures: tuple[Signature, ...]
    encoded: bytes


@dataclass(frozen=True, slots=True)
class Profile:
    """Application keys by application name, sorted."""

    keys: Mapping[str, bytes]
    encoded: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))


@dataclass(frozen=True, slots=True)
class EpochHead:
    """The unsigned summary of an epoch; `hash` is its head hash. Times are Unix milliseconds."""

    realm: str
    epoch: int
    root_hash: bytes
    issue_time_ms: int
    previous_head_hash: bytes
    next_epoch_policy: AuthorizationPolicy | None
    history_root: bytes
    state_digest: bytes
    provenance_root: bytes
    realm_hash: bytes
    rules: int
    provenance_size: int
    encoded: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Ratification:
    timestamp_ms: int
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class SignedHead:
    head: EpochHead
    ratifications: tuple[Ratification, ...]
    encoded: bytes = field(compare=False)


@dataclass(frozen=True, slots=True)
class TreeProof:
    """Neighbours from depth 1 down; an empty sibling is b"". `existing` is the other leaf of an absence
    proof."""

    neighbors: tuple[bytes, ...]
    existing: tuple[bytes, bytes] | None


@dataclass(frozen=True, slots=True)
class LookupProof:
    user_id: str
    index: bytes
    index_proof: bytes
    head: SignedHead
    tree_proof: TreeProof
    entry: Entry | None
    profile: Profile | None
    profile_nonce: bytes
    encoded: bytes


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    old_head: SignedHead
    new_head: SignedHead
    inclusion: tuple[bytes, ...]
    consistency: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class UpdateStep:
    """One accepted update in the verifier log."""

    index: int
    update: SignedUpdate


@dataclass(frozen=True, slots=True)
class EpochStep:
    """One head, signed by the replicas' majority, in the verifier log."""

    index: int
    head: SignedHead


VerifierStep = UpdateStep | EpochStep


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier as the realm lists it; `address` is host:port of its RatifiedHeads service, or empty."""

    name: str
    public_key: bytes
    key_id: bytes
    address: str


@dataclass(frozen=True, slots=True)
class Realm:
    """What a client must know and pin: the content of realm.json, checked. `hash` is the realm hash."""

    name: str
    domains: tuple[str, ...]
    addresses: tuple[str, ...]
    vrf_public_key: bytes
    verification_policy: AuthorizationPolicy
    epoch_ttl_ms: int
    suite: int
    tls_roots_pem: tuple[str, ...]
    genesis_policy: AuthorizationPolicy
    verifiers: tuple[Verifier, ...]
    hash: bytes
