"""A client with some users: changes their entries, believes only proofs, remembers what it has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from e2eks.v1 import client_pb2
from workload.cast import Draft, User, draft

from keyserver import requests
from keyserver.machine.codes import Code
from keyserver.machine.commands import Endorsement, SubmitUpdate
from simulator.cast import user
from simulator.network import Unanswered
from simulator.world import MS, World
from verifier import proof_encoding
from verifier.consistency import verify_consistency
from verifier.errors import E2eksError, NotRatified, Refused
from verifier.lookup import LookupResult, Trust, verify_lookup
from verifier.types import SignedHead

if TYPE_CHECKING:
    from simulator.replica import ReplicaSite

TIMEOUT_US = 2_500 * MS
NOT_AFTER_MS = 2**62
TRIES_MAX = 40


@dataclass
class Change:
    """An update under way."""

    user: User
    draft: Draft
    begun: int
    tries: int = 0
    turn: int = 0  # answers to earlier tries are passed over


class Client:
    """Changes one user after another until told to stop; several at a time."""

    def __init__(self, world: World, number: int, users: range, at_once: int) -> None:
        self.world, self.name = world, f"c{number}"
        self.rng = world.chance("client", self.name)
        self.users = [user(one) for one in users]
        self.open: dict[str, Change] = {}
        self.pinned: SignedHead | None = None
        self.pinned_epoch = 0
        self.stopped = False
        self.runs, self.paused = True, False
        self.pause_ms = world.plan.think_ms
        for _ in range(at_once):
            self._later(self._begin)

    def _later(self, do, wait_ms: int | None = None) -> None:  # type: ignore[no-untyped-def]
        spread = self.rng.randint(1, 2 * self.pause_ms) if wait_ms is None else wait_ms
        self.world.after(spread * MS, do)

    # Changing

    def _begin(self) -> None:
        idle = [one for one in self.users if one.user_id not in self.open]
        if self.stopped or not idle:
            self._later(self._begin) if not self.stopped else None
            return
        if self.rng.random() < 0.15:
            self._look(self.rng.choice(self.users))
        chosen = self.rng.choice(idle)
        change = Change(chosen, self._draft(chosen), self.world.now)
        self.open[chosen.user_id] = change
        self._try(change)

    def _draft(self, chosen: User) -> Draft:
        if chosen.version is None or chosen.revoked:
            return draft(self.world.cast.realm, chosen, proof=b"")
        return draft(self.world.cast.realm, chosen, revocation=self.rng.random() < 0.05)

    def _try(self, change: Change) -> None:
        if self.open.get(change.user.user_id) is not change:
            return
        change.tries += 1
        change.turn += 1
        turn = change.turn
        site = self.world.sites[self.rng.choice(self.world.members)]
        try:
            command = self._endorsed(change)
            answer = Answer(self, change, turn, site)
            self.world.network.call(
                self.name, site.name, lambda: site.take_update(command, change.draft.part, answer)
            )
            wait = TIMEOUT_US
        except (Unanswered, Refused):
            wait = 150 * MS
        self.world.after(wait + self.rng.randint(0, 100) * MS, lambda: self._again(change, turn))

    def _again(self, change: Change, turn: int) -> None:
        if change.turn == turn:
            self._try(change)

    def _endorsed(self, change: Change) -> SubmitUpdate:
        """With f + 1 endorsements where it is a registration. Raises Unanswered."""
        command, entry = change.draft.command, change.draft.command.update.entry
        if entry.version and not (change.user.revoked and not entry.revocation):
            return command
        proof_id = command.update.entry.hash
        wanted = (len(self.world.members) - 1) // 2 + 1
        made: list[Endorsement] = []
        for member in self.rng.sample(self.world.members, len(self.world.members)):
            site: ReplicaSite = self.world.sites[member]
            try:
                made.append(
                    self.world.network.call(
                        self.name, member, lambda site=site: site.endorse(command, proof_id, NOT_AFTER_MS)
                    )
                )
            except (Unanswered, E2eksError):
                continue
            if len(made) == wanted:
                return SubmitUpdate(command.update, command.private_hash, tuple(made), proof_id)
        raise Unanswered

    def decided(self, change: Change, turn: int, site: ReplicaSite, code: Code, since: int) -> None:
        """The log has decided; wait for the proof, or begin anew."""
        if self.open.get(change.user.user_id) is not change:
            return
        if code is Code.APPLIED:
            process = site.process
            if process is not None:
                process.when_ratified(since, lambda epoch: self._proof(change, site, epoch))
        else:
            self.world.judges.refused(self, change, code)

    def _proof(self, change: Change, site: ReplicaSite, epoch: int) -> None:
        asked = requests.decode_lookup(self._request(change.user.user_id), self.world.cast.realm)
        raw = site.serve(lambda process: process.proof_at(change.user.user_id, epoch, asked))
        wait = self.world.network.delay_us(site.name)
        self.world.after(wait, lambda: self._received(change, site, raw))

    def _received(self, change: Change, site: ReplicaSite, raw: bytes) -> None:
        if self.open.get(change.user.user_id) is not change:
            return
        if {(site.name, self.name), (self.name, site.name)} & self.world.network.cuts:
            return
        result = self._verify(site, change.user.user_id, raw)
        if result is None or result.proof.entry is None:
            return
        if result.proof.entry.hash != change.draft.command.update.entry.hash:
            self.world.judges.wrong_entry(self, site, change)
            return
        del self.open[change.user.user_id]
        change.user.accepted(change.draft.entry)
        self.world.note(self.name, "acknowledged", change.user.user_id, result.head.head.epoch)
        self.world.judges.acknowledged(self, change, result)
        self._later(self._begin)

    # Reading

    def _request(self, user_id: str, epoch: int = 0) -> bytes:
        asked = client_pb2.LookupRequest(user_id=user_id, epoch=epoch)
        if not epoch:
            asked.min_epoch = self.pinned_epoch
        return asked.SerializeToString(deterministic=True)

    def _look(self, chosen: User) -> None:
        """Look a user up at some replica, and whether its history continues what was seen."""
        site: ReplicaSite = self.world.sites[self.rng.choice(self.world.members)]
        epoch = self.rng.randint(1, self.pinned_epoch) if self.pinned_epoch and self.rng.random() < 0.3 else 0
        request = self._request(chosen.user_id, epoch)
        try:
            raw = self.world.network.call(self.name, site.name, lambda: site.lookup(request))
        except (Unanswered, Refused):
            return
        held = self.pinned
        if self._verify(site, chosen.user_id, raw, epoch) is not None and held is not None:
            self._check_history(site, held)

    def _trust(self, *, epoch: int = 0) -> Trust:
        realm = self.world.cast.realm
        quorum = realm.verification_policy.quorum
        return Trust(realm, quorum, realm.genesis_policy, self.pinned, self.pinned_epoch)

    def _verify(self, site: ReplicaSite, user_id: str, raw: bytes, epoch: int = 0) -> LookupResult | None:
        """What a served proof proves; None where it does not, which its judge hears of."""
        now_ms = site.clock.true_ms()
        try:
            result = verify_lookup(self._trust(), user_id, raw, now_ms=now_ms, epoch=epoch, saved=True)
        except NotRatified as refused:
            self.world.judges.not_believed(self, site, refused)
            return None
        except E2eksError as refused:
            self.world.judges.refuted(self, site, refused)
            return None
        self.world.judges.believed(self, site, result)
        head = result.head
        if epoch == 0:
            self.pinned_epoch = max(self.pinned_epoch, head.head.epoch)
        if self.pinned is None or head.head.epoch > self.pinned.head.epoch:
            self.pinned = head
        return result

    def _check_history(self, site: ReplicaSite, held: SignedHead) -> None:
        asked = client_pb2.ConsistencyRequest(old_epoch=held.head.epoch)
        request = asked.SerializeToString(deterministic=True)
        try:
            raw = self.world.network.call(self.name, site.name, lambda: site.consistency(request))
        except (Unanswered, Refused):
            return
        try:
            proof = proof_encoding.decode_consistency_proof(raw)
            verify_consistency(self._trust(), held, proof)
        except NotRatified:
            return
        except E2eksError as refused:
            self.world.judges.refuted(self, site, refused)


@dataclass
class Answer:
    """Where a replica's verdict on an update goes."""

    client: Client
    change: Change
    turn: int
    site: ReplicaSite

    def __call__(self, code: Code, since: int) -> None:
        self.client.decided(self.change, self.turn, self.site, code, since)
