"""The tables of a verifier's database. A verifier is not replicated: all rows are its own."""

from kv.tables import Kind, Table, TableSet


class VerifierTables(TableSet):
    """What a verifier keeps to replay the next step, to answer its peers and to prove what it saw."""

    META = Table(b"m", Kind.LOCAL)  # "owner" -> realm hash, key id; "version" -> of these tables
    STATE = Table(b"s", Kind.LOCAL)  # one VerifierState
    ENTRIES = Table(b"e", Kind.LOCAL)  # index -> EntryRow: the newest update of the index and its epoch
    PENDING = Table(b"p", Kind.LOCAL)  # index -> entry hash: accepted, waiting for the next head
    HEADS = Table(b"h", Kind.LOCAL)  # epoch -> SignedEpochHead as received
    POLICY_HEADS = Table(b"c", Kind.LOCAL)  # epoch -> SignedEpochHead that changed the replicas' policy
    RATIFICATIONS = Table(b"r", Kind.LOCAL)  # epoch -> Ratification by this verifier
    OUTBOX = Table(b"o", Kind.LOCAL)  # epoch -> nothing: a ratification owed until it is acknowledged
    TREE = Table(b"t", Kind.LOCAL)  # pages of the prefix tree
    HISTORY = Table(b"l", Kind.LOCAL)  # nodes of the log tree over the heads
