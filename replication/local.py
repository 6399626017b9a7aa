"""The log of one machine: a chain of synced rows in a store of its own.

Proposals wait in a queue. Whoever finds nobody writing writes: the head of the queue, as much as fits one
run, in one synced batch, in a thread. Then the next in the queue is woken to do the same. So any number of
proposers share a sync, nobody serves others for longer than one batch, and no task runs in the background.

Opening checks the newest rows (replication.rows); verify_chain checks any. A lost end of the log cannot be
seen here: start() is told how far entries were applied, and refuses.
"""

import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection

import trio

from kv.interface import StorageError, Store
from kv.leveldb import LevelDBStore
from replication.chain import next_link
from replication.rows import PublicPart, check_links, entry_key, entry_rows, open_tail
from replication.runs import Runs
from replication.standing import Standing
from replication.types import (
    RUN_BYTES_MAX,
    RUN_ENTRIES_MAX,
    WAITING_BYTES_MAX,
    LogEntry,
    LogNotRunning,
    LogOverloaded,
    LogStatus,
    PublicPartChanged,
    require_size,
)
from replication.uses import Uses

# A log is read in order, mostly once: its blocks are hardly worth keeping.
CACHE_BYTES = 8 * 1024 * 1024


def open_local_log(
    directory: str | os.PathLike[str], public_part: PublicPart, *, create: bool = True
) -> "LocalLog":
    """Open the log in a directory of its own, or create it unless told not to. Blocks on the disk.

    Raises StorageError.
    """
    store = LevelDBStore(directory, create=create, cache_bytes=CACHE_BYTES)
    try:
        return LocalLog(store, public_part, where=f"the log in {os.fspath(directory)}")
    except BaseException as error:
        store.close()
        if isinstance(error, StorageError) and os.fspath(directory) not in str(error):
            raise StorageError(f"the log in {os.fspath(directory)}: {error}") from error
        raise


