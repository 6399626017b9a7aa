"""What a replicated log promises: every replica sees the same payloads in the same order.

Guarantees
* Order: committed entries are numbered 1, 2, 3 … without gaps, equal on all replicas and for ever.
* Durability: what committed() has handed out is still there after any crash, and is handed out again to
  whoever starts from an earlier index.
* A propose() that returns has its payload committed. One that raises or is cancelled may still be committed,
  once, now or later: proposers repeat themselves with payloads that may safely be committed twice.
* Storage: any failed read or write raises StorageError, from then on out of every call. The process must
  halt (see kv.interface).

Not guaranteed: when a payload is committed, nor in which order relative to proposals that were under way at
the same time; nor that committed() or read() of this replica has it already. leader_hint() is only a hint.

An engine is constructed with `public_part`, a total function from a payload to the part of it that decides.
Its hash chain is over public parts alone, so that private parts can be blanked later.
"""

from collections.abc import AsyncIterator, Collection
from typing import Protocol

from replication.types import LogEntry, LogStatus


class ReplicatedLog(Protocol):
    """One replica's end of the log. All async methods run under trio, from the thread that started it."""

    async def start(self, lo: int) -> None:
        """Begin; committed() will start at index `lo` >= 1. Called once.

        Raises StorageError when the log ends before lo - 1: entries that were applied have been lost;
        LogNotRunning the second time, ValueError for lo < 1.
        """
        ...

    async def propose(self, payload: bytes) -> None:
        """Ask for `payload` to be committed; return when it is: durably, by a majority of a cluster.

        Raises PayloadTooLarge, LogOverloaded, LogNotRunning, NoLeader, ProposalLost (it may be committed or
        not), StorageError.
        """
        ...

    def committed(self) -> AsyncIterator[tuple[LogEntry, ...]]:
        """Return an iterator over non-empty runs of consecutive entries, from `lo` of start() on, for ever.

        A run has at most RUN_ENTRIES_MAX entries and RUN_BYTES_MAX bytes (or one entry). Each iterator goes
        its own way; a cancelled wait loses nothing, iterate again. It ends when the log is stopped, perhaps
        before the newest entries. Raises LogNotRunning before start(), StorageError.
        """
        ...

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        """Return committed entries lo <= index < hi, from lo on, with payloads of max_bytes in sum.

        At least one entry is returned if there is any, whatever its size; entries not yet committed are
        left out. Blocks on the disk; may be called from any thread. Raises ValueError for lo < 1,
        StorageError.
        """
        ...

    def verify_chain(self, lo: int, hi: int) -> None:
        """Check the links of the committed entries lo <= index < hi, the first of them from entry lo - 1 on.

        Blocks on the disk; may be called from any thread. Raises ValueError for lo < 1, StorageError naming
        the first entry that does not continue the chain.
        """
        ...

    async def rewrite_private(self, index: int, payload: bytes) -> None:
        """Replace a stored payload, here only, by one with the same public part: so private parts are erased.

        Durable on return; the earlier bytes stay in files until compact() says otherwise. Runs handed out
        before keep the old payload. Raises ValueError when there is no such entry, PublicPartChanged,
        PayloadTooLarge, LogNotRunning, StorageError.
        """
        ...

    async def compact(self, indices: Collection[int]) -> bool:
        """Purge the files of the log of what these entries were before they were rewritten.

        False: somebody is still reading what was; try again later. Raises LogNotRunning, StorageError.
        """
        ...

    def leader_hint(self) -> bool:
        """Tell whether this replica is probably the one whose proposals are committed fastest."""
        ...

    def hand_over(self) -> None:
        """Ask that another replica leads, if this one does and another can. May be in vain."""
        ...

    def status(self) -> LogStatus:
        """Return how the log stands. Never raises."""
        ...

    async def stop(self) -> None:
        """End: running proposals return or raise LogNotRunning, iterators end, the storage is closed.

        Idempotent. The log cannot be started again; open a new one on the same storage.
        """
        ...
