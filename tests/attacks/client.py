"""The client: a keyserver that knows the keys of nobody, of too few, or of everybody and lies all the same.

A scene is a client, what it has seen, and a realm that answers its next question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb
from samples import ALICE, BOB, EVE, REALM, REPLICAS, VERIFIERS, key, make_realm, nonce_of, sign_head
from simulated_realm import SimulatedRealm, signing_key
from simulated_realm.asking import KEYS, OTHER, USER, three_epochs

from attacks.surface import Surface, flipped
from verifier import encoding
from verifier import realm as realms
from verifier.client.client import Client
from verifier.client.contexts import Context, Contexts
from verifier.client.outcome import status_of
from verifier.client.pins import MemoryPins
from verifier.errors import E2eksError, Reason, Refused
from verifier.lookup import LookupResult
from verifier.types import QuorumExpr, Realm

EVIL = {"ssh": b"ssh-ed25519 evil"}
FRESH = tuple(key(f"new-replica-{number}") for number in range(3))

Change = Callable[[client_pb2.LookupProof], object]


def forked(world: SimulatedRealm, further: int = 0) -> SimulatedRealm:
    """The same keys, another last epoch, and some more."""
    other = world.without_last()
    other.put(USER, EVIL, EVE)
    for _ in range(further + 1):
        other.close()
    return other


@dataclass
class Scene:
    """`ask` is the next question to `world`."""

    world: SimulatedRealm
    pins: MemoryPins = field(default_factory=MemoryPins)
    quorum: QuorumExpr | None = None
    trusted: Realm = REALM
    ask: Callable[[Client], LookupResult] = lambda client: client.lookup(USER)

    @property
    def client(self) -> Client:
        return Client(self.trusted, self.world, self.pins, clock=self.world.now_ms, quorum=self.quorum)

    def answering(self, change: Change) -> Scene:
        """Every lookup is answered with a changed proof."""

        def rewrite(raw: bytes) -> bytes:
            proof = client_pb2.LookupProof.FromString(raw)
            change(proof)
            return encoding.canonical(proof)

        self.world.tampering["Lookup"] = rewrite
        return self


class ClientSurface(Surface):
    def judge_lookup(self, scene: Scene) -> str:
        """The status the user sees. A refused answer leaves no trace in what the client trusts."""
        before = scene.pins.load()
        try:
            return status_of(scene.ask(scene.client))
        except E2eksError:
            after = scene.pins.load()
            assert (after.newest, after.epochs) == (before.newest, before.epochs), (
                "a refused answer was pinned"
            )
            raise

    def make_honest(
        self, user: str = USER, epoch: int = 0, seen: bool = False, late_ms: int = 0, further: int = 0
    ) -> Scene:
        """A realm that answers truly, `further` epochs after the client has `seen` it, or never had."""
        scene = Scene(three_epochs(), ask=lambda client: client.lookup(user, epoch))
        if seen:
            scene.client.lookup(USER)
        for _ in range(further):
            scene.world.close()
        scene.world.late_ms = late_ms
        return scene

    # What the answer is about

    def make_answer_about(self, user: str, renamed: bool) -> Scene:
        """The true proof of another user, perhaps with our user's name on it."""
        scene = Scene(three_epochs())
        other = client_pb2.LookupProof.FromString(scene.world.lookup(user, 3))
        other.user_id = USER if renamed else user
        return scene.answering(lambda proof: proof.CopyFrom(other))

    def make_answer_with(self, field: str, data: str = "", flip: int = -1) -> Scene:
        """One field of the proof replaced, or one of its bits turned."""

        def change(proof: client_pb2.LookupProof) -> None:
            old: bytes = getattr(proof, field)
            setattr(proof, field, bytes.fromhex(data) if flip < 0 else flipped(old, flip))

        return Scene(three_epochs()).answering(change)

    def make_profile_swapped(self) -> Scene:
        return Scene(three_epochs()).answering(
            lambda proof: setattr(proof, "profile", encoding.encode_profile(EVIL))
        )

    def make_older_profile(self) -> Scene:
        """The keys and the nonce of the version before, beside the newest entry."""
        scene = Scene(three_epochs())
        scene.world.put(USER, {"ssh": b"ssh-ed25519 alice's new key"})
        scene.world.close()

        def change(proof: client_pb2.LookupProof) -> None:
            proof.profile, proof.profile_nonce = encoding.encode_profile(KEYS), nonce_of(USER, 0)

        return scene.answering(change)

    def make_answer_of_another_realm(self, like_ours: str) -> Scene:
        """A realm of other replicas that has our name, or another name with our replicas."""
        other = {
            "name": make_realm(replicas=(key("r-other"),)),
            "replicas": make_realm(name="example.com"),
        }[like_ours]
        world = three_epochs(other)
        if like_ours == "name":
            world.replicas = [(key("r-other"),)] * world.epoch
        return Scene(world)

    def make_rules(self, level: int) -> Scene:
        """A head of another rules level, signed by everybody."""
        scene = Scene(three_epochs())
        message = pb.EpochHead.FromString(scene.world.directory.heads[-1])
        message.rules = level
        signed = sign_head(encoding.canonical(message))
        return scene.answering(lambda proof: proof.head.ParseFromString(signed.encoded))

    # Erased and revoked

    def make_erased(self, shown: str) -> Scene:
        """An entry whose keys were erased; the server may make some up."""
        scene = Scene(three_epochs())
        scene.world.erase(USER)
        scene.world.close()
        profile = encoding.encode_profile(EVIL)
        changes: Mapping[str, Change] = {
            "nothing": lambda _: None,
            "keys and a nonce": lambda proof: proof.MergeFrom(
                client_pb2.LookupProof(profile=profile, profile_nonce=bytes(32))
            ),
            "keys alone": lambda proof: setattr(proof, "profile", profile),
            "a nonce alone": lambda proof: setattr(proof, "profile_nonce", nonce_of(USER, 0)),
        }
        return scene.answering(changes[shown])

    def make_revoked(self, shown: str) -> Scene:
        """A revoked entry; the server may show it, or the one before it."""
        scene = Scene(three_epochs())
        world = scene.world
        before = client_pb2.LookupProof.FromString(world.lookup(USER, 3))
        world.revoke(USER)
        world.close()

        def change(proof: client_pb2.LookupProof) -> None:
            if shown == "the entry before":
                proof.entry, proof.profile = before.entry, before.profile
                proof.profile_nonce = before.profile_nonce

        return scene.answering(change)

    # Who signed, and when

    def make_signed_by(self, replicas: int, verifiers: int, verifiers_late_ms: int = 1000) -> Scene:
        scene = Scene(three_epochs())
        head = scene.world.directory.heads[-1]
        at = encoding.decode_head(head).issue_time_ms + verifiers_late_ms
        signed = sign_head(head, REPLICAS[:replicas], VERIFIERS[:verifiers], verifier_time_ms=at)
        return scene.answering(lambda proof: proof.head.ParseFromString(signed.encoded))

    def make_signatures_of_the_head_before(self) -> Scene:
        scene = Scene(three_epochs())
        before = pb.SignedEpochHead.FromString(scene.world.head(2).encoded)

        def change(proof: client_pb2.LookupProof) -> None:
            del proof.head.ratifications[:]
            proof.head.ratifications.extend(before.ratifications)

        return scene.answering(change)

    # What was seen before

    def make_older_answer(self, ask: int = 0) -> Scene:
        """Epoch 2 to a client that has seen epoch 3."""
        scene = Scene(three_epochs(), ask=lambda client: client.lookup(USER, ask))
        scene.client.lookup(USER)
        world = scene.world
        world.tampering["Lookup"] = lambda _: world.lookup(USER, 2)
        return scene

    def make_behind(self, seen: bool, epoch: int) -> Scene:
        """Every server says that it has no epoch above `epoch`."""
        scene = self.make_honest(seen=seen)
        scene.world.behind = dict.fromkeys(scene.world.addresses, epoch)
        return scene

    def make_fork(self, further: int = 0, late_ms: int = 0) -> Scene:
        """Another third epoch for a client that has seen the first one, `further` epochs later."""
        scene = self.make_honest(seen=True)
        scene.world = forked(scene.world, further)
        scene.world.late_ms = late_ms
        return scene

    def make_fork_without_signatures(self) -> Scene:
        """The same, but nobody signed it: rubbish, and no evidence against anybody."""
        scene = self.make_fork()
        head = scene.world.directory.heads[-1]
        return scene.answering(lambda proof: proof.head.CopyFrom(pb.SignedEpochHead(head=head)))

    def make_historic_of_a_fork(self) -> Scene:
        """Epoch 3 of another history, before the newest head of ours."""
        scene = Scene(three_epochs(), ask=lambda client: client.lookup(USER, 3))
        other = forked(scene.world, 2)
        for _ in range(2):
            scene.world.close()
        scene.world.tampering["Lookup"] = lambda _: other.lookup(USER, 3)
        return scene

    def make_consistency(self, how: str) -> Scene:
        """A newer answer, whose consistency proof is withheld or spoiled."""
        scene = self.make_honest(seen=True, further=3)
        if how == "withheld":
            scene.world.refusals["Consistency"] = Refused(Reason.NOT_READY, "not now")
        else:
            spoil = {"with a tail": lambda raw: raw + b"\x00", "empty": lambda _: b""}[how]
            scene.world.tampering["Consistency"] = spoil
        return scene

    # The replicas' policy

    def make_rotated(self, chain: str = "whole") -> Scene:
        """Replicas changed in epoch 4; the client's quorum asks for a new one and a verifier."""
        world = three_epochs()
        world.close(next_replicas=FRESH)
        world.close()
        sides = tuple(QuorumExpr(1, tuple(k.id for k in keys)) for keys in (FRESH, VERIFIERS))
        if chain == "withheld":
            world.refusals["PolicyHeads"] = Refused(Reason.NOT_READY, "not now")
        elif chain == "unsigned":
            world.tampering["PolicyHeads"] = lambda raw: encoding.encode_signed_head(
                encoding.decode_signed_head(raw).head.encoded, []
            )
        elif chain == "of a head without a change":
            world.tampering["PolicyHeads"] = lambda _: world.head(2).encoded
        return Scene(world, quorum=QuorumExpr(2, (), sides))

    def make_rotated_otherwise(self) -> Scene:
        """A chain that names other replicas than the one the client knows."""
        scene = self.make_rotated()
        scene.client.lookup(USER)
        other = three_epochs()
        other.close(next_replicas=(EVE, BOB, key("third")))
        other.close()
        scene.world = other
        return scene

    # Updates

    def make_update(self, answered: str = "truly") -> Scene:
        """Alice changes her keys; the server answers as if it had done so."""
        new = {"ssh": b"ssh-ed25519 alice's new key"}
        scene = Scene(three_epochs())
        draft = scene.client.draft_update(USER, new, [signing_key(ALICE)])
        scene.ask = lambda client: client.submit(draft).result
        world = scene.world
        if answered == "with the old entry":
            world.closes_on_update = False
        elif answered == "without the keys":
            world.tampering["Update"] = lambda raw: encoding.canonical(_without_keys(raw))
        elif answered == "about another user":
            world.tampering["Update"] = lambda _: world.lookup(OTHER, world.epoch)
        return scene

    # Files: saved proofs, realm files

    def make_saved(
        self, user: str = USER, after_ms: int = 1000, fork: bool = False, cut: int = 0, seen: bool = True
    ) -> Scene:
        """A saved proof of alice at epoch 3, read for `user` so long after its head."""
        scene = self.make_honest(seen=seen)
        proof = (forked(scene.world) if fork else scene.world).lookup(USER, 3)
        at_ms = scene.world.head(3).head.issue_time_ms + after_ms
        shown = proof[: len(proof) - cut]
        scene.ask = lambda client: client.verify_saved(shown, user_id=user, at_ms=at_ms).result
        return scene

    def make_published_realm(self, replicas: Sequence[str]) -> Scene:
        """What a server publishes as the realm's file, to a client that trusts ours."""
        named = {"ours": REPLICAS, "others": (key("r-other"),)}[replicas[0]]
        return Scene(SimulatedRealm(make_realm(replicas=named)))

    def judge_published(self, scene: Scene) -> str:
        return Client(REALM, scene.world, scene.pins, clock=lambda: 0).fetch_realm().name

    def make_context(self, name: str = "work", told: str = "right", quorum: str = "") -> dict[str, Any]:
        """A realm file to trust, and the fingerprint its user was told."""
        right = realms.fingerprint(REALM)
        return {
            "name": name,
            "fingerprint": right if told == "right" else right[:-1] + ("A" if right[-1] != "A" else "B"),
            "realm": _split_realm() if quorum == "any verifier" else REALM,
        }

    def make_other_context(self, realm: str) -> dict[str, Any]:
        """Another file under a name that is known, without a fingerprint."""
        Contexts(self.folder).add(Context("work", REALM, None), fingerprint=None, allow_split_view=False)
        other = {"ours": REALM, "other replicas": make_realm(replicas=(key("r-other"),))}[realm]
        return {"name": "work", "fingerprint": None, "realm": other}

    def judge_context(self, asked: Mapping[str, Any]) -> str:
        context = Context(asked["name"], asked["realm"], None)
        fingerprint = asked["fingerprint"] if asked["realm"] == REALM else None
        contexts = Contexts(Path(self.folder))
        contexts.add(context, fingerprint=fingerprint, allow_split_view=False)
        return "trusted"


def _without_keys(raw: bytes) -> client_pb2.LookupProof:
    proof = client_pb2.LookupProof.FromString(raw)
    proof.profile = proof.profile_nonce = b""
    return proof


def _split_realm() -> Realm:
    """A realm whose quorum any one verifier satisfies, with the replicas' majority."""
    law = REALM.verification_policy
    replicas, verifiers = law.quorum.subexpressions
    sides = (replicas, replace(verifiers, threshold=1))
    made = encoding.make_policy(list(law.keys.values()), replace(law.quorum, subexpressions=sides))
    return replace(REALM, verification_policy=made)
