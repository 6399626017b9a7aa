"""The replication port: who is let in, and what a member may say there."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import trio
from clusters.certificates import PeersAuthority, believing
from clusters.wires import HANGS_AFTER_S, HOST
from e2eks.v1 import raft_pb2 as pb

from attacks.surface import Surface
from keyserver.demo.processes import free_port
from kv.memory import MemoryStore
from replication.raft.codec import decode
from replication.raft.events import Timing
from replication.raft.frames import ALIVE, framed
from replication.raft.journal import Journal
from replication.raft.log import RaftLog
from replication.raft.messages import BadMessage
from replication.raft.tls import PROTOCOL, read_contexts
from replication.raft.transport import Address
from replication.testing import public_half
from replication.types import PeerTls

LATE_TERM = 2**50
DEPOSING = pb.Raft(higher_term=pb.Term(term=LATE_TERM)).SerializeToString(deterministic=True)
# What is sent once TLS stands, or in its place.
SAID: Mapping[str, bytes] = {
    "a sign of life": ALIVE,
    "a valid frame": framed(DEPOSING),
    "garbage in a frame": framed(b"\xff" * 40),
    "a pickle in a frame": framed(b"cos\nsystem\n(S'exit'\ntR."),
    "a bare pickle": b"cos\nsystem\n(S'exit'\ntR.",
    "a frame of 4 GiB": b"\xff" * 4,
    "a field of tomorrow": framed(DEPOSING + b"\x82\x01\x00"),
    "HTTP": b"GET / HTTP/1.1\r\nHost: r1\r\n\r\n",
}
PLAIN = "nothing, and speaks no TLS"

Stream = trio.abc.Stream


class Caller(NamedTuple):
    """What somebody shows at the port, and says."""

    shows: str
    says: str


class Replication(Surface):
    # What a member may say

    def make_message(self, kind: str, **fields: Any) -> bytes:
        """A message of a kind, with these fields on the wire."""
        chosen: dict[str, Any] = {kind: fields}
        return pb.Raft(**chosen).SerializeToString(deterministic=True)

    def make_append(
        self,
        terms: list[int],
        *,
        command: str = "00",
        times: int = 1,
        bytes_each: int = 0,
        empty_run: int = 0,
        tail: str = "",
        **fields: int,
    ) -> bytes:
        """Runs of these terms, each of so many like commands; a run without any; bytes behind them."""
        commands = [bytes.fromhex(command) + bytes(bytes_each)] * times
        runs = [pb.TermRun(term=term, commands=commands) for term in terms]
        runs += [pb.TermRun(term=empty_run)] if empty_run else []
        entries = pb.Entries(runs=runs).SerializeToString(deterministic=True) + bytes.fromhex(tail)
        usual = {"term": 5, "commit_index": 1, "prev_log_index": 7, "prev_log_term": 1}
        return self.make_message("append_entries", **{**usual, **fields}, entries=entries)

    def make_payloads(self, sizes: list[int], times: int = 1) -> bytes:
        """A follower's proposals of these sizes."""
        payloads = [bytes(size) for size in sizes] * times
        return self.make_message("propose", term=1, life=1, request=1, payloads=payloads)

    def judge_message(self, data: bytes) -> str:
        try:
            return str(decode(data)["type"])
        except BadMessage as error:
            return f"refused: {error}"

    # Who is let in

    def make_caller(self, shows: str, says: str = "a sign of life") -> Caller:
        return Caller(shows, says)

    def judge_port(self, caller: Caller) -> str:
        """What becomes of a caller; whoever is not let in has changed nothing, and the log runs on."""
        return trio.run(self._call, caller)

    async def _call(self, caller: Caller) -> str:
        authority = PeersAuthority(self.folder / "peers")
        refused: list[str] = []
        async with _running(authority, refused) as (log, port):
            said = SAID[caller.says]
            async with await trio.open_tcp_stream(HOST, port) as plain:
                stream: Stream = plain
                if caller.shows != PLAIN:
                    context = self._context(authority, caller.shows)
                    stream = trio.SSLStream(plain, context, server_hostname="r1", https_compatible=True)
                with trio.fail_after(HANGS_AFTER_S):
                    welcomed = await _speaks(stream, said)
            status = log.status()
            assert status.running
            assert welcomed or (status.term, status.stored_index) == (0, 0)
            if not refused:
                return "let in"
            return f"{'cut' if welcomed else 'refused'}: {refused[0]}"

    def _context(self, ours: PeersAuthority, shows: str) -> ssl.SSLContext:
        if shows == "no certificate":
            bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            bare.check_hostname = False
            bare.load_verify_locations(cafile=str(ours.path))
            bare.set_alpn_protocols([PROTOCOL])
            return bare
        other = PeersAuthority(self.folder / "other")
        kinds: Mapping[str, Callable[[], PeerTls]] = {
            "a member's": lambda: ours.member("r2"),
            "a member's, for another port": lambda: ours.member("r2"),
            "a member's of the past": lambda: ours.expired("r2"),
            "that of the member called": lambda: ours.member("r1"),
            "that of a member removed": lambda: ours.member("r9"),
            "a wildcard of ours": lambda: ours.member("*"),
            "a certificate for servers": lambda: ours.server_only("r2"),
            "a member's name of another authority": lambda: believing(other.member("r2"), ours),
            "a replica's for clients": lambda: believing(other.server_only("r2"), ours),
            "a verifier's, its own authority": lambda: believing(other.itself(), ours),
        }
        context = read_contexts(kinds[shows]()).dialing
        if shows == "a member's, for another port":
            context.set_alpn_protocols(["h2"])
        return context


@asynccontextmanager
async def _running(authority: PeersAuthority, refused: list[str]) -> AsyncIterator[tuple[RaftLog, int]]:
    port = free_port()
    log = RaftLog(
        Journal(MemoryStore(), public_half),
        member="r1",
        members={"r1": Address(HOST, port), "r2": Address(HOST, free_port())},
        listen=Address(HOST, port),
        tls=authority.member("r1"),
        timing=Timing(),
        on_refused=lambda _address, reason: refused.append(reason),
    )
    await log.start(1)
    try:
        yield log, port
    finally:
        await log.stop()


async def _speaks(stream: Stream, said: bytes) -> bool:
    """Say it; whether there was a welcome. Ends when the other end hung up or has shown that it is there."""
    welcome: bytes | bytearray = b""
    with suppress(OSError, trio.BrokenResourceError):
        await stream.send_all(said)
        welcome = await stream.receive_some(len(ALIVE))
        if welcome == ALIVE:
            await stream.send_all(ALIVE)
            await stream.receive_some(len(ALIVE))
    return welcome == ALIVE
