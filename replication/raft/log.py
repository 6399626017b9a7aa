"""The log of a cluster: one member, its links and its disk behind the interface of every engine.

Whatever goes wrong in a turn ends the log: every call raises StorageError, the links are cut at once, and
the process must end. Nothing that comes in through a link can make that happen (see codec, transport).
"""

import os
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping

import trio

from kv.leveldb import LevelDBStore
from replication.raft.askers import Askers
from replication.raft.driver import Driver
from replication.raft.events import Role, Timing, Turn
from replication.raft.journal import Journal
from replication.raft.member import Member
from replication.raft.tls import read_contexts
from replication.raft.transport import Address
from replication.rows import PublicPart
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
    MemberStatus,
    NoLeader,
    PeerTls,
    require_size,
)
from replication.uses import Uses

# A log is read in order, mostly once: its blocks are hardly worth keeping.
CACHE_BYTES = 8 * 1024 * 1024
# A proposal waits so long for a leader that takes it: longer than any election, and shorter than its clock
# reading is good for.
LEADERLESS_S = 4.0
# Who stops stays so long for another member to take the lead: an election among members that wait for it.
HAND_OVER_S = 1.0


def open_raft_log(
    directory: str | os.PathLike[str],
    public_part: PublicPart,
    *,
    member: str,
    members: Mapping[str, str],
    listen: str,
    tls: PeerTls,
    timing: Timing | None = None,
    create: bool = True,
    on_refused: Callable[[str, str], None] = lambda _address, _reason: None,
) -> "RaftLog":
    """Open one member's log in a directory of its own, or create it unless told not to. Blocks on the disk.

    `members` gives the address "host:port" at which this member reaches each one, itself included; `listen`
    is where it listens. `on_refused` is told an address and a stable reason whenever somebody is turned
    away. Raises StorageError, TlsFilesRefused, and ValueError for members or addresses that are none.
    """
    store = LevelDBStore(directory, create=create, cache_bytes=CACHE_BYTES)
    try:
        return RaftLog(
            Journal(store, public_part, where=f"the log in {os.fspath(directory)}"),
            member=member,
            members={name: Address.parse(address) for name, address in members.items()},
            listen=Address.parse(listen),
            tls=tls,
            timing=timing or Timing(),
            on_refused=on_refused,
        )
    except BaseException:
        store.close()
        raise


