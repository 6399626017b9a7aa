"""Those who lie: a replica that signs other heads, a Raft leader that shows a follower another log, a
verifier that ratifies what never was, a client that wants what is not its own.

They know everything and hold their own keys, nobody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from e2eks.v1 import peers_pb2, types_pb2
from workload.cast import Key, draft

from keyserver.machine import commands, views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AdmitVerifier, Delimiter, SignHead, SubmitUpdate, Tick
from keyserver.signer import composed_message
from keyserver.verifier_log import encode_page
from replication.raft.messages import APPLICATION
from simulator.cast import user
from simulator.network import Unanswered
from simulator.world import MS, World
from verifier import encoding, proof_encoding
from verifier.crypto import hashing
from verifier.epoch import replica_message, verifier_message
from verifier.errors import E2eksError, Malformed
from verifier.signonce import BelowFloor
from verifier.types import EpochHead, EpochStep, Ratification, UpdateStep

if TYPE_CHECKING:
    from simulator.process import ReplicaProcess
    from simulator.replica import ReplicaSite
    from simulator.verifier import VerifierSite


def forged_head(head: EpochHead) -> bytes:
    """Another head of the same epoch."""
    message = types_pb2.EpochHead.FromString(head.encoded)
    message.root_hash = hashing.sha256(message.root_hash)
    return message.SerializeToString(deterministic=True)


def signed_by_replica(head: bytes, key: Key) -> bytes:
    issued = encoding.decode_head(head).issue_time_ms
    made = Ratification(issued, (key.signature(replica_message(head, issued)),))
    return encoding.encode_signed_head(head, [made])


def word_on(world: World, site: ReplicaSite, head: bytes) -> bytes:
    """A ShowHeadRequest in which this replica stands for a head."""
    key, parsed = site.key, encoding.decode_head(head)
    word = peers_pb2.ShownHead(
        head=head,
        key_id=key.id,
        composed=key.sign(composed_message(world.cast.realm.hash, parsed.epoch, parsed.hash)),
        signature=key.sign(replica_message(head, parsed.issue_time_ms)),
    )
    return peers_pb2.ShowHeadRequest(shown=word).SerializeToString(deterministic=True)


LIES = ("head", "head", "head", "rules", "past", "gap", "repeated", "garbled")


def _nobody(_: object) -> None: ...


def _unsigned(_: bytes, **__: object) -> bytes:
    raise BelowFloor("a liar withholds its signature")


class LyingReplica:
    """Signs another head than its own, shows it to everybody, and alters what it serves."""

    def __init__(self, world: World, site: ReplicaSite, rng: Random) -> None:
        self.world, self.site, self.rng = world, site, rng
        self.lies = True
        self.withholds = rng.random() < 0.5  # its true signatures
        site.tainted, site.key_at_large = site.tainted or "lies", True
        site.falsify, site.false_steps = self.falsified, self.steps
        self._lure()
        self._speak()

    def stop(self) -> None:
        self.lies = False
        self.site.falsify = self.site.false_steps = None
        process = self.site.process
        if process is not None:
            vars(process.signer).pop("sign_head", None)

    def _lure(self) -> None:
        """Verifiers follow it, even after what it showed them; their operators look at evidence too late."""
        for number in range(self.world.plan.verifiers):
            verifier = self.world.sites[f"v{number}"]
            if self.rng.random() < 0.5:
                verifier.follow(self.site.number)
                verifier.stopped_by = ""
                verifier.start()

    def _speak(self) -> None:
        process = self.site.process
        if not self.lies:
            return
        self._lure()
        if process is not None and process.replica.state.epoch and not self.site.paused:
            process.watch.accuse = _nobody  # it does not mind what it finds of its own key
            if self.withholds:
                process.signer.sign_head = _unsigned
            epoch = process.replica.state.epoch
            forged = forged_head(views.head_at(process.store, epoch))
            shown = signed_by_replica(forged, self.site.key)
            self.world.judges.forged(self.site.key.id, shown)
            made = encoding.decode_signed_head(shown).ratifications[0].signatures[0].signature
            word = word_on(self.world, self.site, forged)
            for member in self.world.members:
                if member != self.site.name:
                    with suppress(Unanswered, E2eksError):
                        self.site.call_peer(member, "ShowHead", word)
            with suppress(E2eksError):
                process.proposer.submit(SignHead(epoch, hashing.head_hash(forged), made))
                self.site.wake()
            with suppress(E2eksError):
                for _ in range(3):
                    process.proposer.submit(self._unlawful(process))
            self.world.fired("lying_replica", self.site.name)
        self.world.after(self.rng.randint(200, 600) * MS, self._speak)

    def _unlawful(self, process: ReplicaProcess) -> commands.Command:
        """A command that no replica may give, or not now."""
        state, epoch = process.replica.state, process.replica.state.epoch
        head, now_ms = views.head_at(process.store, epoch), self.site.clock()
        chosen: commands.Command = self.rng.choice(
            [
                Delimiter(epoch + 1, state.issue_time_ms + 1),
                Delimiter(epoch + 1, now_ms),
                Delimiter(epoch + 1, now_ms + 3_600_000),
                Delimiter(epoch + 2, now_ms),
                SignHead(epoch, head.hash, bytes(64)),
                SignHead(epoch + 1, head.hash, bytes(64)),
                AdmitVerifier(Key("device", "eve").public_key),
            ]
        )
        return chosen

    def steps(self, start: int) -> bytes | None:
        """A page of the verifier log that is true up to a step that is not."""
        process = self.site.process
        assert process is not None
        made = views.verifier_steps(process.store, start, 32 * 1024, self.rng.randint(1, 20))
        past = views.verifier_steps(process.store, max(start - 9, 1), 32 * 1024, 9)
        index, lie = start + len(made), self.rng.choice(LIES)
        if lie == "garbled":
            return self.falsified(encode_page(made or past))
        omitting = _without_an_update(made)
        if omitting is not None and self.rng.random() < 0.6:
            return omitting
        if lie in ("head", "rules"):
            for place, raw in enumerate(made):
                true = proof_encoding.decode_step(raw)
                if isinstance(true, EpochStep):
                    head = self._other(true, lie, process)
                    return encode_page([*made[:place], proof_encoding.encode_epoch_step(true.index, head)])
        for raw in (*reversed(made), *reversed(past)):
            step = proof_encoding.decode_step(raw)
            if lie == "gap":
                return encode_page([*made, raw])
            if lie == "repeated" and isinstance(step, UpdateStep):
                return encode_page([*made, proof_encoding.encode_update_step(index, step.update.encoded)])
            if lie != "repeated" and isinstance(step, EpochStep):
                head = self._other(step, lie, process)
                return encode_page([*made, proof_encoding.encode_epoch_step(index, head)])
        return None

    def _other(self, step: EpochStep, lie: str, process: ReplicaProcess) -> bytes:
        """In the place of a signed head: an old one, or one that this replica alone has signed."""
        if lie == "past":
            return views.signed_head(process.store, self.rng.randint(1, step.head.head.epoch))
        other = types_pb2.EpochHead.FromString(step.head.head.encoded)
        other.issue_time_ms += 1
        other.rules += lie == "rules"
        shown = signed_by_replica(other.SerializeToString(deterministic=True), self.site.key)
        self.world.judges.forged(self.site.key.id, shown)
        return shown

    def falsified(self, answer: bytes) -> bytes:
        """An answer with something changed in it, if there is anything in it."""
        if self.rng.random() < 0.3 or not answer:
            return answer
        changed = bytearray(answer)
        changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
        return bytes(changed)


class LyingLeader:
    """While it leads, shows one follower another log, and signs the heads of both."""

    def __init__(self, world: World, site: ReplicaSite, victim: ReplicaSite, rng: Random) -> None:
        self.world, self.site, self.victim, self.rng = world, site, victim, rng
        self._told: dict[int, bytes] = {}
        site.tainted, site.key_at_large = site.tainted or "lies as leader", True
        site.lie, site.words = self.lie, self.words

    def stop(self) -> None:
        self.site.lie = self.site.words = None

    def words(self, member: str, request: bytes) -> bytes:
        """To the victim its own head."""
        epoch = encoding.decode_head(peers_pb2.ShowHeadRequest.FromString(request).shown.head).epoch
        process = self.victim.process
        if member != self.victim.name or process is None or process.replica.state.epoch < epoch:
            return request
        return word_on(self.world, self.site, views.head_at(process.store, epoch).encoded)

    def lie(self, member: str, message: Any) -> Any:
        if member != self.victim.name or message["type"] != "append_entries":
            return message
        entries = tuple(
            (self._tell(command, index), index, term) for command, index, term in message["entries"]
        )
        return {**message, "entries": entries}

    def _tell(self, command: bytes, index: int) -> bytes:
        if index not in self._told:
            self._told[index] = command
            other = self._other(command[1:]) if command[:1] == APPLICATION else None
            if other is not None:
                self._told[index] = APPLICATION + other
                self.world.log_forged = True
                self.world.fired("lying_leader", self.site.name)
        return self._told[index]

    def _other(self, payload: bytes) -> bytes | None:
        """What the victim is shown instead, if anything."""
        try:
            envelope = commands.decode_log_entry(payload).envelope
        except Malformed:
            return None
        # With a second false clock a majority would be wrong, which no promise covers.
        time_ms = min(envelope.time_ms, self.site.clock())
        for command in envelope.commands:
            match command:
                case Delimiter(epoch, at):
                    return self._entry(Delimiter(epoch, at + 1), time_ms)
                case SignHead(epoch) if envelope.replica == self.site.key.id:
                    return self._other_signature(epoch, time_ms)
                case SubmitUpdate() if self.rng.random() < 0.5:
                    return self._entry(Tick(), time_ms)
        return None

    def _other_signature(self, epoch: int, time_ms: int) -> bytes | None:
        process = self.victim.process
        if process is None or process.replica.state.epoch < epoch:
            return None
        head = views.head_at(process.store, epoch)
        shown = signed_by_replica(head.encoded, self.site.key)
        self.world.judges.forged(self.site.key.id, shown)
        made = self.site.key.sign(replica_message(head.encoded, head.issue_time_ms))
        return self._entry(SignHead(epoch, head.hash, made), time_ms)

    def _entry(self, command: commands.Command, time_ms: int) -> bytes:
        encoded = commands.encode_command(command)
        envelope = commands.encode_envelope(replica=self.site.key.id, time_ms=time_ms, commands=[encoded])
        message = commands.envelope_message(self.world.cast.realm.hash, envelope)
        return commands.encode_log_entry(envelope, self.site.key.sign(message))


def _without_an_update(made: Sequence[bytes]) -> bytes | None:
    """A page that leaves out the update before a head."""
    steps = [proof_encoding.decode_step(raw) for raw in made]
    for place, (before, step) in enumerate(pairwise(steps)):
        if isinstance(before, UpdateStep) and isinstance(step, EpochStep):
            head = proof_encoding.encode_epoch_step(before.index, step.head.encoded)
            return encode_page([*made[:place], head])
    return None


class ByzantineVerifier:
    """Ratifies other heads beside the true ones, pushes them and shows them to the other verifiers."""

    def __init__(self, world: World, site: VerifierSite, rng: Random) -> None:
        self.world, self.site, self.rng = world, site, rng
        self.lies = True
        site.tainted = "lies"
        site.serves = self._served
        self._speak()

    def stop(self) -> None:
        self.lies = False
        self.site.serves = None

    def _forged(self, head: EpochHead) -> bytes:
        other, now_ms = forged_head(head), self.site.clock()
        made = Ratification(now_ms, (self.site.key.signature(verifier_message(other, now_ms)),))
        shown = encoding.encode_signed_head(other, [made])
        self.world.judges.forged(self.site.key.id, shown)
        self.world.fired("byzantine_verifier", self.site.name)
        return shown

    def _truth(self) -> EpochHead | None:
        site = self.world.sites[self.rng.choice(self.world.members)]
        process = site.process
        if process is None or not process.replica.state.signed_epoch:
            return None
        return views.head_at(process.store, self.rng.randint(1, process.replica.state.signed_epoch))

    def _served(self, epoch: int) -> bytes | None:
        head = self._truth()
        return None if head is None else self._forged(head)

    def _speak(self) -> None:
        if not self.lies:
            return
        head = self._truth()
        if head is not None:
            target = self.world.sites[self.rng.choice(self.world.members)]
            forged = self._forged(head)
            with suppress(Unanswered, E2eksError):
                self.world.network.call(
                    self.site.name,
                    target.name,
                    lambda: target.take_push(forged, self.site.key.id, lambda _: None),
                )
        self.world.after(self.rng.randint(200, 600) * MS, self._speak)


class ByzantineClient:
    """Proposes what the law of updates forbids, past the checks of the edge."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world, self.rng = world, rng
        self.lies = True
        self.eve = Key("device", "eve")
        self.number = 0
        self._ask()

    def stop(self) -> None:
        self.lies = False

    def _ask(self) -> None:
        if not self.lies:
            return
        site: ReplicaSite = self.world.sites[self.rng.choice(self.world.members)]
        self.number += 1
        made = self._unlawful()
        if made is not None and site.process is not None and not site.paused:
            with suppress(E2eksError, Unanswered):
                site.take_update(made.command, made.part, self._decided)
                self.world.fired("byzantine_client", site.name)
        self.world.after(self.rng.randint(100, 400) * MS, self._ask)

    def _decided(self, code: Code, _: int) -> None:
        self.world.judges.unlawful(code)

    def _pretended(self, replicas: list[Key]) -> list[Any]:
        """Endorsers who are nobody, or who bear replicas' names and have other keys."""
        outsiders = [Key("outsider", number) for number in range(len(replicas))]
        if self.rng.random() < 0.5:
            return outsiders
        return [
            SimpleNamespace(id=true.id, sign=false.sign)
            for true, false in zip(replicas, outsiders, strict=True)
        ]

    def _unlawful(self) -> Any:
        realm, rng = self.world.cast.realm, self.rng
        replicas = list(self.world.cast.replicas)
        client = self.world.clients[0]
        known = [one for one in client.users if one.version is not None and not one.revoked]
        fresh = user(1000 + self.number)
        label = f"eve{self.number}"
        if not known or rng.random() < 0.4:
            few = replicas[: (len(replicas) - 1) // 2]
            kind = rng.randrange(3)
            if kind == 0:
                return draft(realm, fresh, label=label)
            if kind == 1:
                return draft(realm, fresh, endorsers=few, label=label)
            return draft(realm, fresh, endorsers=self._pretended(replicas), label=label)
        chosen = rng.choice(known)
        changes: dict[str, Any] = rng.choice(
            [
                {"signers": [self.eve]},
                {"signers": [self.eve], "new_keys": [self.eve]},
                {"version": chosen.next_version + 7},
                {"previous": bytes(32)},
                {"version": 0, "previous": b""},
                {"signers": [self.eve], "revocation": True, "version": chosen.next_version + 5},
            ]
        )
        return draft(realm, chosen, label=label, **changes)
