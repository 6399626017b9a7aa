"""Links between replicas: one TLS connection in each direction for each pair, dialled by whoever sends on it.

The end that dials sends frames; the end that accepted says once that it accepts, answers signs of life, and
says nothing else. So a link is known to carry in both directions or it ends, within SILENCE_S.

A stranger can do this: open connections, of which the oldest unfinished is cut when there are too many, and
be refused after HANDSHAKE_S at the latest. No byte of his reaches the codec. A member can send frames up to
a limit; what it sends is read only as fast as it is taken. What goes to a member waits in a queue with a
limit: beyond it the link is cut, since a member so far behind is sent other messages anyway.

A frame handed to `send` while there is no link is dropped; Raft repeats itself. Frames arrive in the order
they were sent, without a gap as long as the link stands; those of an older link never after a newer one's.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf

import trio

from replication.raft.events import Chance
from replication.raft.frames import ALIVE, FRAME_BYTES_MAX, FrameReader, FrameRefused
from replication.raft.secured import SecuredStream
from replication.raft.tls import Contexts, Stranger, member_at_the_other_end

HANDSHAKE_S = 5.0  # also for the connection itself; a member is done in some milliseconds
HANDSHAKES_MAX = 64  # unfinished at a time: some megabytes of TLS state
ALIVE_S = 1.0  # between signs of life, whatever else is sent: the other end answers nothing but these
SILENCE_S = 4.0  # a link without any is broken; short enough to be made anew well before an operator looks
SEND_S = 10.0  # for CHUNK_BYTES: 25 kB/s is no link
# An answer comes behind everything that was sent before: what a link carries at the least, in bytes a second.
SLOW_LINK_PER_S = 256 * 1024
CHUNK_BYTES = 256 * 1024
# One task looks after all links, so often: timers of their own would cost more than what passes on them.
LOOK_S = 0.5
OUTBOX_BYTES_MAX = 4 * FRAME_BYTES_MAX
# Between attempts to dial, doubling from the first to the last, then spread over half to all of it.
PAUSE_FIRST_S = 0.05
PAUSE_LAST_S = 1.0

NEVER = -inf

# What ends a link and is nobody's fault here.
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a member listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read "host:port" or "[host]:port". Raises ValueError."""
        host, colon, port = text.rpartition(":")
        try:
            host.encode("idna")  # as it will be when it is looked up
        except UnicodeError:
            colon = ""
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{text!r} is no address such as host:9807")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Whom the transport tells what; all on the trio thread."""

    received: Callable[[str, bytes], Awaitable[None]]  # a frame's content; returns when the next may come.
    # Raises FrameRefused for what is no message: the link is cut.
    connected: Callable[[str], None]  # from now on `send` reaches this member
    disconnected: Callable[[str], None]
    refused: Callable[[str, str], None]  # somebody's address, and a stable reason


