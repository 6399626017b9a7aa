"""Every table of a replica's store, one line each. Prefixes are unique and kinds are fixed by construction.

Replicated rows are equal on every replica at one log index and part of the state digest. Private rows come
from the private parts of commands and may be blanked. Local rows are this replica's own, or derived.
Numbers in keys are u64be. No key holds what may have to be erased: stores copy keys to where only they reach.
"""

from kv.tables import Kind, Table, TableSet


class Tables(TableSet):
    """Key parts -> value."""

    STATE = Table(b"s", Kind.REPLICATED)  # () -> MachineState
    CURRENT = Table(b"c", Kind.REPLICATED)  # index -> EntryRow, the last accepted entry
    PAST = Table(b"o", Kind.REPLICATED)  # index, epoch -> EntryRow, replaced since
    PENDING = Table(b"u", Kind.REPLICATED)  # index -> entry hash, accepted since the newest delimiter
    PARKED = Table(
        b"w", Kind.REPLICATED
    )  # number -> SignedEntryUpdate, until the newest head has its majority
    HEADS = Table(b"h", Kind.REPLICATED)  # epoch -> HeadRow
    REPLICA_SIGNATURES = Table(b"r", Kind.REPLICATED)  # epoch, key id -> 64-byte signature over the head
    RATIFICATIONS = Table(b"v", Kind.REPLICATED)  # epoch, key id -> Ratification by a verifier
    VERIFIER_LOG = Table(b"l", Kind.REPLICATED)  # index -> VerifierStep
    PROOF_IDS = Table(b"i", Kind.REPLICATED)  # proof id -> epoch of the registration that used it
    QUOTAS = Table(b"q", Kind.REPLICATED)  # index -> QuotaRow
    CLOCKS = Table(b"t", Kind.REPLICATED)  # replica's key id -> largest time it signed into the log
    VERIFIERS = Table(b"k", Kind.REPLICATED)  # key id -> VerifierRow
    ERASED = Table(b"e", Kind.REPLICATED)  # index -> hash of the entry that was current when it was erased
    ANNOUNCED = Table(b"a", Kind.REPLICATED)  # replica's key id -> newest rules level it announced
    POLICY_HEADS = Table(b"p", Kind.REPLICATED)  # epoch -> AuthorizationPolicy that its head introduced

    PROFILES = Table(b"P", Kind.PRIVATE)  # index, epoch -> PrivateRow
    VRF_CACHE = Table(b"V", Kind.PRIVATE)  # hash of a user id -> index, VRF proof

    APPLIED = Table(b"A", Kind.LOCAL)  # () -> Applied
    BLANKING = Table(b"B", Kind.LOCAL)  # log index, part (2 bytes) -> BlankingRow: to be blanked in the log
    TREE = Table(b"T", Kind.LOCAL)  # pages of the prefix tree: verifier.merkle.tree
    HISTORY = Table(b"H", Kind.LOCAL)  # nodes of the log tree over heads: verifier.merkle.history