class RaftLog:
    """A ReplicatedLog that a majority of the members keeps. Takes over the journal and closes it in stop().

    Constructing raises TlsFilesRefused, ValueError when `member` is not among the members, StorageError.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        member: str,
        members: Mapping[str, Address],
        listen: Address,
        tls: PeerTls,
        timing: Timing,
        on_refused: Callable[[str, str], None],
    ) -> None:
        """See open_raft_log."""
        if member not in members:
            raise ValueError(f"{member} is not among the members of its cluster")
        self._journal = journal
        self._name = member
        self._listen = listen
        self._tls = tls
        others = {name: address for name, address in members.items() if name != member}
        chance = random.SystemRandom()
        self._driver = Driver(
            member=member,
            members=sorted(members),
            journal=journal,
            clock=time.monotonic,
            chance=chance,
            timing=timing,
        )
        self._member = Member(
            self._driver,
            journal,
            member=member,
            addresses=others,
            contexts=read_contexts(tls),
            clock=time.monotonic,
            chance=chance,
            on_turn=self._after,
            on_refused=on_refused,
        )
        self._standing = Standing()
        self._committed = journal.committed_to
        self._recent: tuple[LogEntry, ...] = ()  # the newest run, for iterators that are up to date
        self._last: Turn | None = None
        self._life = trio.CancelScope()
        self._ended = trio.Event()
        # Proposals under way.
        self._askers = Askers(self._member.propose, self._member.forget)
        self._waiting_bytes = 0
        # Uses of the journal.
        self._rewriting = trio.Lock()  # taken BEFORE the turn's lock, by who rewrites and by who compacts
        self._uses = Uses(self._halt)

    async def start(self, lo: int) -> None:
        """As ReplicatedLog.start. Raises OSError, too, when this member cannot listen."""
        await trio.lowlevel.checkpoint()
        self._standing.require_startable(lo)
        self._driver.know_committed(lo - 1)  # what was applied was committed
        self._committed = self._journal.committed_to
        listeners: list[trio.SocketListener] = []
        if self._member.links.members:
            listeners = await trio.open_tcp_listeners(self._listen.port, host=self._listen.host or None)
        self._standing.lo = lo
        trio.lowlevel.spawn_system_task(self._live, listeners)

    async def propose(self, payload: bytes) -> None:
        self._standing.require_running()
        require_size(payload)
        if self._waiting_bytes + len(payload) > WAITING_BYTES_MAX:
            raise LogOverloaded("too many proposals wait to be committed")
        self._waiting_bytes += len(payload)
        try:
            until = trio.current_time() + LEADERLESS_S
            if not self._is_led():
                await self._wait_for_leader(until)
            while not await self._askers.ask(payload):
                # Whoever refused is not the leader, or out of reach, or full; the next turn may know better.
                with trio.move_on_at(until):
                    await self._standing.changed()
                await self._wait_for_leader(until)
        finally:
            self._waiting_bytes -= len(payload)

    def committed(self) -> AsyncIterator[tuple[LogEntry, ...]]:
        return Runs(self._standing.require_started(), self._next_run)

    def read(self, lo: int, hi: int, max_bytes: int) -> tuple[LogEntry, ...]:
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        self._standing.require_sound()
        return self._journal.read(lo, min(hi, self._committed + 1), max_bytes)

    def verify_chain(self, lo: int, hi: int) -> None:
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        self._standing.require_sound()
        self._journal.verify_chain(lo, min(hi, self._committed + 1))

    async def rewrite_private(self, index: int, payload: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        require_size(payload)
        if not 1 <= index <= self._committed:
            raise ValueError(f"the log has no entry {index}")
        async with self._rewriting, self._member.between_turns:
            self._standing.require_running()
            await self._uses.in_thread(lambda: self._journal.rewrite_private(index, payload))
            self._recent = ()

    async def compact(self, indices: Collection[int]) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._standing.require_running()
        async with self._rewriting:  # nobody rewrites these rows meanwhile; turns go on
            self._standing.require_running()
            return await self._uses.in_thread(lambda: self._journal.compact(indices))

    def leader_hint(self) -> bool:
        return self._standing.is_running and self._last is not None and self._last.role is Role.LEADER

    def hand_over(self) -> None:
        if self.leader_hint():
            self._member.hand_over()

    def status(self) -> LogStatus:
        last = self._last
        links = self._member.links
        standing = {peer.member: peer for peer in self._member.standing()}
        return LogStatus(
            engine="raft",
            running=self._standing.is_running,
            leader=self.leader_hint(),
            first_index=min(1, self._committed),
            committed_index=self._committed,
            stored_index=self._journal.last_application,
            role="" if last is None else str(last.role),
            term=0 if last is None else last.term,
            leader_name="" if last is None else last.leader or "",
            members=tuple(
                MemberStatus(
                    name=name,
                    connected=links.connected(name),
                    heard_s=links.heard_s(name),
                    problem=links.problem(name),
                    match_index=standing[name].matched_to if name in standing else None,
                )
                for name in links.members
            ),
        )

    def renew_tls(self) -> None:
        """Read the TLS files again, for the connections to come. Blocks on the disk.

        Raises TlsFilesRefused; then the earlier ones stay in use.
        """
        self._member.links.renew(read_contexts(self._tls))

    async def stop(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        leads, self._standing.stopping = self.leader_hint(), True
        self._askers.fail_all(LogNotRunning("the log is stopping"))
        self._standing.announce()
        with trio.CancelScope(shield=True):
            if leads:
                await self._leave_the_lead()
            self._life.cancel()
            if self._standing.lo is not None:
                await self._ended.wait()
            await self._uses.wait_for_end()
        self._journal.close()

    async def _leave_the_lead(self) -> None:
        """Return when another member leads, or none is there to do it."""
        self._member.hand_over()
        links = self._member.links
        with trio.move_on_after(HAND_OVER_S):
            while any(map(links.connected, links.members)) and self._leads_or_nobody():
                await self._standing.changed()

    def _leads_or_nobody(self) -> bool:
        last, ended = self._last, self._ended.is_set() or self._standing.has_failed
        return not ended and last is not None and last.leader in (None, self._name)

    # --- the member's life ---

    async def _live(self, listeners: list[trio.SocketListener]) -> None:
        try:
            with self._life:
                await self._member.run(listeners)
        except trio.Cancelled:
            raise  # the program ends without stop()
        except BaseException as error:  # whatever it is, what is on the disk is no longer known
            self._halt(error)
        finally:
            self._ended.set()

    def _after(self, turn: Turn, recent: tuple[LogEntry, ...]) -> None:
        """Tell everybody what a turn decided, and what it committed last."""
        self._last = turn
        self._committed = max(self._committed, turn.committed_to)
        if recent:
            self._recent = recent
        self._askers.settle(turn.settled)
        self._standing.announce()

    def _halt(self, error: BaseException) -> None:
        self._standing.fail(error)
        self._askers.fail_all(self._standing.refusal())
        self._life.cancel()

    # --- proposals ---

    async def _wait_for_leader(self, until: float) -> None:
        """Return when there is a leader to ask. Raises NoLeader, LogNotRunning, StorageError."""
        self._standing.require_running()
        with trio.move_on_at(until):
            while not self._is_led():
                await self._standing.changed()
                self._standing.require_running()
        if not self._is_led():
            raise NoLeader("no majority of the members has a leader")
        if trio.current_time() >= until:
            raise NoLeader("the leader is out of reach, or takes nothing")

    def _is_led(self) -> bool:
        return self._last is not None and self._last.leader is not None

    # --- reading ---

    async def _next_run(self, lo: int) -> tuple[LogEntry, ...]:
        """Wait for entry `lo` to be committed and return a run from there on; () at the end."""
        has_waited = False
        while True:
            self._standing.require_sound()
            if self._standing.stopping:
                return ()
            recent = self._recent
            if recent and recent[0].index <= lo <= recent[-1].index:
                if not has_waited:
                    await trio.lowlevel.checkpoint()
                return recent[lo - recent[0].index :]
            if lo <= self._committed:
                return await self._uses.in_thread(lambda: self.read(lo, lo + RUN_ENTRIES_MAX, RUN_BYTES_MAX))
            await self._standing.changed()
            has_waited = True