class Transport:
    """All links of one member. `run` works until it is cancelled; everything else is for the same thread."""

    def __init__(
        self,
        *,
        member: str,
        addresses: Mapping[str, Address],
        contexts: Contexts,
        clock: Callable[[], float],
        chance: Chance,
        ends: Ends,
    ) -> None:
        """`addresses` are those of the other members; `clock` gives seconds that never go back."""
        if member in addresses:
            raise ValueError("a member has no link to itself")
        self._contexts = contexts
        self._clock = clock
        self._chance = chance
        self._ends = ends
        self._addresses = dict(addresses)
        self._outboxes = {name: _Outbox(clock) for name in addresses}
        self._inboxes: dict[str, _Inbox] = {}
        self._handshakes: dict[trio.CancelScope, None] = {}  # the oldest first
        self._problems: dict[str, str] = {}

    async def run(self, listeners: Collection[trio.SocketListener]) -> None:
        """Accept on the listeners, which are taken over, and dial every other member, for ever."""
        async with trio.open_nursery() as nursery:
            for name, address in self._addresses.items():
                nursery.start_soon(self._dial_for_ever, name, address)
            nursery.start_soon(self._look_after_links)
            if listeners:
                await trio.serve_listeners(self._accept, list(listeners))

    def send(self, member: str, frame: bytes) -> None:
        """Queue a frame as `framed` makes it. Without a link it is dropped."""
        self._outboxes[member].put(frame)

    def renew(self, contexts: Contexts) -> None:
        """Use these certificates from the next connection on."""
        self._contexts = contexts

    @property
    def members(self) -> list[str]:
        """The names of the other members, in order."""
        return sorted(self._addresses)

    def connected(self, member: str) -> bool:
        """Tell whether what is sent to this member goes out."""
        return self._outboxes[member].link is not None

    def heard_s(self, member: str) -> float | None:
        """Return the seconds since the last byte from this member, None if there was none. Never raises."""
        inbox = self._inboxes.get(member)
        at = max(self._outboxes[member].heard_at, inbox.heard_at if inbox is not None else NEVER)
        return None if at == NEVER else max(0.0, self._clock() - at)

    def problem(self, member: str) -> str:
        """Return why the last attempt to reach this member failed; "" while it is reached. Never raises."""
        return self._problems.get(member, "")

    async def _look_after_links(self) -> None:
        """End links that are silent or stuck, and let those that have nothing to say give a sign of life."""
        while True:
            await trio.sleep(LOOK_S)
            now = self._clock()
            for inbox in self._inboxes.values():
                if now - max(inbox.heard_at, inbox.listens_since) > SILENCE_S:
                    inbox.scope.cancel()
            for outbox in self._outboxes.values():
                outbox.look(now)

    # --- the end that accepts ---

    async def _accept(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._handshakes[scope] = None
            if len(self._handshakes) > HANDSHAKES_MAX:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            try:
                await self._welcome(stream, scope)
            finally:
                self._handshakes.pop(scope, None)
                await trio.aclose_forcefully(stream)

    async def _welcome(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        """Find out who it is; serve a member, refuse anybody else."""
        secured = SecuredStream(stream, self._contexts.accepting, server_side=True)
        try:
            with trio.fail_after(HANDSHAKE_S):
                member = await _identify(secured, self._addresses)
                await secured.send_all(ALIVE)
        except (*BROKEN, Stranger) as error:
            self._ends.refused(_address_of(stream), _reason(error))
            return
        self._handshakes.pop(scope, None)
        if (older := self._inboxes.get(member)) is not None:
            older.scope.cancel()
        inbox = self._inboxes[member] = _Inbox(scope, self._clock())
        try:
            await self._read(member, secured, inbox)
        except FrameRefused as error:
            self._ends.refused(_address_of(stream), str(error))
        except BROKEN:
            pass  # it dials again

    async def _read(self, member: str, secured: SecuredStream, inbox: _Inbox) -> None:
        reader = FrameReader()
        while data := await secured.receive_some():
            inbox.heard_at = self._clock()
            for content in reader.feed(data):
                if inbox.scope.cancel_called:  # a newer link of this member took over meanwhile
                    return
                if content:
                    inbox.listens_since = inf
                    await self._ends.received(member, content)
                    inbox.listens_since = self._clock()
                else:
                    with trio.fail_after(SEND_S):
                        await secured.send_all(ALIVE)

    # --- the end that dials ---

    async def _dial_for_ever(self, member: str, address: Address) -> None:
        pause_s = PAUSE_FIRST_S
        while True:
            begun = trio.current_time()
            try:
                await self._dial(member, address)
            except (*BROKEN, Stranger) as error:
                self._problems[member] = _reason(error)
            lasted = trio.current_time() - begun
            pause_s = PAUSE_FIRST_S if lasted > SILENCE_S else min(2 * pause_s, PAUSE_LAST_S)
            await trio.sleep(pause_s * (0.5 + self._chance.random() / 2))

    async def _dial(self, member: str, address: Address) -> None:
        """Make one link and keep it up until it breaks."""
        with trio.fail_after(HANDSHAKE_S) as handshake:
            stream = await trio.open_tcp_stream(address.host, address.port)
            async with stream:
                secured = SecuredStream(stream, self._contexts.dialing, server_side=False)
                await _identify(secured, (member,))
                if await secured.receive_some() != ALIVE:
                    raise Stranger("no welcome")
                handshake.deadline = inf
                with trio.CancelScope() as link:
                    await self._keep_up(member, secured, link)
                if link.cancelled_caught:
                    raise Stranger("silent, or too far behind")

    async def _keep_up(self, member: str, secured: SecuredStream, link: trio.CancelScope) -> None:
        outbox = self._outboxes[member]
        outbox.open(link, secured)
        self._problems.pop(member, None)
        self._ends.connected(member)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_listen_for_life, secured, outbox)
                while True:
                    await _send(secured, await outbox.take(), outbox)
        except* BROKEN:
            pass
        finally:
            outbox.close()
            self._ends.disconnected(member)


@dataclass(slots=True)
class _Inbox:
    """The link on which a member sends, and when it last did; kept when the link has ended."""

    scope: trio.CancelScope
    heard_at: float
    listens_since: float = NEVER  # inf: this end takes nothing now, which is no silence of the other's


class _Outbox:
    """Frames on their way to one member: they wait here only while there is a link."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.link: trio.CancelScope | None = None
        self._stream: SecuredStream | None = None
        self.heard_at = NEVER  # when the other end last gave a sign of life
        self._clock = clock
        self._asked_at = NEVER
        self._sending_since: float | None = None
        self._unheard_bytes = 0  # sent since the other end last gave a sign of life
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._filled = trio.Event()

    def open(self, link: trio.CancelScope, stream: SecuredStream | None = None) -> None:
        self.link, self._stream = link, stream
        self.heard_at = self._asked_at = self._clock()
        self._unheard_bytes = 0

    def close(self) -> None:
        self.link = self._stream = None
        self._sending_since = None
        self._frames.clear()
        self._bytes = 0

    def put(self, frame: bytes) -> None:
        if self.link is None:
            return
        if self._bytes + len(frame) > OUTBOX_BYTES_MAX:
            self.link.cancel()
            self.close()
            return
        if not self._send_now(frame):
            self._frames.append(frame)
            self._bytes += len(frame)
            self._filled.set()

    def _send_now(self, frame: bytes) -> bool:
        """Send a frame without waking a task, if nothing is before it."""
        is_busy = self._frames or self._sending_since is not None
        if self._stream is None or is_busy or len(frame) > CHUNK_BYTES:
            return False
        try:
            has_gone = self._stream.send_now(frame)
        except OSError:  # whoever sends it from the queue is told the same
            return False
        self._unheard_bytes += len(frame)
        if not has_gone:
            self._frames.append(b"")  # it sends the rest, and others wait behind it
            self._filled.set()
        return True

    def hear(self) -> None:
        self.heard_at = self._clock()
        self._unheard_bytes = 0

    def begin_sending(self) -> None:
        self._sending_since = self._clock()

    def end_sending(self, size: int) -> None:
        self._sending_since = None
        self._unheard_bytes += size

    def look(self, now: float) -> None:
        """Cut the link if it is silent or stuck; let it give a sign of life when it is time."""
        if self.link is None:
            return
        stuck = self._sending_since is not None and now - self._sending_since > SEND_S
        if stuck or now - self.heard_at > SILENCE_S + self._unheard_bytes / SLOW_LINK_PER_S:
            self.link.cancel()
            self.close()
        elif now - self._asked_at >= ALIVE_S:
            self._asked_at = now
            self.put(ALIVE)

    async def take(self) -> bytes:
        """Wait for frames and return some in one piece."""
        if not self._frames:
            self._filled = trio.Event()
            await self._filled.wait()
        taken: list[bytes] = []
        size = 0
        while self._frames and size < CHUNK_BYTES:
            taken.append(self._frames.popleft())
            size += len(taken[-1])
        self._bytes -= size
        return b"".join(taken)


async def _identify(secured: SecuredStream, members: Collection[str]) -> str:
    await secured.do_handshake()
    tls = secured.tls
    return member_at_the_other_end(tls.getpeercert(), tls.selected_alpn_protocol(), members)


async def _send(secured: SecuredStream, data: bytes, outbox: _Outbox) -> None:
    """Send everything; each part is timed by itself, since a slow link may be slow, not still."""
    for start in range(0, len(data) or 1, CHUNK_BYTES):
        outbox.begin_sending()
        chunk = data[start : start + CHUNK_BYTES]
        await secured.send_all(chunk)
        outbox.end_sending(len(chunk))


async def _listen_for_life(secured: SecuredStream, outbox: _Outbox) -> None:
    while data := await secured.receive_some():
        if data.strip(b"\0"):
            break
        outbox.hear()
    raise trio.BrokenResourceError("the other end hung up")


def _address_of(stream: trio.SocketStream) -> str:
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:
        return "gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: BaseException) -> str:
    """Say in stable words why there is no link; OpenSSL's and the system's own words are fixed lists."""
    match error:
        case Stranger():
            return str(error)
        case trio.TooSlowError():
            return "a slow handshake"
        case OSError() if error.errno:
            return os.strerror(error.errno).lower()
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):  # one for each address of a name
        cause = cause.exceptions[0]
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
        return _reason(cause)
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return f"TLS: {cause.reason.lower().replace('_', ' ')}"
    return "hung up"
