"""Links between replicas: what arrives, what breaks, and how they come back."""

from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
from clusters.certificates import PeersAuthority
from clusters.wires import HANGS_AFTER_S, HOST, Station, dial, is_hung_up, stations

import replication.raft.transport as transport_module
from replication.raft.frames import ALIVE, FRAME_BYTES_MAX, FrameRefused, framed
from replication.raft.tls import read_contexts
from replication.raft.transport import Address

# A frame, and so many that they are more than sockets on loopback hold.
LARGE = 100_000
LARGE_COUNT = 400


async def meet(*met: Station) -> None:
    """Wait until every link is up."""
    for one in met:
        for other in met:
            if one is not other:
                await one.until(("connected", other.name, ""))


async def test_frames_arrive_in_order_at_every_member(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2", "r3") as (_, (r1, r2, r3)):
        await meet(r1, r2, r3)
        sent = [b"%d" % number for number in range(500)]
        for content in sent:
            r1.transport.send("r2", framed(content))
            r1.transport.send("r3", framed(content))
            r2.transport.send("r1", framed(content))
        for station, sender in ((r2, "r1"), (r3, "r1"), (r1, "r2")):
            await station.until(("received", sender, sent[-1]))
            assert station.received() == [(sender, content) for content in sent]
        assert r1.transport.connected("r2")
        assert r1.transport.heard_s("r2") is not None
        assert r1.transport.problem("r2") == ""
        assert [event for event in r1.events if event[0] == "refused"] == []


async def test_the_largest_frame_arrives(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)):
        await meet(r1, r2)
        largest = bytes(range(256)) * (FRAME_BYTES_MAX // 256)
        r1.transport.send("r2", framed(largest))
        r1.transport.send("r2", framed(b"next"))
        await r2.until(("received", "r1", b"next"))
        assert r2.received() == [("r1", largest), ("r1", b"next")]


async def test_a_member_that_ended_is_found_again(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)):
        await meet(r1, r2)
        port = r2.address.port
        r2.end()
        await r1.until(("disconnected", "r2", ""))
        assert not r1.transport.connected("r2")
        r1.transport.send("r2", framed(b"lost"))
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(port, host=HOST)
            again = Station("r2", r2.files, listener)
            again.connect_to({"r1": r1.address})
            nursery.start_soon(again.run)
            await r1.until(("connected", "r2", ""), times=2)
            r1.transport.send("r2", framed(b"found"))
            await again.until(("received", "r1", b"found"))
            assert again.received() == [("r1", b"found")]
            nursery.cancel_scope.cancel()


async def test_a_link_without_signs_of_life_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(transport_module, "LOOK_S", 0.05)
    authority = PeersAuthority(tmp_path / "peers")
    (own,) = await trio.open_tcp_listeners(0, host=HOST)
    r1 = Station("r1", authority.member("r1"), own)
    r1.connect_to({"r2": Address(HOST, 1)})  # whose own transport would end the link as an older one
    async with trio.open_nursery() as nursery:
        nursery.start_soon(r1.run)
        async with dial(r1.address, read_contexts(authority.member("r2"))) as mute:
            assert await mute.receive_some(4) == ALIVE  # the welcome
            assert await is_hung_up(mute)
        nursery.cancel_scope.cancel()


async def test_a_link_that_is_never_idle_asks_for_signs_of_life_all_the_same() -> None:
    now, link = [0.0], trio.CancelScope()
    outbox = transport_module._Outbox(lambda: now[0])
    outbox.open(link)
    answered = 0
    while now[0] < 10 * transport_module.SILENCE_S:
        outbox.put(b"frame")
        if ALIVE in await outbox.take():
            outbox.hear()  # the other end answers nothing else
            answered += 1
        now[0] += transport_module.LOOK_S
        outbox.look(now[0])
    assert not link.cancel_called
    assert answered < 10 * transport_module.SILENCE_S / transport_module.ALIVE_S
    while not link.cancel_called:  # and once nobody answers any more, it ends
        outbox.put(b"frame")
        await outbox.take()
        now[0] += transport_module.LOOK_S
        outbox.look(now[0])
    assert now[0] <= 11.5 * transport_module.SILENCE_S


async def test_a_dialled_end_without_signs_of_life_is_dialled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(transport_module, "LOOK_S", 0.05)
    async with stations(tmp_path, "r1") as (authority, _):
        mute = read_contexts(authority.member("r2")).accepting
        welcomed = 0
        twice = trio.Event()

        async def welcome_and_say_no_more(stream: trio.SocketStream) -> None:
            nonlocal welcomed
            secured = trio.SSLStream(stream, mute, server_side=True, https_compatible=True)
            await secured.send_all(ALIVE)
            welcomed += 1
            if welcomed == 2:
                twice.set()
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host=HOST)
            nursery.start_soon(trio.serve_listeners, welcome_and_say_no_more, [listener])
            (own,) = await trio.open_tcp_listeners(0, host=HOST)
            r1 = Station("r1", authority.member("r1"), own)
            r1.connect_to({"r2": Address(HOST, listener.socket.getsockname()[1])})
            nursery.start_soon(r1.run)
            with trio.fail_after(HANGS_AFTER_S):
                await twice.wait()
            await r1.until(("disconnected", "r2", ""))
            nursery.cancel_scope.cancel()


async def test_a_member_far_behind_loses_its_link_and_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "OUTBOX_BYTES_MAX", 1000)
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)):
        await meet(r1, r2)
        for _ in range(LARGE_COUNT):  # r2 has no turn to read: the sockets fill, then the queue
            r1.transport.send("r2", framed(bytes(LARGE)))
        assert not r1.transport.connected("r2")
        await r1.until(("disconnected", "r2", ""))
        await r1.until(("connected", "r2", ""), times=2)
        r1.transport.send("r2", framed(b"again"))
        await r2.until(("received", "r1", b"again"))
        assert len(r2.received()) < LARGE_COUNT


