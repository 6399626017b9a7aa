"""A whole realm history in lists and dicts: the dumb twin that lookup tests take their proofs from."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from samples import (
    ALICE,
    REALM,
    REPLICAS,
    START_MS,
    VERIFIERS,
    Key,
    index_of,
    make_entry,
    nonce_of,
    sign_head,
)
from verifier import encoding, proof_encoding
from verifier import epoch as epoch_law
from verifier.types import Entry, Realm, SignedHead

ZERO = bytes(32)


def tree_root(leaves: dict[bytes, bytes], depth: int = 0) -> bytes:
    """Root of the prefix tree over index -> entry hash, by splitting on the bit at `depth`."""
    if not leaves:
        return ZERO
    if len(leaves) == 1:
        [(index, entry_hash)] = leaves.items()
        return sha256(b"\x02" + index + entry_hash).digest()
    left, right = split(leaves, depth)
    return sha256(b"\x03" + tree_root(left, depth + 1) + tree_root(right, depth + 1)).digest()


def bit(index: bytes, depth: int) -> int:
    return index[depth // 8] >> (7 - depth % 8) & 1


def split(leaves: dict[bytes, bytes], depth: int) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    return (
        {i: h for i, h in leaves.items() if not bit(i, depth)},
        {i: h for i, h in leaves.items() if bit(i, depth)},
    )


def tree_path(
    leaves: dict[bytes, bytes], index: bytes
) -> tuple[tuple[bytes, ...], tuple[bytes, bytes] | None]:
    """Neighbours from depth 1 down, and the leaf at the end of the path."""
    neighbors = []
    depth = 0
    while len(leaves) > 1:
        halves = split(leaves, depth)
        side = bit(index, depth)
        neighbor = tree_root(halves[1 - side], depth + 1)
        neighbors.append(b"" if neighbor == ZERO else neighbor)
        leaves = halves[side]
        depth += 1
    return tuple(neighbors), next(iter(leaves.items()), None)


def log_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + log_root(leaves[:k]) + log_root(leaves[k:])).digest()


def log_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1 << (len(leaves) - 1).bit_length() - 1
    if m < k:
        return [*log_path(m, leaves[:k]), log_root(leaves[k:])]
    return [*log_path(m - k, leaves[k:]), log_root(leaves[:k])]


def log_consistency(m: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [log_root(leaves)]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    if m <= k:
        return [*log_consistency(m, leaves[:k], whole), log_root(leaves[k:])]
    return [*log_consistency(m - k, leaves[k:], False), log_root(leaves[:k])]


@dataclass
class Directory:
    """Epochs of a realm: `put` entries with profiles, `close` an epoch, then ask for proofs at any epoch."""

    realm: Realm = REALM
    interval_ms: int = 1000
    chain: epoch_law.Chain = field(init=False)
    entries: dict[str, tuple[Entry, bytes]] = field(default_factory=dict)
    heads: list[bytes] = field(default_factory=list)
    states: list[dict[str, tuple[Entry, bytes]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chain = epoch_law.genesis_chain(self.realm)

    def put(self, user_id: str, profile: bytes = b"", owner: Key = ALICE) -> Entry:
        """A first or next version, with its profile."""
        previous = self.entries[user_id][0] if user_id in self.entries else None
        version = previous.version + 1 if previous else 0
        entry = make_entry(user_id, version, owner=owner, profile=profile, previous=previous)
        self.entries[user_id] = (entry, profile)
        return entry

    def leaves(self, epoch: int) -> dict[bytes, bytes]:
        return {entry.index: entry.hash for entry, _ in self.states[epoch - 1].values()}

    def close(self, **changes: object) -> bytes:
        """The head of the next epoch; `changes` replace its fields."""
        self.states.append(dict(self.entries))
        fields: dict[str, object] = {
            "root_hash": tree_root(self.leaves(len(self.states))),
            "issue_time_ms": START_MS + len(self.states) * self.interval_ms,
            "history_root": log_root(self.heads),
            "state_digest": sha256(b"digest %d" % len(self.states)).digest(),
        }
        head = epoch_law.compose_head(self.realm, self.chain, **{**fields, **changes})  # type: ignore[arg-type]
        self.heads.append(head)
        self.chain = epoch_law.follow(self.chain, encoding.decode_head(head))
        return head

    def signed(
        self, epoch: int, *, replicas: tuple[Key, ...] = REPLICAS, verifiers: tuple[Key, ...] = VERIFIERS
    ) -> SignedHead:
        return sign_head(self.heads[epoch - 1], replicas, verifiers)

    def lookup(self, user_id: str, epoch: int, signed: SignedHead | None = None, **changes: object) -> bytes:
        """The bytes of a LookupProof; `changes` replace what `encode_lookup_proof` takes."""
        index, index_proof = index_of(user_id, self.realm)
        neighbors, leaf = tree_path(self.leaves(epoch), index)
        fields: dict[str, object] = {
            "user_id": user_id,
            "index": index,
            "index_proof": index_proof,
            "signed_head": (signed or self.signed(epoch)).encoded,
            "neighbors": neighbors,
        }
        if user_id in self.states[epoch - 1]:
            entry, profile = self.states[epoch - 1][user_id]
            fields["entry"] = entry.encoded
            if not entry.revocation:
                fields |= {"profile": profile, "profile_nonce": nonce_of(user_id, entry.version)}
        else:
            fields["existing"] = leaf
        return proof_encoding.encode_lookup_proof(**{**fields, **changes})  # type: ignore[arg-type]

    def consistency(self, old: int, new: int, **changes: object) -> bytes:
        """The bytes of a ConsistencyProof between two epochs."""
        adjacent = new <= old + 1
        fields: dict[str, object] = {
            "old_head": self.signed(old).encoded,
            "new_head": self.signed(new).encoded,
            "inclusion": () if adjacent else tuple(log_path(old - 1, self.heads[: new - 1])),
            "consistency": () if old in (1, new) else tuple(log_consistency(old - 1, self.heads[: new - 1])),
        }
        return proof_encoding.encode_consistency_proof(**{**fields, **changes})  # type: ignore[arg-type]
