"""A ReplicatedLog over etcd. etcd orders and commits; each replica keeps all of it in a copy of its own.

Three threads: the follower reads etcd into the copy, the sender puts proposals into etcd, the keeper sees to
the rest. Everything of trio is here; the threads come in through `_on_trio` alone.

While etcd is away, what is here is read as ever; proposals are refused after a while. Whatever makes the
order of the entries doubtful ends the log with StorageError, as a broken disk does.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import trio

from kv.interface import StorageError, Store
from kv.leveldb import LevelDBStore
from replication.etcd.client import CALL_S, EtcdClient, Pem
from replication.etcd.copy import LogCopy
from replication.etcd.erasing import erase_in_etcd
from replication.etcd.follower import Follower
from replication.etcd.keeper import Keeper
from replication.etcd.keyspace import Keyspace, Report
from replication.etcd.sender import Proposal, Sender
from replication.etcd.view import Timing, View
from replication.rows import PublicPart
from replication.runs import Runs
from replication.standing import Standing
from replication.types import (
    RUN_BYTES_MAX,
    RUN_ENTRIES_MAX,
    LogEntry,
    LogStatus,
    MemberStatus,
    PeerTls,
    ReplicationError,
    require_size,
)
from replication.uses import Uses

CACHE_BYTES = 8 * 1024 * 1024  # a log is read in order, mostly once
QUOTA_BYTES = 2 * 1024**3  # etcd's own default
SESSION_BYTES = 8


def open_etcd_log(
    directory: str | os.PathLike[str],
    public_part: PublicPart,
    *,
    member: str,
    replicas: Sequence[str],
    endpoints: Sequence[str],
    tls: PeerTls,
    prefix: str,
    create: bool = True,
    quota_bytes: int = QUOTA_BYTES,
    timing: Timing | None = None,
) -> EtcdLog:
    """Open the copy in a directory of its own, or create it unless told not to. Blocks on the disk.

    `replicas`: names of all, `member` among them. `endpoints`: "https://host:port", the nearest first.
    `prefix`: the log's place in etcd, the same for all replicas. `quota_bytes`: etcd's
    --quota-backend-bytes. A local log is continued; etcd is not asked before start(). Raises StorageError,
    TlsFilesRefused, ValueError.
    """
    client = EtcdClient(endpoints, Pem.read(tls))
    store = LevelDBStore(directory, create=create, cache_bytes=CACHE_BYTES)
    try:
        return EtcdLog(
            store,
            public_part,
            client,
            Keyspace(prefix),
            member=member,
            replicas=replicas,
            tls=tls,
            quota_bytes=quota_bytes,
            timing=timing or Timing(),
        )
    except BaseException as error:
        store.close()
        if isinstance(error, StorageError):
            raise StorageError(f"the log in {os.fspath(directory)}: {error}") from error
        raise


class EtcdLog:
    """One replica's end of a log in etcd. Takes over store and client and closes them in stop()."""

    def __init__(
        self,
        store: Store,
        public_part: PublicPart,
        client: EtcdClient,
        keyspace: Keyspace,
        *,
        member: str,
        replicas: Sequence[str],
        tls: PeerTls,
        quota_bytes: int = QUOTA_BYTES,
        timing: Timing,
    ) -> None:
        self._store = store
        self._client = client
        self._keyspace = keyspace
        self._tls = tls
        self._copy = LogCopy(store, public_part)
        self._view = View(member, time.monotonic)
        self._sender = Sender(
            client, keyspace, self._view, f"{member}.{secrets.token_hex(SESSION_BYTES)}", timing
        )
        self._keeper = Keeper(
            client, keyspace, self._copy, self._view, timing=timing, quota_bytes=quota_bytes
        )
        self._follower = Follower(
            client,
            keyspace,
            self._copy,
            self._view,
            replicas,
            retry_s=timing.retry_s,
            seen=self._sender.seen,
            stored=lambda entries: self._on_trio(self._advance, entries),
            leaderless=self._keeper.wake,
        )
        self._last = self._copy.last  # as announced on the trio thread
        self._recent: tuple[LogEntry, ...] = ()  # the newest run, for iterators that are up to date
        self._standing = Standing()
        self._token: trio.lowlevel.TrioToken | None = None
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rewriting = trio.Lock()  # taken by who rewrites and by who compacts
        self._uses = Uses(self._halt)

    async def start(self, lo: int) -> None:
        await trio.lowlevel.checkpoint()
        self._standing.require_startable(lo)
        if lo > self._last + 1:
            raise StorageError(f"entry {lo - 1} was applied but the log ends at {self._last}: a lost end")
        self._standing.lo = lo
        self._token = trio.lowlevel.current_trio_token()
        runs: dict[str, Callable[[], None]] = {
            "etcd-follower": lambda: self._follower.run(self._ending),
            "etcd-sender": self._sender.run,
            "etcd-keeper": self._keeper.run,
        }
        for name, run in runs.items():
            thread = threading.Thread(target=self._in_its_thread, args=(run,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    async def propose(self, payload: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        require_size(payload)
        settled = trio.Event()
        outcome: list[ReplicationError | None] = []

        def settle(result: ReplicationError | None) -> None:
            outcome.append(result)
            self._on_trio(settled.set)

        proposal = Proposal(payload, settle)
        self._sender.submit(proposal)
        try:
            await settled.wait()
        finally:
            self._sender.withdraw(proposal)
        self._standing.require_sound()
        if outcome[0] is not None:
            raise outcome[0]

    def committed(self) -> AsyncIterator[tuple[LogEntry, ...]]:
        return Runs(self._standing.require_started(), self._next_run)

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        self._standing.require_sound()
        return self._copy.read(lo, hi, max_bytes)

    def verify_chain(self, lo: int, hi: int) -> None:
        self._standing.require_sound()
        self._copy.verify_chain(lo, hi)

    async def rewrite_private(self, index: int, payload: bytes) -> None:
        """As ReplicatedLog.rewrite_private: here only. compact() does the same to what is still in etcd."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        require_size(payload)
        if not 1 <= index <= self._last:
            raise ValueError(f"the log has no entry {index}")
        async with self._rewriting:
            self._standing.require_running()
            await self._uses.in_thread(lambda: self._copy.rewrite(index, payload))
            self._recent = ()

    async def compact(self, indices: Collection[int]) -> bool:
        """As ReplicatedLog.compact; False as well while etcd cannot be made to forget."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()

        def forget() -> bool:
            erased = erase_in_etcd(self._client, self._copy, indices)
            return self._copy.compact(indices) and erased

        async with self._rewriting:
            self._standing.require_running()
            return await self._uses.in_thread(forget)

    def leader_hint(self) -> bool:
        return self._standing.is_running and self._view.leads

    def hand_over(self) -> None:
        self._keeper.hand_over()

    def status(self) -> LogStatus:
        running, view = self._standing.is_running, self._view
        leads = running and view.leads
        problem = (f"etcd: {view.problem}",) if view.problem else ()
        return LogStatus(
            engine="etcd",
            running=running,
            leader=leads,
            first_index=min(1, self._last),
            committed_index=self._last,
            stored_index=self._copy.last,
            role="leader" if leads else "follower",
            leader_name="" if view.problem else view.leader_name,
            members=tuple(self._member(name) for name in sorted(view.reports) if name != view.member),
            warnings=(*problem, *((view.full,) if view.full else ()), *view.warnings),
        )

    def renew_tls(self) -> None:
        """Read the TLS files again and connect anew. Raises TlsFilesRefused; the former then stay in use."""
        self._client.renew(Pem.read(self._tls))

    async def stop(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._standing.stopping = True
        self._standing.announce()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._end_threads)
            await self._uses.wait_for_end()
        self._store.close()

    def _end_threads(self) -> None:
        leads = self._view.leads
        self._ending.set()
        self._sender.stop()
        self._keeper.stop()
        for thread in self._threads:
            if leads and thread.name == "etcd-keeper":  # it gives up the lead, over the client
                thread.join(CALL_S)
        self._client.close()
        for thread in self._threads:
            thread.join()

    def _in_its_thread(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # whatever it is, this replica's order can no longer be relied on
            self._on_trio(self._halt, error)

    def _on_trio(self, call: Callable[..., object], *arguments: object) -> None:
        """From a thread: have something called on the trio thread, soon and in order."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(call, *arguments)
        except trio.RunFinishedError:
            self._ending.set()

    def _advance(self, entries: tuple[LogEntry, ...]) -> None:
        if entries:
            self._recent = entries
            self._last = entries[-1].index
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
        hi = min(lo + RUN_ENTRIES_MAX, self._last + 1)
        return await self._uses.in_thread(lambda: self.read(lo, hi, RUN_BYTES_MAX))

    def _halt(self, error: BaseException) -> None:
        self._standing.fail(error)
        self._ending.set()
        self._sender.stop()
        self._keeper.stop()

    def _member(self, name: str) -> MemberStatus:
        report, heard = self._view.reports.get(name, (Report(), 0.0))
        return MemberStatus(
            name=name,
            connected=not self._view.problem,
            heard_s=self._view.clock() - heard,
            match_index=report.index,
        )
