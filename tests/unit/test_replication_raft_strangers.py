"""Strangers at the replication port: none gets a byte to the core, and members go on."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from clusters.certificates import PeersAuthority, believing
from clusters.wires import HANGS_AFTER_S, Station, dial, is_hung_up, stations
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import replication.raft.transport as transport_module
from replication.raft.frames import framed
from replication.raft.tls import PROTOCOL, Stranger, member_at_the_other_end, read_contexts
from replication.types import PeerTls, TlsFilesRefused


@asynccontextmanager
async def cluster_and_others(tmp_path: Path) -> AsyncIterator[tuple[PeersAuthority, Station, Station]]:
    """Two members; on leaving they still hear each other, and nothing else was ever received."""
    async with stations(tmp_path, "r1", "r2") as (authority, (r1, r2)):
        await r2.until(("connected", "r1", ""))
        yield authority, r1, r2
        r2.transport.send("r1", framed(b"as ever"))
        await r1.until(("received", "r2", b"as ever"))
        assert r1.received() == [("r2", b"as ever")]
        assert ("disconnected", "r1", "") not in r2.events


def other_authority(authority: PeersAuthority, tmp_path: Path) -> PeerTls:
    return believing(PeersAuthority(tmp_path / "other").member("r2"), authority)


# What is shown -> why it is refused.
STRANGERS: dict[str, tuple[Callable[[PeersAuthority, Path], PeerTls], str]] = {
    "another authority's r2": (other_authority, "TLS: certificate verify failed"),
    "no member's name": (lambda ours, _: ours.member("r9"), "a certificate of no member"),
    "the name of whom it dials": (lambda ours, _: ours.member("r1"), "a certificate of no member"),
    "an ended certificate": (lambda ours, _: ours.expired("r2"), "TLS: certificate verify failed"),
    "a server's certificate": (lambda ours, _: ours.server_only("r2"), "TLS: certificate verify failed"),
    "the authority itself": (lambda ours, _: ours.itself(), "TLS: certificate verify failed"),
}


@pytest.mark.parametrize("shown", STRANGERS)
async def test_a_certificate_that_is_no_members_is_refused(tmp_path: Path, shown: str) -> None:
    make, reason = STRANGERS[shown]
    async with cluster_and_others(tmp_path) as (authority, r1, _):
        async with dial(r1.address, read_contexts(make(authority, tmp_path))) as stranger:
            assert await is_hung_up(stranger)
        assert await r1.until_some("refused") == ("refused", "", reason)


async def test_without_a_certificate_nobody_is_let_in(tmp_path: Path) -> None:
    async with cluster_and_others(tmp_path) as (authority, r1, _):
        contexts = read_contexts(authority.member("r2"))
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname = False
        bare.load_verify_locations(cafile=str(authority.path))
        bare.set_alpn_protocols([PROTOCOL])
        async with dial(r1.address, replace(contexts, dialing=bare)) as stranger:
            assert await is_hung_up(stranger)
        assert await r1.until_some("refused") == ("refused", "", "TLS: peer did not return a certificate")


async def test_a_member_that_means_another_port_is_refused(tmp_path: Path) -> None:
    async with cluster_and_others(tmp_path) as (authority, r1, _):
        contexts = read_contexts(authority.member("r2"))
        contexts.dialing.set_alpn_protocols(["h2"])
        async with dial(r1.address, contexts) as stranger:
            assert await is_hung_up(stranger)
        assert await r1.until_some("refused") == ("refused", "", "another protocol")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: r1\r\n\r\n", "TLS: http request"),
        (framed(b"\x3a\x02\x08\x07"), "TLS: wrong version number"),  # a valid frame, without TLS
        (b"cos\nsystem\n(S'exit'\ntR.", "TLS: wrong version number"),
        (bytes(100_000), "TLS: wrong version number"),
        (b"", "TLS: unexpected eof while reading"),
    ],
    ids=["HTTP", "a frame", "a pickle", "zeros", "nothing"],
)
async def test_what_is_not_TLS_is_refused(tmp_path: Path, said: bytes, reason: str) -> None:
    async with cluster_and_others(tmp_path) as (_, r1, _):
        async with await trio.open_tcp_stream(r1.address.host, r1.address.port) as stranger:
            with trio.fail_after(HANGS_AFTER_S), suppress(trio.BrokenResourceError):
                await stranger.send_all(said)
                await stranger.send_eof()
                while await stranger.receive_some():  # a TLS alert, as a rule
                    pass
        assert await r1.until_some("refused") == ("refused", "", reason)


async def test_a_slow_handshake_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster_and_others(tmp_path) as (_, r1, _):
        monkeypatch.setattr(transport_module, "HANDSHAKE_S", 0.05)
        async with await trio.open_tcp_stream(r1.address.host, r1.address.port) as silent:
            assert await is_hung_up(silent)
        assert await r1.until_some("refused") == ("refused", "", "a slow handshake")
        monkeypatch.undo()


async def test_of_many_that_say_nothing_the_oldest_go_and_members_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "HANDSHAKES_MAX", 8)
    async with stations(tmp_path, "r1", "r2") as (_, (r1, r2)), AsyncExitStack() as stack:
        await r2.until(("connected", "r1", ""))
        idle = [
            await stack.enter_async_context(await trio.open_tcp_stream(r1.address.host, r1.address.port))
            for _ in range(40)
        ]
        for oldest in idle[:32]:
            assert await is_hung_up(oldest)
        async with dial(r1.address, read_contexts(r2.files)) as link:
            assert await link.receive_some(4) == bytes(4)
        await r2.until(("connected", "r1", ""), times=2)  # that one took over from its own


async def test_an_answer_by_a_stranger_is_no_link(tmp_path: Path) -> None:
    """Who dials refuses as well: another authority, and another member than the one meant."""
    async with stations(tmp_path, "r1", "r2") as (authority, (r1, _)):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        r3 = Station("r3", believing(PeersAuthority(tmp_path / "other").member("r3"), authority), listener)
        r3.connect_to({"r1": r1.address})
        (own,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        r2 = Station("r2", authority.member("r2"), own)
        r2.connect_to({"r3": r3.address})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(r3.run)
            nursery.start_soon(r2.run)
            await r3.until_some("refused")
            with trio.fail_after(HANGS_AFTER_S):
                while not r2.transport.problem("r3"):
                    await trio.lowlevel.checkpoint()
            assert r2.transport.problem("r3") == "TLS: certificate verify failed"
            assert r2.events == []
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("names", "protocol"),
    [
        ((("DNS", "r1"),), None),
        ((("DNS", "r1"),), "h2"),
        ((), PROTOCOL),
        ((("DNS", "r1"), ("DNS", "r2")), PROTOCOL),
        ((("DNS", "*"),), PROTOCOL),
        ((("DNS", "R1"),), PROTOCOL),
        ((("IP Address", "r1"),), PROTOCOL),
        ((("email", "r1"),), PROTOCOL),
    ],
)
def test_one_DNS_name_is_that_of_a_member_or_nobodys(
    names: tuple[tuple[str, str], ...], protocol: str | None
) -> None:
    with pytest.raises(Stranger):
        member_at_the_other_end({"subjectAltName": names}, protocol, ("r1", "r2"))
    assert member_at_the_other_end({"subjectAltName": (("DNS", "r1"),)}, PROTOCOL, ("r1", "r2")) == "r1"


def test_a_certificate_without_names_is_nobodys() -> None:
    for certificate in (None, {}, {"subject": ((("commonName", "r1"),),)}):
        with pytest.raises(Stranger, match="no member"):
            member_at_the_other_end(certificate, PROTOCOL, ("r1",))


@pytest.mark.parametrize("broken", ["missing", "no PEM", "another key", "an encrypted key"])
def test_files_that_make_no_identity_are_refused_by_name(tmp_path: Path, broken: str) -> None:
    authority = PeersAuthority(tmp_path)
    files = authority.member("r1")
    read_contexts(files)
    match broken:
        case "missing":
            files.certificate.unlink()
        case "no PEM":
            files.authority.write_text("nothing")
        case "another key":
            files = replace(files, key=authority.member("r2").key)
        case _:
            files.key.write_bytes(encrypted(files.key.read_bytes()))
    with pytest.raises(TlsFilesRefused, match=r"r1\.pem"):
        read_contexts(files)


def encrypted(pem: bytes) -> bytes:
    key = load_pem_private_key(pem, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
