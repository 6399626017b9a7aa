"""Verifiers ask each other over TLS for the heads they ratified; two histories of one realm are found out."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from streams.build import Stream
from streams.fake_keyserver import DEADLINE_S, FakeKeyserver
from streams.folder import OpenVerifier, VerifierFolder
from streams.realms import make_realm, party

from verifier.daemon import evidence as evidences
from verifier.daemon.evidence import Standing
from verifier.daemon.failures import CallRefused, Halted, Misbehaved, Unreachable
from verifier.daemon.outbox import Ready
from verifier.daemon.ratified import Agreement, compare, serving
from verifier.daemon.state import load_state
from verifier.daemon.step import apply_message
from verifier.daemon.transport import Credentials, Peer
from verifier.errors import Malformed


class Watcher:
    """A verifier of `stream` that has ratified everything and serves it."""

    def __init__(self, stack: ExitStack, path: Path, stream: Stream, name: str) -> None:
        self.stream = stream
        self.folder = VerifierFolder.make(path / name, stream.realm, name, "127.0.0.1:4630")
        self.opened = stack.enter_context(OpenVerifier(self.folder))
        self.replay()
        port = stack.enter_context(
            serving(
                "127.0.0.1:0",
                self.opened.store,
                stream.realm,
                self.opened.credentials,
                pytest.fail,
            )
        )
        self.peer = Peer(name, f"127.0.0.1:{port}", Credentials(self.folder.certificate))

    def replay(self) -> None:
        store, realm = self.opened.store, self.stream.realm
        state = load_state(store, realm)
        outcome = apply_message(store, realm, state, self.stream.message(state.next_index))
        assert outcome.stop is None
        store.write(outcome.writes)
        for number in outcome.owed:
            assert isinstance(self.opened.outbox.ratify(number), Ready)


def two_histories() -> tuple[Stream, Stream]:
    """Equal in epoch 1, different from epoch 2 on, both signed by all replicas."""
    left = Stream().grow(1)
    right = left.copy()
    left.grow(1, users=("alice",))
    right.grow(1, users=("bob",))
    return left, right


def test_equal_histories_agree_whoever_is_ahead(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stream = Stream().grow(2)
        behind = Watcher(stack, tmp_path, stream.copy(), "v0")
        ahead = Watcher(stack, tmp_path, stream.grow(2), "v1")
        realm = stream.realm
        assert compare(behind.opened.store, realm, ahead.peer) == Agreement(2)
        assert compare(ahead.opened.store, realm, behind.peer) == Agreement(2)


def test_a_verifier_without_heads_is_no_contradiction(tmp_path: Path) -> None:
    with ExitStack() as stack:
        empty = Watcher(stack, tmp_path, Stream(), "v0")
        full = Watcher(stack, tmp_path, Stream().grow(1), "v1")
        realm = full.stream.realm
        assert compare(empty.opened.store, realm, full.peer) == Agreement(0)
        assert compare(full.opened.store, realm, empty.peer) == Agreement(0)


@pytest.mark.parametrize("lead", [0, 3], ids=["same height", "the peer is ahead"])
def test_two_histories_are_found_and_proven(tmp_path: Path, lead: int) -> None:
    with ExitStack() as stack:
        left, right = two_histories()
        ours = Watcher(stack, tmp_path, left, "v0")
        theirs = Watcher(stack, tmp_path, right.grow(lead), "v1")
        with pytest.raises(Misbehaved) as found:
            compare(ours.opened.store, left.realm, theirs.peer)
        assert found.value.exit_code == 8
        document = evidences.from_document(evidences.to_document(left.realm, found.value.evidence, 1))
        verdict = evidences.judge(left.realm, document)
        assert verdict.standing is Standing.PROVEN
        assert len(verdict.culprits) == 3


def test_a_peer_of_another_realm_accuses_nobody(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ours = Watcher(stack, tmp_path, Stream().grow(1), "v0")
        other = Stream(seed=2)
        other.use(make_realm([party(2, "x")], name="example.net"))
        other.replicas = [party(2, "x")]
        theirs = Watcher(stack, tmp_path, other.grow(1), "v1")
        with pytest.raises(Malformed):
            compare(ours.opened.store, ours.stream.realm, theirs.peer)


def test_a_peer_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ours = Watcher(stack, tmp_path, Stream().grow(1), "v0")
        gone = replace(ours.peer, address="127.0.0.1:1")
        with pytest.raises(Unreachable):
            compare(ours.opened.store, ours.stream.realm, gone)


def test_a_peer_with_another_certificate_is_not_believed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ours = Watcher(stack, tmp_path, Stream().grow(1), "v0")
        theirs = Watcher(stack, tmp_path, Stream().grow(1), "v1")
        impostor = replace(theirs.peer, credentials=ours.peer.credentials)
        with pytest.raises(Unreachable):
            compare(ours.opened.store, ours.stream.realm, impostor)


def test_an_epoch_nobody_ratified_is_none_and_rubbish_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ours = Watcher(stack, tmp_path, Stream().grow(1), "v0")
        assert ours.peer.get(7) is None
        with ours.peer.credentials.channel(ours.peer.address) as channel:
            from verifier.daemon.transport import GET, Pusher

            pusher = Pusher(channel, DEADLINE_S)
            pusher._call = channel.unary_unary(GET, None, None)
            for rubbish in (b"\xff" * 10, b"\x08\x00", b"\x08" * 100):
                with pytest.raises(CallRefused) as refused:
                    pusher.push(rubbish)
                assert refused.value.reason in ("MALFORMED", "TOO_LARGE")


async def test_the_daemon_compares_by_itself_and_stops_at_a_fork(tmp_path: Path) -> None:
    left, right = two_histories()
    with ExitStack() as stack:
        theirs = Watcher(stack, tmp_path, right, "v1")
        folder = VerifierFolder.make(tmp_path / "v0", left.realm)
        keyserver = stack.enter_context(FakeKeyserver(left, folder.certificate))
        folder.connect(keyserver.verification, keyserver.push, keyserver.certificate)
        opened = stack.enter_context(OpenVerifier(folder))
        parts = opened.parts()
        parts.peers = [theirs.peer]
        opened.parts = lambda: parts  # type: ignore[method-assign]
        with trio.fail_after(DEADLINE_S), pytest.raises(Halted) as halted:
            await opened.daemon().run()
        assert halted.value.exit_code == 8
        document = evidences.from_document(halted.value.path.read_bytes())
        assert evidences.judge(left.realm, document).standing is Standing.PROVEN
