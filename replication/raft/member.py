"""One member at work: what arrives goes into turns of the driver, what a turn makes goes out on the links.

One task drives. It gathers everything that arrived since the last turn, messages and proposals alike, into
the next, which runs in a thread if it waits for the disk. Only when it has returned is anything sent or
told: nothing leaves before it is durable, and the busier the cluster is, the more shares one sync.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import trio

from replication.raft.codec import Encoder, decode
from replication.raft.driver import Driver
from replication.raft.events import (
    Chance,
    Connected,
    Disconnected,
    Event,
    Forgotten,
    HandOver,
    PeerStanding,
    Proposed,
    Received,
    Turn,
)
from replication.raft.frames import FRAME_BYTES_MAX, FrameRefused, framed
from replication.raft.journal import Journal
from replication.raft.messages import BadMessage
from replication.raft.tls import Contexts
from replication.raft.transport import Address, Ends, Transport
from replication.raft.turn_thread import TurnThread
from replication.types import RUN_BYTES_MAX, RUN_ENTRIES_MAX, LogEntry

# What goes into one turn: as much as is worth one sync, and one message of the largest size at least.
TURN_EVENTS_MAX = 4096
TURN_BYTES_MAX = FRAME_BYTES_MAX
# What one member may have waiting for a turn. Beyond it nothing more is read from it.
INBOX_BYTES_MAX = 2 * FRAME_BYTES_MAX
# How stale the part of the status may be that only the driver knows.
STANDING_S = 0.5

# A turn, the frames it sends, and the run of entries that it committed.
_Done = tuple[Turn, list[tuple[str, bytes]], tuple[LogEntry, ...]]


class Member:
    """Drives one member of a cluster over its links. All methods are for the trio thread."""

    def __init__(
        self,
        driver: Driver,
        journal: Journal,
        *,
        member: str,
        addresses: Mapping[str, Address],
        contexts: Contexts,
        clock: Callable[[], float],
        chance: Chance,
        on_turn: Callable[[Turn, tuple[LogEntry, ...]], None],
        on_refused: Callable[[str, str], None],
    ) -> None:
        """`addresses` are those of the other members.

        `on_turn` is told each turn after its sending, with the run of entries that it committed; () when
        that is none, or more than one run.
        """
        self._driver = driver
        self._journal = journal
        self._told_to = journal.committed_to
        self._clock = clock
        self._on_turn = on_turn
        self._inbox = _Inbox()
        self._standing: tuple[PeerStanding, ...] = ()
        self._standing_due = clock()
        # Held while a turn runs: whoever else changes what the driver works on takes it.
        self.between_turns = trio.Lock()
        self.links = Transport(
            member=member,
            addresses=addresses,
            contexts=contexts,
            clock=clock,
            chance=chance,
            ends=Ends(
                received=self._received,
                connected=lambda name: self._inbox.put(Connected(name)),
                disconnected=lambda name: self._inbox.put(Disconnected(name)),
                refused=on_refused,
            ),
        )

    async def run(self, listeners: Collection[trio.SocketListener]) -> None:
        """Work for ever; take over the listeners. Whatever is raised ends the member: see Driver."""
        thread: TurnThread[_Done] = TurnThread()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.links.run, listeners)
                while True:
                    await self._inbox.wait(self._driver.wait_s())
                    await self._turn(thread)
        finally:
            thread.end()

    def propose(self, token: int, payload: bytes) -> None:
        """Put a proposal into the next turn."""
        self._inbox.put(Proposed(token, payload), len(payload))

    def forget(self, token: int) -> None:
        """Say that nobody waits for a proposal any more."""
        self._inbox.put(Forgotten(token))

    def hand_over(self) -> None:
        """Ask for another member to lead."""
        self._inbox.put(HandOver())

    def standing(self) -> Sequence[PeerStanding]:
        """Return what the driver knew of the others at most STANDING_S before the last turn."""
        return self._standing

    async def _turn(self, thread: TurnThread[_Done]) -> None:
        inbox = self._inbox.take()
        try:
            self.between_turns.acquire_nowait()  # mostly free: spares a step of the loop for each turn
        except trio.WouldBlock:
            await self.between_turns.acquire()
        try:
            if self._driver.waits_for_disk(inbox):
                turn, frames, run = await thread.do(partial(self._work, inbox))
            else:  # even that thread would cost more than the turn
                turn, frames, run = self._work(inbox)
        finally:
            self.between_turns.release()
        for name, frame in frames:
            self.links.send(name, frame)
        self._on_turn(turn, run)

    def _work(self, inbox: Sequence[Event]) -> _Done:
        """Do a turn, in a thread if it takes long; encode what it sends, read what it committed."""
        turn = self._driver.turn(inbox)
        now = self._clock()
        if now >= self._standing_due:
            self._standing_due = now + STANDING_S
            self._standing = self._driver.peers()
        encoder = Encoder()
        frames = [(name, framed(encoder.encode(message))) for name, message in turn.outgoing]
        return turn, frames, self._committed_by(turn)

    def _committed_by(self, turn: Turn) -> tuple[LogEntry, ...]:
        lo, hi = self._told_to + 1, turn.committed_to + 1
        self._told_to = max(self._told_to, turn.committed_to)
        if not lo < hi <= lo + RUN_ENTRIES_MAX:
            return ()
        run = self._journal.read(lo, hi, RUN_BYTES_MAX)
        return run if len(run) == hi - lo else ()

    async def _received(self, sender: str, content: bytes) -> None:
        try:
            message = decode(content)
        except BadMessage as error:
            raise FrameRefused(str(error)) from None
        self._inbox.receive(Received(sender, message), len(content))
        await self._inbox.room_for(sender)


class _Inbox:
    """What waits for the next turn, in order of arrival, with what it weighs and who sent it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._sizes: list[int] = []  # of the events, in bytes
        self._size = 0
        self._held: Counter[str] = Counter()  # bytes received that wait, by sender
        self._filled = trio.Event()
        self._taken = trio.Event()

    def put(self, event: Event, size: int = 0) -> None:
        if not self._events:
            self._filled.set()
        self._events.append(event)
        self._sizes.append(size)
        self._size += size

    def receive(self, event: Received, size: int) -> None:
        self.put(event, size)
        self._held[event.sender] += size

    def take(self) -> list[Event]:
        """Take what fits into one turn."""
        taken, self._taken = self._taken, trio.Event()
        taken.set()
        if len(self._events) <= TURN_EVENTS_MAX and self._size < TURN_BYTES_MAX:  # as mostly
            events, self._events, self._sizes, self._size = self._events, [], [], 0
            self._held.clear()
            return events
        count = size = 0
        while count < min(len(self._events), TURN_EVENTS_MAX) and size < TURN_BYTES_MAX:
            event = self._events[count]
            if isinstance(event, Received):
                self._held[event.sender] -= self._sizes[count]
            size += self._sizes[count]
            count += 1
        events = self._events[:count]
        del self._events[:count], self._sizes[:count]
        self._size -= size
        return events

    async def wait(self, seconds: float) -> None:
        """Wait until there is something, at most so long."""
        if self._events:
            await trio.lowlevel.checkpoint()
            return
        self._filled = trio.Event()
        with trio.move_on_after(seconds):
            await self._filled.wait()

    async def room_for(self, sender: str) -> None:
        """Wait until little enough from this sender waits."""
        while self._held[sender] > INBOX_BYTES_MAX:
            await self._taken.wait()
