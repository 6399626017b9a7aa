"""Is what a stopped verifier keeps what its heads say? Everything is computed anew; differences are data.

A verifier keeps no past updates, so the tables are checked against each other and the heads: the chain of
heads and the replicas' signatures, every page of the prefix tree and every node of the log tree against the
roots in the heads, entries against the leaves both ways, own ratifications against the sign-once register.
What `verifier audit` does from the first step is not repeated here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kv.interface import Reader, StorageError
from kv.keys import EVERYTHING, from_u64, u64
from kv.merge import Row as Pair
from verifier import encoding, policy
from verifier import epoch as epoch_law
from verifier.crypto import hashing, signatures
from verifier.daemon.database import FORMAT, OWNER, VERSION
from verifier.daemon.state import (
    Current,
    RowCorrupt,
    State,
    current_at,
    decode_ratification,
    load_state,
)
from verifier.daemon.tables import VerifierTables as Tables
from verifier.epoch import Chain, genesis_chain
from verifier.errors import Malformed, VerificationError
from verifier.merkle import history, recompute, tree
from verifier.merkle.proof import EMPTY_ROOT
from verifier.signonce import Row
from verifier.types import Realm, SignedHead
from verifier.update import update_message

SCHEMA = "e2eks.verifier-check/1"
REGISTER, STORAGE, UNKNOWN = "sign-once register", "storage", "unknown"
FAULTS_LISTED = 100  # of one table: a damaged disk can spoil millions of rows, and a hundred say as much


@dataclass(frozen=True, slots=True)
class Recorded:
    """The verifier's key and its sign-once register, as it was read; one that could not be read has the
    largest floor and no rows.
    """

    public_key: bytes
    floor: int
    rows: Mapping[int, Row]


@dataclass(slots=True)
class Report:
    """What was found. At most FAULTS_LISTED faults of a table are listed: (table, key or epoch, reason)."""

    epoch: int = 0
    rows: int = 0
    entries: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there was no fault."""
        return not self.counts

    def fault(self, table: str, key: bytes | str, reason: str) -> None:
        """One more."""
        self.counts[table] += 1
        if self.counts[table] <= FAULTS_LISTED:
            self.listed.append((table, key.hex() if isinstance(key, bytes) else key, reason))

    def record(self) -> dict[str, Any]:
        """The report as JSON has it, schema e2eks.verifier-check/1."""
        return {
            "schema": SCHEMA,
            "sound": self.sound,
            "epoch": self.epoch,
            "rows": self.rows,
            "entries": self.entries,
            "faults_found": self.counts.total(),
            "faults": [{"table": table, "key": key, "reason": why} for table, key, why in self.listed],
        }


def check(reader: Reader, realm: Realm, recorded: Recorded) -> Report:
    """Check the database of a verifier of `realm`. A failing disk is a fault, too."""
    report = Report()
    try:
        _Check(reader, realm, recorded, report).run()
    except StorageError as error:
        report.fault(STORAGE, "", str(error))
    return report


