"""What services read: heads with their signatures, entries of any epoch, proof parts, the verifier log.

Every function takes a Reader, so that one snapshot answers one request. Damaged or contradicting rows are
Halt; the reader's StorageError passes through.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from e2eks.v1 import state_pb2 as pb

from keyserver.machine.codes import Halt, invariant
from keyserver.machine.rows import (
    decode_entry_row,
    decode_own_head,
    decode_own_policy,
    decode_ratification,
    known_head_row,
    parse_row,
)
from keyserver.machine.tables import Tables
from kv.interface import Reader
from kv.keys import from_u64, u64
from verifier import encoding, limits
from verifier.errors import Reason, Refused
from verifier.merkle import history, tree
from verifier.types import (
    AuthorizationPolicy,
    EpochHead,
    Ratification,
    Realm,
    Signature,
    SignedUpdate,
)

KEY_ID_BYTES = limits.HASH_BYTES
RATIFICATIONS_SEARCHED = 10_000  # rows of the newest epochs: with 64 verifiers more than 150 of them
STEP_FRAME_BYTES = 5  # tag and length of one step in a VerifierSteps message


# Heads


def head_at(reader: Reader, epoch: int) -> EpochHead:
    """The head of a composed epoch; ask only for 1..state.epoch. Raises Halt when it is missing."""
    return decode_own_head(known_head_row(reader, epoch))


def signed_head(reader: Reader, epoch: int, wanted: Collection[bytes] | None = None) -> bytes:
    """The encoded SignedEpochHead of a composed epoch with the stored signatures, of key ids in `wanted` if
    given.

    Replicas come first, in one ratification at the issue time, then verifiers; each sorted by key id, 64 at
    most.
    """
    head = head_at(reader, epoch)
    replicas = [
        Signature(key_id, row)
        for key_id, row in _rows_of_epoch(reader, Tables.REPLICA_SIGNATURES.span(u64(epoch)))
        if wanted is None or key_id in wanted
    ][: limits.RATIFICATIONS_PER_HEAD]
    made = [Ratification(head.issue_time_ms, tuple(replicas))] if replicas else []
    verifiers = [
        decode_ratification(row)
        for key_id, row in _rows_of_epoch(reader, Tables.RATIFICATIONS.span(u64(epoch)))
        if wanted is None or key_id in wanted
    ]
    made += verifiers[: limits.RATIFICATIONS_PER_HEAD - len(replicas)]
    return encoding.encode_signed_head(head.encoded, made)


def replica_signers(reader: Reader, epoch: int) -> frozenset[bytes]:
    """Key ids of the replicas whose signature on the head is stored."""
    rows = _rows_of_epoch(reader, Tables.REPLICA_SIGNATURES.span(u64(epoch)))
    return frozenset(key_id for key_id, _ in rows)


def signers_at(reader: Reader, epoch: int) -> frozenset[bytes]:
    """Key ids of replicas and verifiers whose signature on the head is stored."""
    rows = _rows_of_epoch(reader, Tables.RATIFICATIONS.span(u64(epoch)))
    return replica_signers(reader, epoch).union(key_id for key_id, _ in rows)


def newest_ratified(reader: Reader, key_id: bytes) -> int:
    """The newest epoch with a stored ratification by this verifier; 0 if the newest rows have none."""
    start, stop = Tables.RATIFICATIONS.span()
    for key, _ in reader.scan(start, stop, reverse=True, limit=RATIFICATIONS_SEARCHED):
        epoch = Tables.RATIFICATIONS.suffix(key)[:-KEY_ID_BYTES]
        if key.endswith(key_id):
            return from_u64(epoch)
    return 0


def policy_heads(reader: Reader, from_epoch: int) -> Iterator[bytes]:
    """Encoded SignedEpochHeads, from `from_epoch` on, that changed the replicas' policy; each is read when it
    is asked for.
    """
    start, stop = Tables.POLICY_HEADS.span()
    start = max(start, Tables.POLICY_HEADS.key(u64(from_epoch)))
    epochs = [from_u64(Tables.POLICY_HEADS.suffix(key)) for key, _ in reader.scan(start, stop)]
    for epoch in epochs:
        yield signed_head(reader, epoch)


def policies(reader: Reader, genesis: AuthorizationPolicy) -> tuple[tuple[int, AuthorizationPolicy], ...]:
    """Every policy the replicas had, with the first epoch it holds for: genesis first."""
    rows = reader.scan(*Tables.POLICY_HEADS.span())
    changes = ((from_u64(Tables.POLICY_HEADS.suffix(key)) + 1, decode_own_policy(row)) for key, row in rows)
    return ((1, genesis), *changes)


def policy_base(reader: Reader, realm: Realm) -> bytes:
    """What a change of the present replicas must name: the hash of the head that introduced their policy."""
    start, stop = Tables.POLICY_HEADS.span()
    for key, _ in reader.scan(start, stop, reverse=True, limit=1):
        return head_at(reader, from_u64(Tables.POLICY_HEADS.suffix(key))).hash
    return realm.hash


def consistency_parts(reader: Reader, old: int, new: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """(inclusion, consistency) of a ConsistencyProof from head `old` to head `new`, both composed.

    Same epoch: both empty. Next epoch: previous_head_hash takes the place of inclusion. Raises Refused
    (NO_SUCH_EPOCH) unless 1 <= old <= new.
    """
    if not 1 <= old <= new:
        raise Refused(Reason.NO_SUCH_EPOCH, "a consistency proof leads from an epoch to a later one")
    if old == new:
        return (), ()
    prefix = Tables.HISTORY.prefix
    consistency = history.consistency(reader, prefix, old - 1, new - 1)
    if new == old + 1:
        return (), consistency
    return history.inclusion(reader, prefix, old - 1, new - 1), consistency


def _rows_of_epoch(reader: Reader, span: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """(key id, row) in the order of key ids."""
    return [(key[-KEY_ID_BYTES:], row) for key, row in reader.scan(*span)]


# Entries


@dataclass(frozen=True, slots=True)
class EntryAt:
    """An accepted entry and the first epoch that contains it."""

    since_epoch: int
    update: SignedUpdate


def entry_at(reader: Reader, index: bytes, epoch: int) -> EntryAt | None:
    """The entry of `index` in the tree of `epoch`, or None if it had none then. Raises Halt."""
    row = reader.get(Tables.CURRENT.key(index))
    if row is None:
        return None
    since, update = decode_entry_row(row)
    if since <= epoch:
        return EntryAt(since, update)
    start, stop = Tables.PAST.key(index), Tables.PAST.key(index, u64(epoch + 1))
    for _, past in reader.scan(start, stop, reverse=True, limit=1):
        return EntryAt(*decode_entry_row(past))
    return None


def current_entry(reader: Reader, index: bytes) -> EntryAt | None:
    """The last accepted entry of `index`, published or not. Raises Halt."""
    row = reader.get(Tables.CURRENT.key(index))
    return None if row is None else EntryAt(*decode_entry_row(row))


def is_pending(reader: Reader, index: bytes) -> bool:
    """Whether an update of `index` was accepted since the newest delimiter."""
    return reader.get(Tables.PENDING.key(index)) is not None


def private_at(reader: Reader, index: bytes, since_epoch: int) -> pb.PrivateRow | None:
    """User id, profile and nonce of the entry accepted for `since_epoch`; None if never given or erased."""
    row = reader.get(Tables.PROFILES.key(index, u64(since_epoch)))
    return None if row is None else parse_row(pb.PrivateRow, row)


@dataclass(frozen=True, slots=True)
class LookupParts:
    """What a LookupProof of (index, epoch) holds besides VRF proof and head. Empty `entry`: absent."""

    neighbors: tuple[bytes, ...]
    existing: tuple[bytes, bytes] | None
    entry: bytes
    profile: bytes
    nonce: bytes


def lookup_parts(
    reader: Reader, index: bytes, epoch: int, cache: tree.PageCache | None = None
) -> LookupParts:
    """The parts of a proof in a composed epoch; `cache` holds pages of written epochs only.

    Raises Halt when tree and tables contradict each other.
    """
    root_version = known_head_row(reader, epoch).root_version
    path = tree.lookup(reader, Tables.TREE.prefix, root_version, index, cache)
    found = entry_at(reader, index, epoch)
    if path.leaf is None or path.leaf[0] != index:
        invariant(found is None, "what the tables hold stands in the tree")
        return LookupParts(path.neighbors, path.leaf, b"", b"", b"")
    if found is None or found.update.entry.hash != path.leaf[1]:
        raise Halt("broken invariant: what the tree holds stands in the tables")
    private = private_at(reader, index, found.since_epoch)
    profile, nonce = (private.profile, private.nonce) if private is not None else (b"", b"")
    return LookupParts(path.neighbors, None, found.update.entry.encoded, profile, nonce)


# The verifier log


def verifier_steps(reader: Reader, start: int, max_bytes: int, max_steps: int) -> list[bytes]:
    """Encoded VerifierSteps from index `start` on: at least one if there is any, then as many as the limits
    allow.
    """
    _, stop = Tables.VERIFIER_LOG.span()
    steps: list[bytes] = []
    size = 0
    rows = reader.scan(Tables.VERIFIER_LOG.key(u64(max(start, 1))), stop, limit=max_steps)
    for _, step in rows:
        size += len(step) + STEP_FRAME_BYTES
        if steps and size > max_bytes:
            break
        steps.append(step)
    return steps


def verifiers(reader: Reader) -> dict[bytes, pb.VerifierRow]:
    """Every verifier some replica approved, by key id, listed or not."""
    rows = reader.scan(*Tables.VERIFIERS.span())
    return {Tables.VERIFIERS.suffix(key): parse_row(pb.VerifierRow, row) for key, row in rows}