async def test_what_the_socket_has_no_room_for_follows_in_order(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)):
        await meet(r1, r2)
        sent = [number.to_bytes(2, "big") * (LARGE // 2) for number in range(LARGE_COUNT // 2)]
        for content in sent:
            r1.transport.send("r2", framed(content))
        await r2.until(("received", "r1", sent[-1]))
        assert r2.received() == [("r1", content) for content in sent]


async def test_no_more_is_read_than_is_taken(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)):
        await meet(r1, r2)
        gate = trio.Event()
        r2.taking = gate.wait
        for number in range(30):  # more than sockets hold, less than what may wait
            r1.transport.send("r2", framed(bytes((number,)) * 1024 * 1024))
        r1.transport.send("r2", framed(b"end"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert r1.transport._outboxes["r2"]._bytes > 0
        gate.set()
        await r2.until(("received", "r1", b"end"))
        assert len(r2.received()) == 31


async def test_a_newer_link_of_a_member_ends_the_older(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1") as (authority, _):
        (own,) = await trio.open_tcp_listeners(0, host=HOST)
        r1 = Station("r1", authority.member("r1"), own)
        r1.connect_to({"r2": Address(HOST, 1)})
        contexts = read_contexts(authority.member("r2"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r1.run)
            async with dial(r1.address, contexts) as older:
                assert await older.receive_some(4) == ALIVE
                await older.send_all(framed(b"older"))
                await r1.until(("received", "r2", b"older"))
                async with dial(r1.address, contexts) as newer:
                    assert await newer.receive_some(4) == ALIVE
                    await newer.send_all(framed(b"newer"))
                    await r1.until(("received", "r2", b"newer"))
                    assert await is_hung_up(older)
            assert r1.transport.problem("r2") == "connection refused"
            nursery.cancel_scope.cancel()


async def test_what_is_no_message_ends_the_link_and_nothing_else(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2", "r3") as (_, (r1, r2, r3)):
        await meet(r1, r2, r3)

        async def refuse() -> None:
            raise FrameRefused("no message of ours")

        r1.taking = refuse
        r2.transport.send("r1", framed(b"garbage"))
        await r1.until(("refused", "", "no message of ours"))
        r1.taking = trio.lowlevel.checkpoint
        await r2.until(("connected", "r1", ""), times=2)
        r2.transport.send("r1", framed(b"sense"))
        r3.transport.send("r1", framed(b"as ever"))
        await r1.until(("received", "r2", b"sense"))
        await r1.until(("received", "r3", b"as ever"))
        assert ("disconnected", "r1", "") not in r3.events


async def test_renewed_certificates_are_shown_from_the_next_connection_on(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2") as (authority, (r1, r2)):
        await meet(r1, r2)
        asker = read_contexts(authority.member("r2"))
        async with dial(r1.address, asker) as before:
            r1.transport.renew(read_contexts(authority.member("r1")))
            async with dial(r1.address, asker) as after:
                assert before.getpeercert(binary_form=True) != after.getpeercert(binary_form=True)


async def test_another_member_at_the_address_is_no_link(tmp_path: Path) -> None:
    async with stations(tmp_path, "r1", "r2") as (authority, (r1, _)):
        (own,) = await trio.open_tcp_listeners(0, host=HOST)
        r3 = Station("r3", authority.member("r3"), own)
        r3.connect_to({"r2": r1.address})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r3.run)
            await r1.until_some("refused")
            with trio.fail_after(HANGS_AFTER_S):
                while r3.transport.problem("r2") != "a certificate of no member":
                    await trio.lowlevel.checkpoint()
            assert r3.events == []
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("r1.example.org:9807", Address("r1.example.org", 9807)),
        ("[::1]:9807", Address("::1", 9807)),
        (":0", Address("", 0)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text", ["", "r1", "r1:", "r1:x", "r1:-1", "r1:65536", "r1:٣", "a..b:1", f"{'a' * 64}:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Address.parse(text)


def test_a_link_that_was_given_much_has_time_to_answer() -> None:
    """An answer comes behind everything that was sent before it."""
    now = 0.0
    for sent, patience_s in ((0, 4.0), (100, 4.0), (8 * 1024 * 1024, 36.0)):
        outbox = transport_module._Outbox(lambda: now)
        outbox.open(trio.CancelScope())
        outbox.begin_sending()
        outbox.end_sending(sent)
        outbox.look(now + patience_s)
        assert outbox.link is not None
        outbox.look(now + patience_s + 0.1)
        assert outbox.link is None


async def test_who_is_not_listened_to_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "LOOK_S", 0.02)
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)):
        await meet(r1, r2)
        gate = trio.Event()
        r2.taking = gate.wait
        r1.transport.send("r2", framed(b"waits"))
        inbox = r2.transport._inboxes["r1"]
        with trio.fail_after(HANGS_AFTER_S):
            while inbox.listens_since < inf:
                await trio.lowlevel.checkpoint()
            inbox.heard_at -= 1000
            with trio.move_on_after(0.1):
                await r1.until(("disconnected", "r2", ""))
        gate.set()
        await r2.until(("received", "r1", b"waits"))
        with trio.move_on_after(0.1):  # nor before what it may have said meanwhile is read
            await r1.until(("disconnected", "r2", ""))
        assert ("disconnected", "r2", "") not in r1.events