class _Check:
    def __init__(self, reader: Reader, realm: Realm, recorded: Recorded, report: Report) -> None:
        self._reader = reader
        self._realm = realm
        self._recorded = recorded
        self._report = report
        self._heads: list[SignedHead] = []
        self._versions: list[int] = [0]  # epoch -> version of its root page

    def run(self) -> None:
        self._every_row()
        pages = recompute.recompute(self._reader, Tables.TREE.prefix)
        for key, why in pages.faults:
            self._report.fault(Tables.TREE.name, key, why)
        chain = self._follow_heads(pages)
        self._report.epoch = chain.epoch
        self._expect(Tables.HISTORY.span(), self._history(), "the heads")
        changes = {
            Tables.POLICY_HEADS.key(u64(head.head.epoch)): head.encoded
            for head in self._heads
            if head.head.next_epoch_policy is not None
        }
        self._expect(Tables.POLICY_HEADS.span(), changes, "the heads that change the replicas' policy")
        pending = self._entries(pages)
        self._expect(Tables.PENDING.span(), pending, "the entries that no head covers yet")
        self._state(chain, len(pages.entry_hashes), len(pending), max(pages.roots, default=0))
        self._ratifications()
        self._register()

    # Rows at large

    def _every_row(self) -> None:
        for key, _ in self._reader.scan(*EVERYTHING):
            self._report.rows += 1
            try:
                table = Tables.table_of(key)
            except ValueError:
                self._report.fault(UNKNOWN, key, "no table has this key")
                continue
            if table == Tables.STATE and key != Tables.STATE.key():
                self._report.fault(table.name, key, "no verifier writes this row")
        owner = self._realm.hash + hashing.key_id(self._recorded.public_key)
        named = {OWNER: owner, VERSION: FORMAT} if self._report.rows else {}
        self._expect(Tables.META.span(), named, "realm, key and version")

    def _expect(self, span: tuple[bytes, bytes], expected: Mapping[bytes, bytes], source: str) -> None:
        """Compare a table with what its rows must be, both ways."""
        name, left = Tables.table_of(span[0]).name, dict(expected)
        for key, row in self._reader.scan(*span):
            wanted = left.pop(key, None)
            if wanted is None:
                self._report.fault(name, key, f"the row does not follow from {source}")
            elif wanted != row:
                self._report.fault(name, key, f"the row differs from what follows from {source}")
        for key in sorted(left):
            self._report.fault(name, key, f"the row is missing: it follows from {source}")

    # Heads

    def _follow_heads(self, pages: recompute.Pages) -> Chain:
        chain, frontier = genesis_chain(self._realm), history.Frontier()
        for key, row in self._reader.scan(*Tables.HEADS.span()):
            epoch = chain.epoch + 1
            try:
                head = encoding.decode_signed_head(row)
            except Malformed as error:
                self._report.fault(Tables.HEADS.name, key, f"the row does not decode: {error.what}")
                break
            if key != Tables.HEADS.key(u64(epoch)) or head.head.epoch != epoch:
                self._report.fault(
                    Tables.HEADS.name, key, f"head {epoch} is missing, or another in its place"
                )
                break
            version = epoch if epoch in pages.roots else self._versions[-1]
            self._versions.append(version)
            root = pages.roots[version] if version else EMPTY_ROOT
            self._head(key, chain, head, root, frontier.root())
            chain, frontier = epoch_law.follow(chain, head.head), frontier.append(head.head.encoded)
            self._heads.append(head)
        for version in sorted(version for version in pages.roots if version > chain.epoch):
            what = f"there is a root page of epoch {version}, the heads end at {chain.epoch}"
            self._report.fault(Tables.TREE.name, str(version), what)
        return chain

    def _head(self, key: bytes, chain: Chain, head: SignedHead, root: bytes, history_root: bytes) -> None:
        try:
            epoch_law.check_majority(chain.policy, head)
            epoch_law.check_head(self._realm, chain, head.head, root_hash=root, history_root=history_root)
        except VerificationError as error:
            self._report.fault(Tables.HEADS.name, key, str(error))
            return
        change = head.head.next_epoch_policy
        replicas = {**chain.policy.keys, **(change.keys if change else {})}
        verifiers = {verifier.key_id: verifier.public_key for verifier in self._realm.verifiers}
        made = {one.key_id for ratified in head.ratifications for one in ratified.signatures}
        valid = epoch_law.signers(head, replicas, verifiers, made)
        if made - valid.replicas - valid.verifiers.keys():
            self._report.fault(Tables.HEADS.name, key, "it carries a signature that does not verify")

    def _history(self) -> dict[bytes, bytes]:
        rows = _Rows()
        for size, head in enumerate(self._heads):
            rows.data |= history.append(rows, Tables.HISTORY.prefix, size, head.head.encoded)
        return rows.data

    # Entries

    def _entries(self, pages: recompute.Pages) -> dict[bytes, bytes]:
        """Compare entries with the newest tree; the rows that PENDING must have."""
        newest = self._versions[-1]
        leaves = dict(tree.leaves(self._reader, Tables.TREE.prefix, newest)) if not pages.faults else {}
        pending: dict[bytes, bytes] = {}
        for key, _ in self._reader.scan(*Tables.ENTRIES.span()):
            self._report.entries += 1
            index = Tables.ENTRIES.suffix(key)
            leaf = leaves.pop(index, None)
            current = self._current(key, index)
            if current is None:
                continue
            entry_hash = current.update.entry.hash
            if current.epoch == len(self._heads) + 1:
                pending[Tables.PENDING.key(index)] = entry_hash
            elif not pages.faults and leaf != entry_hash:
                self._report.fault(Tables.ENTRIES.name, key, "the newest tree has another leaf, or none")
            elif not pages.faults and not self._began(index, entry_hash, current.epoch):
                self._report.fault(Tables.ENTRIES.name, key, f"it did not become current in {current.epoch}")
        for index in sorted(leaves):
            key = Tables.ENTRIES.key(index)
            self._report.fault(Tables.ENTRIES.name, key, "the tree has a leaf here, the entry is missing")
        return pending

    def _current(self, key: bytes, index: bytes) -> Current | None:
        try:
            current = current_at(self._reader, index)
        except RowCorrupt as error:
            self._report.fault(Tables.ENTRIES.name, key, str(error))
            return None
        if current is None or current.update.entry.index != index:
            self._report.fault(Tables.ENTRIES.name, key, "the entry is of another index")
            return None
        entry = current.update.entry
        law = entry.update_policy
        if law is not None:  # who may revoke stands in the entry before, which is not kept
            message = update_message(self._realm.hash, entry.encoded)
            signers, _ = policy.valid_signers(law.keys, message, current.update.signatures)
            if not policy.satisfied(law.quorum, signers):
                what = "the signatures do not satisfy the entry's own policy"
                self._report.fault(Tables.ENTRIES.name, key, what)
        return current

    def _began(self, index: bytes, entry_hash: bytes, epoch: int) -> bool:
        """Whether the tree of `epoch` is the first with this leaf."""
        if not 1 <= epoch < len(self._versions):
            return False
        prefix, before, then = Tables.TREE.prefix, self._versions[epoch - 1], self._versions[epoch]
        leaf = index, entry_hash
        return (
            tree.lookup(self._reader, prefix, then, index).leaf == leaf
            and tree.lookup(self._reader, prefix, before, index).leaf != leaf
        )

    # Where the verifier stands

    def _state(self, chain: Chain, published: int, pending: int, root_version: int) -> None:
        key = Tables.STATE.key()
        try:
            state = load_state(self._reader, self._realm)
        except RowCorrupt as error:
            self._report.fault(Tables.STATE.name, key, str(error))
            return
        steps = len(self._heads) + published + pending
        expected = State(steps + 1, chain, root_version, pending)
        for name in ("next_index", "root_version", "pending_updates"):
            if getattr(state, name) != getattr(expected, name):
                self._report.fault(Tables.STATE.name, key, f"{name} does not follow from the other tables")
        if state.chain != chain:
            self._report.fault(Tables.STATE.name, key, "it stands at another head than the newest")

    # What was signed

    def _ratifications(self) -> None:
        owed = {from_u64(Tables.OUTBOX.suffix(key)) for key, _ in self._epoch_rows(Tables.OUTBOX.span())}
        made: set[int] = set()
        for key, row in self._epoch_rows(Tables.RATIFICATIONS.span()):
            epoch = from_u64(Tables.RATIFICATIONS.suffix(key))
            made.add(epoch)
            why = self._ratification(epoch, row)
            if why:
                self._report.fault(Tables.RATIFICATIONS.name, key, why)
        for key, row in self._reader.scan(*Tables.OUTBOX.span()):
            if row:
                self._report.fault(Tables.OUTBOX.name, key, "a row of this table is empty")
        for epoch in range(self._recorded.floor + 1, len(self._heads) + 1):
            if epoch not in made and epoch not in owed:
                key = Tables.OUTBOX.key(u64(epoch))
                self._report.fault(Tables.OUTBOX.name, key, "the epoch is neither ratified nor owed")

    def _epoch_rows(self, span: tuple[bytes, bytes]) -> Iterator[Pair]:
        """Rows of a table by epoch, those of epochs that were replayed."""
        table = Tables.table_of(span[0])
        for key, row in self._reader.scan(*span):
            if len(key) != 9 or not 1 <= from_u64(table.suffix(key)) <= len(self._heads):
                self._report.fault(table.name, key, "there is no head of this epoch")
            else:
                yield key, row

    def _ratification(self, epoch: int, row: bytes) -> str:
        """What is wrong with a stored ratification, or ""."""
        try:
            made = decode_ratification(row)
        except RowCorrupt as error:
            return str(error)
        if len(made.signatures) != 1:
            return "it is not one signature"
        (signature,) = made.signatures
        if signature.key_id != hashing.key_id(self._recorded.public_key):
            return "" if epoch <= self._recorded.floor else "it is by another key than this verifier's"
        message = epoch_law.verifier_message(self._heads[epoch - 1].head.encoded, made.timestamp_ms)
        if not signatures.verify(self._recorded.public_key, message, signature.signature):
            return "its signature does not verify"
        known = self._recorded.rows.get(epoch)
        if known is None:
            return "" if epoch <= self._recorded.floor else "the sign-once register does not know it"
        if (known.timestamp_ms, known.signature) != (made.timestamp_ms, signature.signature):
            return "the sign-once register holds another one"
        return ""

    def _register(self) -> None:
        for epoch, row in sorted(self._recorded.rows.items()):
            head = self._heads[epoch - 1].head if 1 <= epoch <= len(self._heads) else None
            if head is None:
                what = f"it was signed, but the database ends at epoch {len(self._heads)}: its tail is lost"
                self._report.fault(REGISTER, str(epoch), what)
            elif head.hash != row.head_hash:
                self._report.fault(REGISTER, str(epoch), "another head was signed than the one replayed")
            elif not self._is_own(row, head.encoded):
                self._report.fault(REGISTER, str(epoch), "the signature does not verify")

    def _is_own(self, row: Row, head: bytes) -> bool:
        message = epoch_law.verifier_message(head, row.timestamp_ms)
        return signatures.verify(self._recorded.public_key, message, row.signature)


class _Rows:
    """What `history.append` reads: the rows it made before."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(
        self, start: bytes, stop: bytes, *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[Pair]:
        keys = sorted((key for key in self.data if start <= key < stop), reverse=reverse)
        return iter([(key, self.data[key]) for key in keys[:limit]])
