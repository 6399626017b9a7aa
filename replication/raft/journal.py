"""The log of a member on its disk: what is staged during a turn becomes durable with one synced batch.

`append` is Raft's rule for followers (§5.3, rules 3 and 4 of figure 2): an entry that is there already is
left alone, with everything behind it; only one that contradicts removes what is there, and nothing that is
committed is ever removed. Stock pysyncobj deletes the tail first, and so forgets what it has acknowledged.

One thread at a time changes a journal. Memory is bounded, however long the log: the newest entries are kept
for followers that keep up, the rest is read from the disk.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress

from kv.interface import StorageError, Store
from kv.keys import u64
from replication.chain import next_link
from replication.raft.messages import EACH_BYTES, NO_OP, Entry
from replication.raft.rows import (
    Places,
    RaftTables,
    check_rows,
    decode_row,
    encode_row,
    entry_key,
    open_log,
    read_row,
    read_rows,
    vote_row,
)
from replication.rows import PublicPart
from replication.types import PAYLOAD_BYTES_MAX, LogEntry, PayloadTooLarge, PublicPartChanged

# The newest entries, for followers and iterators that keep up.
CACHE_BYTES = 8 * 1024 * 1024
CACHE_ENTRY_BYTES = 200  # what an entry weighs in memory besides its command


class JournalConflict(StorageError):
    """What the members of the cluster say cannot all be true: a committed entry would be replaced, a vote
    changed, a term go back. This member stops."""


class Journal:
    """The durable log of one member; opening blocks on the disk and raises StorageError for damage.

    The attributes last_application and committed_to, read() and verify_chain() may be used by any thread
    while another one is in a turn. Takes over the store.
    """

    def __init__(
        self, store: Store, public_part: PublicPart, *, where: str = "the log", cache_bytes: int = CACHE_BYTES
    ) -> None:
        """`where` names the log in errors."""
        self._store = store
        self._public_part = public_part
        try:
            opened = open_log(store, public_part)
        except StorageError as error:
            raise StorageError(f"{where}: {error}") from error
        self.last = opened.last  # Raft's index of the newest entry, durable or not
        self.term = opened.term
        self.vote = opened.vote
        self.commit = opened.commit  # Raft's index, durable or not
        self._link = opened.link  # of the newest entry
        self._application = opened.places.application(opened.last)
        self._places = opened.places  # replaced, never changed: other threads read it
        self._staged: dict[bytes, bytes | None] = {}
        self._durable = opened.last  # entries up to here are as they are on the disk
        self._stored = opened.last  # rows up to here may be on the disk
        self._commit_row = opened.commit
        self.commit_is_due = False  # stage_commit() should be called in a turn that waits for the disk
        # All entries from _cached_from on, those that are not durable included.
        self._cache: dict[int, Entry] = {}
        self._cached_from = opened.last + 1
        self._cached_bytes = 0
        self._cache_bytes_max = cache_bytes
        self.last_application = 0  # newest application index that is durable here, committed or not
        self.committed_to = 0  # newest application index that is known to be committed, and durable here
        self._publish()

    # What a turn reads and stages.

    def term_at(self, index: int) -> int:
        """Return the term of the entry with Raft's `index`, which exists. Raises StorageError."""
        return self.entry(index)[2]

    def entry(self, index: int) -> Entry:
        """Return the entry with Raft's `index`, which exists. Raises StorageError."""
        entry = self._cache.get(index)
        if entry is None:
            row = read_row(self._store, index)
            entry = (row.command, index, row.term)
        return entry

    def batch(self, lo: int, entries_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """Return entries from Raft's index `lo` on, within the limits, at least one if there is any."""
        batch: list[Entry] = []
        size = 0
        for entry in self._entries(lo, min(lo + entries_max, self.last + 1)):
            size += len(entry[0]) + EACH_BYTES
            if batch and size > bytes_max:
                break
            batch.append(entry)
        return tuple(batch)

    def append(self, command: bytes, index: int, term: int) -> None:
        """Stage an entry, unless it is there. Raises JournalConflict, StorageError."""
        if index <= self.last:
            if self.term_at(index) == term:
                return
            self._truncate(index)
        if index != self.last + 1 or term > self.term:
            raise JournalConflict(f"Raft entry {index} of term {term} cannot follow entry {self.last}")
        if command == NO_OP:
            self._places = Places((*self._places.no_ops, index))
            self._staged[RaftTables.NO_OPS.key(u64(index))] = b""
        else:
            self._application += 1
            self._link = next_link(self._link, self._application, self._public_part(command[1:]))
        self._staged[entry_key(index)] = encode_row(term, self._application, self._link, command)
        self.last = index
        self._cache[index] = (command, index, term)
        self._cached_bytes += len(command) + CACHE_ENTRY_BYTES

    def set_vote(self, term: int, vote: str | None) -> None:
        """Stage the term and the member voted for in it. Raises JournalConflict."""
        if term < self.term or (term == self.term and self.vote not in (None, vote)):
            raise JournalConflict(f"the vote of term {self.term} is given")
        self.term, self.vote = term, vote
        self._staged[RaftTables.VOTE.key()] = vote_row(term, vote)

    def set_commit(self, index: int) -> None:
        """Say that entries up to Raft's `index` are committed. Durable with the next batch, whenever.

        It need not be durable: it is learned again from the next leader.
        """
        if not self.commit <= index <= self.last:
            raise JournalConflict(f"{index} is committed, but the log has {self.commit} to {self.last}")
        self.commit = index

    def know_committed(self, application: int) -> None:
        """Say that entries up to an application index are committed, because they were applied here.

        The row of the commit index may lag behind that. Raises StorageError when the log ends before.
        """
        if application > self.last_application:
            raise StorageError(
                f"entry {application} was applied, but the log ends at {self.last_application}"
            )
        if application > self.committed_to:
            self.set_commit(self._places.raft(application))
            self._publish()

    @property
    def staged(self) -> bool:
        """Whether there is anything that the next sync() would make durable."""
        return bool(self._staged)

    def want_commit(self) -> None:
        """Say that how far entries are committed should be written soon, even if there is nothing else."""
        self.commit_is_due = self.commit != self._commit_row

    def stage_commit(self) -> None:
        """Let the next sync() write how far entries are committed, even if there is nothing else."""
        self.commit_is_due = False
        if self.commit != self._commit_row:
            self._staged[RaftTables.COMMIT.key()] = u64(self.commit)

    def is_in_memory(self, index: int) -> bool:
        """Tell whether the entries from Raft's `index` on are read without the disk."""
        return index >= self._cached_from

    def sync(self) -> None:
        """Make durable what is staged, in one batch. Blocks on the disk. Raises StorageError."""
        if self._staged:
            self.stage_commit()
            self._store.write(self._staged)
            self._staged = {}
            self._durable = self._stored = self.last
            self._commit_row = self.commit
            self._trim_cache()
        self._publish()

    def application(self, index: int) -> int:
        """Return the index that the application entries up to Raft's `index` end with."""
        return self._places.application(index)

    # What others read, and may rewrite.

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        """As ReplicatedLog.read. Any thread."""
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        hi = min(hi, self.committed_to + 1)
        places = self._places  # read AFTER committed_to: it then knows every no-op below
        if lo >= hi:
            return ()
        entries: list[LogEntry] = []
        size = 0
        for command, _, _ in self._entries(places.raft(lo), places.raft(hi - 1) + 1):
            if command == NO_OP:
                continue
            size += len(command) - 1
            if entries and size > max_bytes:
                break
            entries.append(LogEntry(lo + len(entries), command[1:]))
        return tuple(entries)

    def verify_chain(self, lo: int, hi: int) -> None:
        """As ReplicatedLog.verify_chain. Any thread."""
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        hi = min(hi, self.committed_to + 1)
        if lo < hi:
            check_rows(self._store, self._public_part, self._places.raft(lo), self._places.raft(hi - 1) + 1)

    def rewrite_private(self, index: int, payload: bytes) -> None:
        """As ReplicatedLog.rewrite_private. Between turns only."""
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise PayloadTooLarge(f"a payload has at most {PAYLOAD_BYTES_MAX} bytes")
        if not 1 <= index <= self.committed_to:
            raise ValueError(f"the log has no entry {index}")
        place = self._places.raft(index)
        row = read_row(self._store, place)
        if self._public_part(row.command[1:]) != self._public_part(payload):
            raise PublicPartChanged(f"the public part of entry {index} would change")
        command = row.command[:1] + payload
        self._store.write({entry_key(place): encode_row(row.term, row.application, row.link, command)})
        if place in self._cache:
            self._cached_bytes += len(command) - len(row.command)
            self._cache[place] = (command, place, row.term)

    def compact(self, indices: Collection[int]) -> bool:
        """As ReplicatedLog.compact. Any thread, but not while these entries are rewritten."""
        return self._store.compact([entry_key(self._places.raft(index)) for index in indices])

    def close(self) -> None:
        """Close the store. Idempotent. How far entries are committed is written, if nothing else waits."""
        if not self._staged and self.commit != self._commit_row:
            with suppress(StorageError):  # it may be closed or have failed; and it need not be durable
                self._store.write({RaftTables.COMMIT.key(): u64(self.commit)})
                self._commit_row = self.commit
        self._store.close()

    def _entries(self, lo: int, hi: int) -> Iterator[Entry]:
        """Iterate over the entries lo <= index < hi, which exist; from memory as far as possible."""
        index = lo
        while index < hi:
            entry = self._cache.get(index)
            if entry is None:
                # Only up to where memory begins: what follows may not be on the disk yet.
                stop = min(hi, max(index + 1, self._cached_from))
                yield from (
                    (row.command, place, row.term) for place, row in read_rows(self._store, index, stop)
                )
                index = stop
            else:
                yield entry
                index += 1

    def _truncate(self, index: int) -> None:
        """Stage the removal of all entries from Raft's `index` on."""
        if index <= self.commit:
            raise JournalConflict(f"a leader contradicts Raft entry {index}, which is committed")
        for gone in range(index, self.last + 1):
            key = entry_key(gone)
            if gone <= self._stored:
                self._staged[key] = None
            else:
                self._staged.pop(key, None)
            entry = self._cache.pop(gone, None)
            if entry is not None:
                self._cached_bytes -= len(entry[0]) + CACHE_ENTRY_BYTES
        for gone in [place for place in self._places.no_ops if place >= index]:
            self._staged[RaftTables.NO_OPS.key(u64(gone))] = None
        self._places = Places(tuple(place for place in self._places.no_ops if place < index))
        self.last = index - 1
        self._durable = min(self._durable, self.last)
        self._cached_from = min(self._cached_from, index)
        self._link = self._link_at(self.last)
        self._application = self._places.application(self.last)

    def _link_at(self, index: int) -> bytes:
        staged = self._staged.get(entry_key(index))
        row = read_row(self._store, index) if staged is None else decode_row(index, staged)
        return row.link

    def _trim_cache(self) -> None:
        while self._cached_bytes > self._cache_bytes_max and self._cached_from <= self._durable:
            command, _, _ = self._cache.pop(self._cached_from)
            self._cached_bytes -= len(command) + CACHE_ENTRY_BYTES
            self._cached_from += 1

    def _publish(self) -> None:
        self.last_application = self._places.application(self._durable)
        self.committed_to = self._places.application(min(self.commit, self._durable))
