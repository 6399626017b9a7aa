"""The verifier: streams that are not one lawful history, peers that saw another one, accusations that lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import click.testing
from e2eks.v1 import types_pb2 as pb
from e2eks.v1 import verification_pb2
from streams.build import Stream, make_step, steps_message
from streams.falsified import CASES, majority_of, three_and_a_half_epochs
from streams.realms import make_realm, party

from attacks import wire_format as wire
from attacks.surface import Surface
from kv.memory import MemoryStore
from verifier import realm as realms
from verifier.daemon import evidence as evidences
from verifier.daemon.cli import main
from verifier.daemon.evidence import Evidence
from verifier.daemon.failures import Misbehaved
from verifier.daemon.ratified import compare
from verifier.daemon.state import State, load_state
from verifier.daemon.step import Upgrade, apply_message
from verifier.types import Realm

FALSIFIED: Mapping[str, Callable[[Stream], list[bytes]]] = {case.name: case.falsify for case in CASES}


class Streamed(NamedTuple):
    """What a verifier of `realm` has replayed, and the message it gets next."""

    realm: Realm
    replayed: bytes
    message: bytes


class Peer(NamedTuple):
    """What a verifier has replayed, and the heads that another one answers with: its newest, then older."""

    stream: Stream
    newest: bytes
    older: bytes | None = None

    @property
    def name(self) -> str:
        return "v2"

    @property
    def address(self) -> str:
        return "memory"

    def get(self, epoch: int) -> bytes | None:
        return self.older if epoch else self.newest


class VerifierSurface(Surface):
    # Streams

    def make_falsified(self, how: str) -> Streamed:
        """Three epochs and an update, then one of the ways to falsify what follows."""
        stream = three_and_a_half_epochs()
        before = stream.message()
        return Streamed(stream.realm, before, steps_message(*FALSIFIED[how](stream)))

    def make_lawful(self, what: str) -> Streamed:
        stream = three_and_a_half_epochs()
        before, start = stream.message(), len(stream.steps)
        new = [*stream.replicas[:2], party(2, "replica")]
        acts: Mapping[str, Callable[[], object]] = {
            "update": lambda: stream.put("bob"),
            "registration": lambda: stream.put("carol"),
            "revocation": lambda: stream.revoke("bob"),
            "head": stream.close_epoch,
            "change of replicas": lambda: stream.close_epoch(
                *stream.replicas, new[2], next_epoch_policy=majority_of(new)
            ),
        }
        acts[what]()
        return Streamed(stream.realm, before, steps_message(*stream.steps[start:]))

    def make_signed_by(self, signers: Sequence[str]) -> Streamed:
        """The lawful next head, signed by replicas r0 … and verifiers v0 … as replicas sign."""
        stream = three_and_a_half_epochs()
        known = {f"r{n}": replica for n, replica in enumerate(stream.replicas)}
        known |= {f"v{n}": verifier for n, verifier in enumerate(stream.verifiers)}
        signed = stream.sign_head(stream.compose(), *(known[name] for name in signers))
        step = make_step(len(stream.steps) + 1, epoch=signed)
        return Streamed(stream.realm, stream.message(), steps_message(step))

    def make_head_with_rules(self, level: int) -> Streamed:
        stream = three_and_a_half_epochs()
        signed = stream.sign_head(stream.compose(rules=level))
        step = make_step(len(stream.steps) + 1, epoch=signed)
        return Streamed(stream.realm, stream.message(), steps_message(step))

    def make_from_the_start(self, realm: str = "ours") -> Streamed:
        """The whole stream of a realm, to a verifier that has replayed nothing of ours."""
        ours, theirs = Stream(), Stream()
        if realm == "another name":
            theirs.use(make_realm(theirs.replicas, theirs.verifiers, name="example.com"))
        elif realm == "other replicas":
            theirs = Stream(seed=2)
        theirs.close_epoch()  # an empty epoch first: nothing but its head speaks of the realm
        return Streamed(ours.realm, b"", theirs.grow(2).message())

    def make_raw(self, data: str, repeated: int = 1) -> Streamed:
        """Bytes in place of a message."""
        stream = three_and_a_half_epochs()
        return Streamed(stream.realm, stream.message(), bytes.fromhex(data) * repeated)

    def make_step_with_both(self) -> Streamed:
        """A step that is an update to one reader and a head to another: the last of a oneof wins."""
        streamed = self.make_lawful("update")
        step = verification_pb2.VerifierSteps.FromString(streamed.message).steps[0].SerializeToString()
        signed = verification_pb2.VerifierSteps.FromString(self.make_lawful("head").message).steps[0]
        both = step + signed.SerializeToString()
        return streamed._replace(message=wire.bytes_field(1, both))

    def judge_stream(self, streamed: Streamed) -> str:
        store, state = _replayed(streamed.realm, streamed.replayed)
        outcome = apply_message(store, streamed.realm, state, streamed.message)
        if outcome.stop is None:
            return "followed"
        return "upgrade" if isinstance(outcome.stop, Upgrade) else str(outcome.stop.kind)

    # Peers

    def make_peer(self, epoch: int = 3, changed: bool = False, signers: int = 3) -> Peer:
        """Another verifier whose newest is epoch 1 … 3, perhaps of another history."""
        stream = Stream().grow(3)
        head = pb.EpochHead.FromString(stream.heads[epoch - 1])
        if changed:
            head.state_digest = bytes(32)
        signed = stream.sign_head(head.SerializeToString(deterministic=True), *stream.replicas[:signers])
        return Peer(stream, signed)

    def make_peer_ahead(self, older: str) -> Peer:
        """A verifier that has epoch 4, and answers with an older head when asked for epoch 3."""
        ahead = Stream().grow(4)
        signed = {
            "same": ahead.sign_head(ahead.heads[2]),
            "another epoch": ahead.sign_head(ahead.heads[1]),
        }[older]
        return Peer(Stream().grow(3), ahead.sign_head(ahead.heads[3]), signed)

    def make_peer_saying(self, data: str) -> Peer:
        return Peer(Stream().grow(3), bytes.fromhex(data))

    def judge_peer(self, peer: Peer) -> str:
        store, _ = _replayed(peer.stream.realm, peer.stream.message())
        try:
            return f"agrees in epoch {compare(store, peer.stream.realm, peer).epoch}"  # type: ignore[arg-type]
        except Misbehaved as found:
            return str(found.evidence.kind)

    # Accusations

    def make_accusation(self, kind: str, heads: Sequence[str]) -> tuple[Realm, Evidence]:
        """A file that says the replicas broke the law, with these heads as proof."""
        stream = Stream().grow(2)
        digest = stream.compose(state_digest=b"o" * 32)
        strangers = [party(9, f"replica-{number}") for number in range(3)]
        known = {
            "first": stream.sign_head(stream.heads[0]),
            "second": stream.sign_head(stream.heads[1]),
            "third": stream.sign_head(stream.compose()),
            "other third": stream.sign_head(digest),
            "other third by one": stream.sign_head(digest, stream.replicas[0]),
            "other third by one twice": stream.sign_head(digest, stream.replicas[0], stream.replicas[0]),
            "other third by verifiers": stream.sign_head(digest, *stream.verifiers),
            "other third by strangers": stream.sign_head(digest, *strangers),
            "third off the chain": stream.sign_head(stream.compose(previous_head_hash=bytes(32))),
            "third of another realm": stream.sign_head(stream.compose(realm_hash=bytes(32))),
        }
        rewritten = pb.SignedEpochHead.FromString(known["third"])
        rewritten.head = digest
        known["other third under the signatures of the third"] = rewritten.SerializeToString()
        evidence = Evidence(kind=kind, what="they lied", heads=tuple(known[name] for name in heads))
        return stream.realm, evidence

    def make_testimony(self, what: str) -> tuple[Realm, Evidence]:
        """A file that says something in words, which no signature stands for."""
        return Stream().realm, Evidence(kind="root", what=what)

    def judge_shown(self, accusation: tuple[Realm, Evidence]) -> str:
        """What `verifier evidence verify` writes to the terminal as its statement."""
        realm, evidence = accusation
        file, realm_file = self.folder / "evidence.json", self.folder / "realm.json"
        file.write_bytes(evidences.to_document(realm, evidence, 1))
        realm_file.write_bytes(realms.realm_json(realm))
        asked = ["evidence", "verify", str(file), "--realm-file", str(realm_file)]
        output = click.testing.CliRunner().invoke(main, asked).stdout
        return output.partition("statement")[2].strip().partition(". ")[0]

    def judge_accusation(self, accusation: tuple[Realm, Evidence]) -> str:
        realm, evidence = accusation
        document = evidences.from_document(evidences.to_document(realm, evidence, 1))
        return str(evidences.judge(realm, document).standing)


def _replayed(realm: Realm, message: bytes) -> tuple[MemoryStore, State]:
    """A verifier's database after a lawful message."""
    store = MemoryStore()
    outcome = apply_message(store, realm, load_state(store, realm), message)
    assert outcome.stop is None, "the stream before the attack is lawful"
    store.write(outcome.writes)
    return store, outcome.state