class LocalLog:
    """A ReplicatedLog with one replica, which is therefore always the leader.

    Takes over the store and closes it in stop(). Constructing blocks on the disk and raises StorageError
    when the store holds something else or its newest rows do not fit together.
    """

    def __init__(self, store: Store, public_part: PublicPart, *, where: str = "the log") -> None:
        """`where` names the log in errors."""
        self._store = store
        self._where = where
        self._public_part = public_part
        self._last, self._link = open_tail(store, public_part)
        self._recent: tuple[LogEntry, ...] = ()  # the newest run, for iterators that are up to date
        self._standing = Standing()
        # Writing. While nobody writes, the head of the queue has been woken to do it.
        self._queue: OrderedDict[_Proposal, None] = OrderedDict()
        self._waiting_bytes = 0
        self._writing = False
        self._store_turn = trio.Lock()  # appending and rewriting take turns: a store has one writer
        self._rewriting = trio.Lock()  # taken BEFORE the turn, by who rewrites and by who compacts
        self._uses = Uses(self._halt)

    async def start(self, lo: int) -> None:
        await trio.lowlevel.checkpoint()
        self._standing.require_startable(lo)
        if lo > self._last + 1:
            what = f"entry {lo - 1} was applied but {self._where} ends at {self._last}"
            raise StorageError(f"{what}: a lost end")
        self._standing.lo = lo

    async def propose(self, payload: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        require_size(payload)
        if self._waiting_bytes + len(payload) > WAITING_BYTES_MAX:
            raise LogOverloaded("too many proposals wait to be stored")
        proposal = _Proposal(payload, self._public_part(payload))
        self._queue[proposal] = None
        self._waiting_bytes += len(payload)
        try:
            while proposal.outcome is None:
                if self._writing:
                    proposal.turn = trio.Event()
                    await proposal.turn.wait()
                else:
                    await self._write_run()
        finally:
            self._waiting_bytes -= len(payload)
            self._queue.pop(proposal, None)
            self._wake_next()
        if isinstance(proposal.outcome, Exception):
            raise proposal.outcome

    def committed(self) -> AsyncIterator[tuple[LogEntry, ...]]:
        return Runs(self._standing.require_started(), self._next_run)

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        self._standing.require_sound()
        entries: list[LogEntry] = []
        size = 0
        for index, _, payload in entry_rows(self._store, lo, min(hi, self._last + 1)):
            size += len(payload)
            if entries and size > max_bytes:
                break
            entries.append(LogEntry(index, payload))
        return tuple(entries)

    def leader_hint(self) -> bool:
        return self._standing.is_running

    def hand_over(self) -> None:
        """There is nobody else."""

    def status(self) -> LogStatus:
        running = self.leader_hint()
        return LogStatus(
            engine="local",
            running=running,
            leader=running,
            first_index=min(1, self._last),
            committed_index=self._last,
            stored_index=self._last,
        )

    async def stop(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._standing.stopping = True
        for proposal in self._drain_queue():
            proposal.settle(LogNotRunning("the log is stopping"))
        self._standing.announce()
        with trio.CancelScope(shield=True):
            await self._uses.wait_for_end()
        self._store.close()

    def verify_chain(self, lo: int, hi: int) -> None:
        """Check the links of the entries lo <= index < hi that are committed, from entry lo - 1 on.

        Blocks on the disk; may be called from any thread. Raises ValueError for lo < 1, StorageError
        naming the first entry that does not fit.
        """
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        self._standing.require_sound()
        check_links(self._store, self._public_part, lo, min(hi, self._last + 1))

    async def rewrite_private(self, index: int, payload: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        require_size(payload)
        if not 1 <= index <= self._last:
            raise ValueError(f"the log has no entry {index}")
        async with self._rewriting, self._store_turn:
            self._standing.require_running()
            await self._uses.in_thread(lambda: self._rewrite(index, payload))
            self._recent = ()

    async def compact(self, indices: Collection[int]) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        keys = [entry_key(index) for index in indices]
        async with self._rewriting:  # nobody rewrites these rows meanwhile; others may append
            self._standing.require_running()
            return await self._uses.in_thread(lambda: self._store.compact(keys))

    def _rewrite(self, index: int, payload: bytes) -> None:
        ((_, link, stored),) = entry_rows(self._store, index, index + 1)
        if self._public_part(stored) != self._public_part(payload):
            raise PublicPartChanged(f"the public part of entry {index} would change")
        self._store.write({entry_key(index): link + payload})

    async def _write_run(self) -> None:
        """Store the head of the queue in one batch. Afterwards every proposal in it is settled."""
        self._writing = True
        run: list[_Proposal] = []
        try:
            with trio.CancelScope(shield=True):  # a cancelled proposer must not take others with it
                async with self._store_turn:
                    run = self._take_run()
                    if run:
                        self._link = await self._uses.in_thread(lambda: self._append(run))
                        self._advance(run)
        except BaseException as error:  # whatever it is, what is on the disk is no longer known
            self._halt(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._writing = False
            for proposal in run:
                proposal.settle(self._standing.refusal() if self._standing.has_failed else True)
            self._wake_next()

    def _take_run(self) -> "list[_Proposal]":
        run: list[_Proposal] = []
        size = 0
        for proposal in self._queue:
            size += len(proposal.payload)
            if len(run) == RUN_ENTRIES_MAX or (run and size > RUN_BYTES_MAX):
                break
            run.append(proposal)
        for proposal in run:
            del self._queue[proposal]
        return run

    def _drain_queue(self) -> "list[_Proposal]":
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    def _append(self, run: "list[_Proposal]") -> bytes:
        """Write the run behind the newest entry and return the new link. In a thread."""
        link = self._link
        rows: dict[bytes, bytes | None] = {}
        for index, proposal in enumerate(run, self._last + 1):
            link = next_link(link, index, proposal.public)
            rows[entry_key(index)] = link + proposal.payload
        self._store.write(rows)
        return link

    def _advance(self, run: "list[_Proposal]") -> None:
        first = self._last + 1
        self._recent = tuple(LogEntry(index, proposal.payload) for index, proposal in enumerate(run, first))
        self._last += len(run)
        self._standing.announce()

    async def _next_run(self, lo: int) -> tuple[LogEntry, ...]:
        """Wait for entry `lo` and return a run from there on, from memory when it is new; () at the end."""
        while True:
            self._standing.require_sound()
            if self._standing.stopping:
                return ()
            if lo <= self._last:
                break
            await self._standing.changed()
        recent = self._recent
        if recent and lo >= recent[0].index:
            await trio.lowlevel.checkpoint()
            return recent[lo - recent[0].index :]
        return await self._uses.in_thread(lambda: self.read(lo, lo + RUN_ENTRIES_MAX, RUN_BYTES_MAX))

    def _wake_next(self) -> None:
        if self._queue and not self._writing:
            next(iter(self._queue)).turn.set()

    def _halt(self, error: BaseException) -> None:
        self._standing.fail(error)
        for proposal in self._drain_queue():
            proposal.settle(self._standing.refusal())


class _Proposal:
    """A payload on its way. `outcome` is None while it waits, True when stored, else the reason."""

    __slots__ = ("outcome", "payload", "public", "turn")

    def __init__(self, payload: bytes, public: bytes) -> None:
        self.payload = payload
        self.public = public
        self.turn = trio.Event()  # set when there is an outcome, or when it is this proposer's turn to write
        self.outcome: Exception | bool | None = None

    def settle(self, outcome: Exception | bool) -> None:
        self.outcome = outcome
        self.turn.set()
