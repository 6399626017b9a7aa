"""TLS between two buffers: all content arrives however the bytes are cut, and what is wrong ends it."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import trio
import trio.testing
from clusters.certificates import PeersAuthority

from replication.raft.secured import SecuredStream
from replication.raft.tls import read_contexts
from replication.testing import HANGS_AFTER_S

CONTENT_MAX = 50_000


# Who sends, where its bytes come out, where they are put in, who receives.
Pair = tuple[SecuredStream, trio.SocketStream, trio.SocketStream, SecuredStream]


async def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    here, there = trio.socket.socketpair()
    return trio.SocketStream(here), trio.SocketStream(there)


async def taken(sender: SecuredStream, wire: trio.SocketStream) -> bytes:
    """Return the bytes of what was written."""
    size = sender._outgoing.pending
    raw = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.flush)
        while len(raw) < size:
            raw += await wire.receive_some()
    return raw


async def send_in_pieces(wire: trio.SocketStream, raw: bytes, cuts: list[int]) -> None:
    for begin, end in pairwise([0, *cuts, len(raw)]):
        await wire.send_all(raw[begin:end])
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def secured(folder: Path) -> AsyncIterator[Pair]:
    """Two ends that have agreed; from then on the test carries the bytes."""
    contexts = read_contexts(PeersAuthority(folder / "peers").member("r1"))
    (near, near_wire), (far, far_wire) = await sockets(), await sockets()
    sender = SecuredStream(near, contexts.dialing, server_side=False)
    receiver = SecuredStream(far, contexts.accepting, server_side=True)

    async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)

    with trio.fail_after(HANGS_AFTER_S):
        async with near, near_wire, far, far_wire:
            async with trio.open_nursery() as carrying:
                carrying.start_soon(carry, near_wire, far_wire)
                carrying.start_soon(carry, far_wire, near_wire)
                async with trio.open_nursery() as greeting:
                    greeting.start_soon(sender.do_handshake)
                    greeting.start_soon(receiver.do_handshake)
                carrying.cancel_scope.cancel()
            yield sender, near_wire, far_wire, receiver


async def test_all_content_arrives_however_the_bytes_are_cut(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    async with secured(tmp_path) as (sender, near_wire, far_wire, receiver):
        for _ in range(count(50)):
            contents = [rng.randbytes(rng.randint(1, CONTENT_MAX)) for _ in range(rng.randint(1, 3))]
            for content in contents:
                sender.tls.write(content)
            raw = await taken(sender, near_wire)
            cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randrange(6)))
            received = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_in_pieces, far_wire, raw, cuts)
                while len(received) < sum(map(len, contents)):
                    received += await receiver.receive_some()
            assert received == b"".join(contents)


async def test_what_was_right_before_the_first_wrong_byte_is_received(tmp_path: Path) -> None:
    async with secured(tmp_path) as (sender, near_wire, far_wire, receiver):
        sender.tls.write(b"right")
        right = await taken(sender, near_wire)
        sender.tls.write(b"wrong")
        wrong = bytearray(await taken(sender, near_wire))
        wrong[-1] ^= 1
        await far_wire.send_all(right + wrong)
        assert await receiver.receive_some() == b"right"
        with suppress(trio.BrokenResourceError):  # the end or an error, and at once: no byte follows
            assert await receiver.receive_some() == b""


async def test_the_end_is_received_after_the_content_before_it(tmp_path: Path) -> None:
    async with secured(tmp_path) as (sender, near_wire, far_wire, receiver):
        sender.tls.write(b"last")
        await far_wire.send_all(await taken(sender, near_wire))
        await far_wire.send_eof()
        assert await receiver.receive_some() == b"last"
        assert await receiver.receive_some() == b""
