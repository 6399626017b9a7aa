"""The daemon against a keyserver over real TLS: it follows, ratifies, survives cuts, and stops with
evidence.
"""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from streams.build import Stream, make_step, steps_message
from streams.fake_keyserver import DEADLINE_S, SOON, FakeKeyserver, OnPush
from streams.folder import OpenVerifier, VerifierFolder, verifier_of
from streams.memory_ends import MemorySource

from verifier import encoding, epoch
from verifier.daemon import evidence as evidences
from verifier.daemon.config import Times
from verifier.daemon.evidence import Standing
from verifier.daemon.evidence_files import refuse_while_evidence_is_kept
from verifier.daemon.failures import Halted, Unreachable, UpgradeNeeded
from verifier.daemon.state import owed_epochs, ratification_at
from verifier.daemon.transport import Keyserver, PushTarget

CONNECTED_S = 15.0  # several times what a connection may take to stand, and less than gRPC alone would wait


@contextmanager
def realm_with_verifier(path: Path, epochs: int) -> Iterator[tuple[FakeKeyserver, VerifierFolder]]:
    stream = Stream().grow(epochs)
    folder = verifier_of(stream, path / "verifier")
    with FakeKeyserver(stream, folder.certificate) as keyserver:
        folder.connect(keyserver.verification, keyserver.push, keyserver.certificate)
        yield keyserver, folder


@asynccontextmanager
async def running(opened: OpenVerifier) -> AsyncIterator[None]:
    """The daemon at work; cancelled at the end, and its failure raised."""
    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.daemon().run)
            yield
            nursery.cancel_scope.cancel()


