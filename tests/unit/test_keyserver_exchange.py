"""Heads shown beside the log: a difference holds a replica, until a majority states the head it has."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from e2eks.v1 import peers_pb2
from e2eks.v1 import state_pb2 as pb

from keyserver.machine.state import Machine, genesis_state
from keyserver.machine.tables import Tables
from keyserver.metrics import Metrics
from keyserver.peers.exchange import EARLY_HEADS, HOLD, Exchange
from keyserver.proposer import Proposer
from keyserver.quarantine import DIFFERENT
from keyserver.signer import Signer
from keyserver.testing import small_realm
from keyserver.waiters import Signal
from kv.keys import u64
from kv.memory import MemoryStore
from verifier import encoding, policy
from verifier import realm as realms
from verifier.crypto import hashing, signatures
from verifier.daemon.evidence import from_document
from verifier.epoch import compose_head, genesis_chain
from verifier.errors import Reason, Refused
from verifier.signonce import SignOnceRegister
from verifier.types import Realm

SEEDS = tuple(bytes([number]) * 32 for number in range(1, 6))
VRF_SEED = bytes(32)


def realm_of(count: int) -> Realm:
    keys = [signatures.public_key(seed) for seed in SEEDS[:count]]
    genesis = encoding.make_policy(keys, policy.majority([hashing.key_id(key) for key in keys]))
    small = small_realm().realm
    digest = realms.realm_hash(small.name, 1, small.vrf_public_key, genesis)
    return replace(small, genesis_policy=genesis, verification_policy=genesis, hash=digest)


class Member:
    """One replica as far as the exchange sees it: it composes heads, signs them, and shows them."""

    def __init__(self, folder: Path, realm: Realm, number: int) -> None:
        self.realm, self.store = realm, MemoryStore()
        self.signer = self._signer(folder / f"register {number}", SEEDS[number])
        self.folder = folder / f"evidence {number}"
        self.replica: Any = SimpleNamespace(
            machine=Machine(realm, 1),
            store=self.store,
            state=genesis_state(Machine(realm, 1)),
            applied=Signal(),
        )
        unused: Any = None
        self.proposer = Proposer(unused, self.signer, lambda: 0)
        self.exchange = self.restarted()

    def restarted(self) -> Exchange:
        self.exchange = Exchange(self.replica, self.signer, self.proposer, Metrics(), lambda: 7, self.folder)
        return self.exchange

    def _signer(self, path: Path, seed: bytes) -> Signer:
        register = SignOnceRegister.create(path, key_id=hashing.key_id(signatures.public_key(seed)))
        return Signer(self.realm, seed, VRF_SEED, register)

    def compose(self, epoch: int, what: int = 0) -> bytes:
        head = compose_head(
            self.realm,
            replace(genesis_chain(self.realm), epoch=epoch - 1),
            root_hash=bytes([what]) * 32,
            issue_time_ms=epoch * 1000,
            history_root=bytes(32),
            state_digest=bytes(32),
        )
        row = pb.HeadRow(head=head, root_version=0, log_index=epoch)
        self.store.write({Tables.HEADS.key(u64(epoch)): row.SerializeToString(deterministic=True)})
        self.replica.state = replace(self.replica.state, epoch=epoch)
        self.exchange.advanced()
        return head

    def sign(self, epoch: int, what: int = 0) -> None:
        self.signer.sign_head(self.compose(epoch, what), log_index=epoch, digest=bytes(32))

    def word(self, epoch: int) -> peers_pb2.ShownHead:
        word = self.exchange.word(epoch)
        assert word is not None
        return word

    @property
    def held(self) -> bool:
        return self.proposer.holds(HOLD)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Member]]:
    members = [Member(tmp_path, realm_of(3), number) for number in range(3)]
    yield members
    for member in members:
        member.signer.close()


def test_the_same_heads_hold_nobody(three: list[Member]) -> None:
    for member in three:
        member.sign(1)
    for member in three:
        for other in three:
            if other is not member:
                assert member.exchange.see(other.word(1)) == 1
    assert not any(member.held for member in three)
    assert not any(member.folder.exists() for member in three)


def test_two_that_followed_different_logs_both_stop_with_evidence(three: list[Member]) -> None:
    _, one, other = three
    one.sign(1, 1)
    other.sign(1, 2)
    one.exchange.see(other.word(1))
    other.exchange.see(one.word(1))
    for member in (one, other):
        assert member.held
        with pytest.raises(Refused, match="another head of epoch 1"):
            member.proposer.require_signing()
        (path,) = member.folder.iterdir()
        document = from_document(path.read_bytes())
        assert document.kind == DIFFERENT
        heads = [encoding.decode_signed_head(head) for head in document.heads]
        assert len({head.head.encoded for head in heads}) == 2
        assert all(head.ratifications for head in heads)


def test_one_liar_stops_nobody_for_longer_than_the_others_need_to_speak(three: list[Member]) -> None:
    liar, one, other = three
    liar.sign(1, 9)
    for member in (one, other):
        member.exchange.see(liar.word(1))  # early: before they have composed the epoch themselves
        assert not member.held
        to_say = member.exchange.signed.turn()
        member.compose(1)
        assert member.held  # and so has signed nothing
        assert member.exchange.newest == 1
        assert to_say.is_set()  # or it would be said only when peers are visited the next time
    assert one.signer.newest_signed() is None
    one.exchange.see(other.word(1))  # its word, though it may not sign
    other.exchange.see(one.word(1))
    assert not one.held
    assert not other.held
    assert one.exchange.differences == {liar.signer.key_id.hex(): 1}


def test_a_liar_cannot_vouch_against_itself_or_for_others(three: list[Member]) -> None:
    liar, one, _ = three
    liar.sign(1, 9)
    one.compose(1)
    one.exchange.see(liar.word(1))
    forged = peers_pb2.ShownHead()
    forged.CopyFrom(one.word(1))
    forged.key_id = three[2].signer.key_id  # r3's name under r2's signature
    with pytest.raises(Refused):
        one.exchange.see(forged)
    with pytest.raises(Refused):
        one.exchange.see(one.word(1))  # its own word comes back
    liar.store = liar.replica.store = MemoryStore()
    liar.compose(1)
    one.exchange.see(liar.word(1))  # now it says both
    assert one.held


def test_evidence_that_is_kept_holds_the_next_life_until_the_others_agree(three: list[Member]) -> None:
    liar, one, other = three
    one.sign(1)
    liar.sign(1, 9)
    one.exchange.see(liar.word(1))
    one.restarted().remember(sorted(one.folder.iterdir()))
    assert one.held
    other.sign(1)
    one.exchange.see(other.word(1))
    assert not one.held


def test_what_nobody_stands_for_is_refused(three: list[Member]) -> None:
    _, one, other = three
    one.compose(1)
    other.compose(1, 5)
    for field in ("head", "key_id", "composed"):
        word = other.word(1)
        setattr(word, field, b"")
        with pytest.raises(Refused):
            one.exchange.see(word)
    stranger = Member(one.folder.parent, realm_of(5), 4)
    stranger.compose(1)
    with pytest.raises(Refused) as caught:
        one.exchange.see(stranger.word(1))
    assert caught.value.reason in (Reason.MALFORMED, Reason.NOT_AUTHORIZED)
    stranger.signer.close()
    assert not one.held


def test_early_heads_are_bounded(three: list[Member], rng: random.Random) -> None:
    _, one, other = three
    epochs = list(range(1, 4 * EARLY_HEADS))
    rng.shuffle(epochs)
    for epoch in epochs:
        other.compose(epoch)
        one.exchange.see(other.word(epoch))
    (kept,) = one.exchange._early.values()
    assert sorted(kept) == sorted(epochs)[-EARLY_HEADS:]


def test_a_replica_in_quarantine_or_outside_says_nothing(three: list[Member]) -> None:
    _, one, _ = three
    one.compose(1)
    one.signer.quarantine("for the test")
    assert one.exchange.word(1) is None


@pytest.mark.parametrize("made", [b"", b"of no length", bytes(64)])
def test_what_is_no_signature_does_not_spoil_the_evidence(three: list[Member], made: bytes) -> None:
    liar, one, _ = three
    one.sign(1)
    liar.sign(1, 9)
    word = liar.word(1)
    word.signature = made  # the word on the head it composed is its own all the same
    one.exchange.see(word)
    (path,) = one.folder.iterdir()
    ours, shown = map(encoding.decode_signed_head, from_document(path.read_bytes()).heads)
    assert ours.ratifications
    assert shown.head.encoded == word.head
    assert not shown.ratifications