@contextmanager
def stopped() -> Iterator[str]:
    """The address of a server that listens and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def until(keyserver: FakeKeyserver, happened: Callable[[], bool]) -> None:
    await trio.to_thread.run_sync(keyserver.wait_until, happened, abandon_on_cancel=True)


def check_push(folder: VerifierFolder, keyserver: FakeKeyserver, push: bytes, now_ms: int) -> None:
    """One ratification, one signature, by this verifier's key, over our head, at the verifier's time."""
    signed = encoding.decode_signed_head(push)
    assert signed.head.encoded == keyserver.stream.heads[signed.head.epoch - 1]
    ((ratification,),) = (signed.ratifications,)
    assert len(ratification.signatures) == 1
    assert ratification.timestamp_ms == now_ms
    keys = {folder.key_id: folder.public_key}
    assert epoch.signers(signed, {}, keys, keys).verifiers == {folder.key_id: now_ms}


async def test_every_epoch_is_ratified_once(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 5) as (keyserver, folder), OpenVerifier(folder) as opened:
        async with running(opened):
            await until(keyserver, lambda: len(keyserver.pushed) == 5)
            keyserver.grow(lambda s: s.grow(1))
            await until(keyserver, lambda: len(keyserver.pushed) == 6)
        assert keyserver.ratified_epochs() == {1, 2, 3, 4, 5, 6}
        for push in keyserver.pushed:
            check_push(folder, keyserver, push, opened.now_ms)
        assert keyserver.starts == [1]


async def test_acknowledged_ratifications_are_not_owed_any_more(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 3) as (keyserver, folder):
        with OpenVerifier(folder) as opened:
            async with running(opened):
                await until(keyserver, lambda: len(keyserver.pushed) == 3)
                while owed_epochs(opened.store, 10):
                    await trio.lowlevel.checkpoint()
        with OpenVerifier(folder) as opened:
            async with running(opened):
                keyserver.grow(lambda s: s.grow(1))
                await until(keyserver, lambda: keyserver.ratified_epochs() == {1, 2, 3, 4})
        assert [len(keyserver.pushes_of(number)) for number in (1, 2, 4)] == [1, 1, 1]  # the newest it shows
        assert keyserver.starts[1] == len(keyserver.stream.steps) - 2


async def test_streams_cut_after_every_message_lose_nothing(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 8) as (keyserver, folder), OpenVerifier(folder) as opened:
        keyserver.steps_per_message = 1
        keyserver.cut_streams_after.extend([0, 1, 0, 2, 1, 3, 0, 0, 5])
        async with running(opened):
            await until(keyserver, lambda: keyserver.ratified_epochs() == set(range(1, 9)))
        assert len(keyserver.starts) >= 10
        assert keyserver.starts == sorted(keyserver.starts)


@pytest.mark.parametrize("fate", SOON, ids=lambda fate: fate.name)
async def test_a_push_that_fails_is_pushed_again_with_the_same_bytes(tmp_path: Path, fate: OnPush) -> None:
    with realm_with_verifier(tmp_path, 2) as (keyserver, folder), OpenVerifier(folder) as opened:
        keyserver.on_push.extend([fate] * 7)
        async with running(opened):
            await until(keyserver, lambda: not keyserver.on_push)
            opened.now_ms += 1_000  # a second signature would carry another time
            await until(keyserver, lambda: keyserver.ratified_epochs() == {1, 2})
            while owed_epochs(opened.store, 10):
                await trio.lowlevel.checkpoint()
        for number in (1, 2):
            assert len(set(keyserver.pushes_of(number))) == 1
        if fate is OnPush.CUT_AFTER:
            assert len(keyserver.pushed) > 2


async def test_one_hundred_cut_connections_and_everything_is_delivered(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 10) as (keyserver, folder), OpenVerifier(folder) as opened:
        keyserver.steps_per_message = 2
        keyserver.cut_streams_after.extend([1, 0] * 8 + [0] * 34)
        keyserver.on_push.extend([OnPush.CUT_BEFORE, OnPush.CUT_AFTER] * 25)
        async with running(opened):
            await until(keyserver, lambda: not keyserver.on_push and not keyserver.cut_streams_after)
            await until(keyserver, lambda: keyserver.ratified_epochs() == set(range(1, 11)))
        for number in range(1, 11):
            assert len(set(keyserver.pushes_of(number))) == 1


async def test_the_next_address_is_tried_when_one_does_not_answer(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 2) as (keyserver, folder), OpenVerifier(folder) as opened:
        parts = opened.parts()
        dead = "127.0.0.1:1"
        parts.sources = [Keyserver(dead, opened.credentials()), *parts.sources]
        parts.targets = [PushTarget(dead, opened.credentials(), 30.0), *parts.targets]
        opened.parts = lambda: parts  # type: ignore[method-assign]
        async with running(opened):
            await until(keyserver, lambda: keyserver.ratified_epochs() == {1, 2})


def test_a_replica_that_is_stopped_is_left_before_its_calls_are_overdue(tmp_path: Path) -> None:
    """The system of a stopped process goes on taking connections; nobody answers on them."""
    with realm_with_verifier(tmp_path, 1) as (_, folder), OpenVerifier(folder) as opened:
        credentials = opened.credentials()
    with stopped() as address:
        target = PushTarget(address, credentials, CONNECTED_S)
        with target.connected() as sender, pytest.raises(Unreachable, match="UNAVAILABLE"):
            sender.push(b"")
        stream = Keyserver(address, credentials).follow(1, timeout_s=CONNECTED_S)
        with pytest.raises(Unreachable, match="UNAVAILABLE"):
            stream.read()
        stream.cancel()


def test_a_stream_whose_time_is_over_says_so(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 1) as (keyserver, folder), OpenVerifier(folder) as opened:
        stream = Keyserver(keyserver.verification, opened.credentials()).follow(1, timeout_s=1.0)
        while stream.read() is not None:
            assert not stream.overdue
        assert stream.overdue
        stream.cancel()


async def test_a_replica_that_says_nothing_new_is_left_for_the_next(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 2) as (keyserver, folder), OpenVerifier(folder) as opened:
        parts = opened.parts()
        cut_off = MemorySource([steps_message(step) for step in keyserver.stream.steps[:1]])
        parts.sources = [cut_off, *parts.sources]
        parts.times = Times(silence_max_ms=1_000)  # a connection and its first message take a part of that
        opened.parts = lambda: parts  # type: ignore[method-assign]
        async with running(opened):
            await until(keyserver, lambda: keyserver.ratified_epochs() == {1, 2})


async def test_the_keyserver_may_come_up_later(tmp_path: Path) -> None:
    stream = Stream().grow(1)
    folder = verifier_of(stream, tmp_path / "verifier")
    keyserver = FakeKeyserver(stream, folder.certificate)
    folder.connect(keyserver.verification, keyserver.push, keyserver.certificate)
    with keyserver, OpenVerifier(folder) as opened:
        keyserver.cut_streams_after.extend([0] * 20)
        async with running(opened):
            await until(keyserver, lambda: len(keyserver.starts) > 20)
            await until(keyserver, lambda: keyserver.ratified_epochs() == {1})


async def test_a_head_issued_ahead_of_the_clock_waits_and_is_ratified_later(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 2) as (keyserver, folder):
        second = keyserver.stream.chain.issue_time_ms
        with OpenVerifier(folder, now_ms=second - 60_001) as opened:
            async with running(opened):
                await until(keyserver, lambda: keyserver.ratified_epochs() == {1})
                assert opened.register.get(2) is None
                opened.now_ms = second - 60_000
                await until(keyserver, lambda: keyserver.ratified_epochs() == {1, 2})
            check_push(folder, keyserver, keyserver.pushes_of(2)[0], second - 60_000)


def rewritten_root(stream: Stream) -> None:
    stream.append(epoch=stream.sign_head(stream.compose(root_hash=bytes(31) + b"x")))


def fork(stream: Stream) -> None:
    other = stream.copy()
    other.heads, other.chain = other.heads[:-1], epoch.genesis_chain(stream.realm)
    stream.append(epoch=stream.sign_head(other.compose(state_digest=bytes(32))))


@pytest.mark.parametrize(
    ("falsify", "exit_code", "standing"),
    [(rewritten_root, 3, Standing.TESTIMONY), (fork, 8, Standing.PROVEN)],
    ids=["bad proof", "fork"],
)
async def test_evidence_is_on_the_disk_before_the_daemon_stops(
    tmp_path: Path, falsify: Callable[[Stream], None], exit_code: int, standing: Standing
) -> None:
    with realm_with_verifier(tmp_path, 1) as (keyserver, folder):
        with OpenVerifier(folder) as opened:

            async def falsify_once_ratified() -> None:
                await until(keyserver, lambda: keyserver.ratified_epochs() == {1})
                keyserver.grow(falsify)

            with trio.fail_after(DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(falsify_once_ratified)
                    with pytest.raises(Halted) as halted:
                        await opened.daemon().run()
            assert halted.value.exit_code == exit_code
            assert ratification_at(opened.store, 2) is None
        assert keyserver.ratified_epochs() == {1}
        document = evidences.from_document(halted.value.path.read_bytes())
        assert evidences.judge(opened.config.realm, document).standing is standing
        with pytest.raises(Halted) as again:
            refuse_while_evidence_is_kept(opened.config.evidence)
        assert again.value.exit_code == exit_code


async def test_an_unknown_rules_level_stops_the_daemon_without_evidence(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 1) as (keyserver, folder), OpenVerifier(folder) as opened:
        s = keyserver.stream
        s.steps.append(make_step(len(s.steps) + 1, epoch=s.sign_head(s.compose(rules=2))))
        with trio.fail_after(DEADLINE_S), pytest.raises(UpgradeNeeded):
            await opened.daemon().run()
        assert not opened.config.evidence.exists()


async def test_a_server_with_another_certificate_is_not_believed(tmp_path: Path) -> None:
    with realm_with_verifier(tmp_path, 1) as (_, folder), FakeKeyserver(Stream().grow(1)) as impostor:
        with OpenVerifier(folder) as opened:
            stream = Keyserver(impostor.verification, opened.credentials()).follow(1, timeout_s=DEADLINE_S)
            with pytest.raises(Unreachable):
                stream.read()
            stream.cancel()
        assert impostor.starts == []
