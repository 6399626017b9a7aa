"""The process of a replica, which is shipped code end to end.

What is written here is only what `run` and `log` of the shipped rooms do under trio, in the same order:
a turn of the driver, then its messages; committed entries applied and written, then announced; then duties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from keyserver import data_directory, own_key, quarantine
from keyserver.config import Epochs
from keyserver.duties import LOOK_AGAIN_MS, Duties
from keyserver.erasure import Blanker
from keyserver.lives import CEILING, Lives
from keyserver.machine import commands, notices, views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AddRatification, SubmitUpdate
from keyserver.machine.erasure import owed_blankings
from keyserver.machine.state import Machine
from keyserver.own_key import KeyWatch
from keyserver.peers.exchange import Exchange
from keyserver.peers.giving_way import GivingWay
from keyserver.peers.lines import Unreached
from keyserver.peers.majority import LOOK_EVERY_S, Majority
from keyserver.peers.service import Peers
from keyserver.proposer import Proposer
from keyserver.replica import Batch, Replica
from keyserver.service import Located, Service
from keyserver.signer import Signer
from keyserver.verifier_log import encode_page
from keyserver.vrf_cache import VrfCache
from replication.raft.codec import Encoder, decode
from replication.raft.driver import Driver
from replication.raft.events import Event, Role, Timing
from replication.raft.journal import Journal
from replication.types import RUN_BYTES_MAX, RUN_ENTRIES_MAX
from simulator.cast import seed_of
from simulator.log import Log
from simulator.network import Unanswered
from simulator.seams import finish
from simulator.world import MS, SECOND
from verifier import encoding
from verifier.errors import Refused
from verifier.signonce import RegisterMissing, SignOnceRegister

if TYPE_CHECKING:
    from simulator.replica import ReplicaSite

Messages = Sequence[tuple[str, Any]]
EPOCHS = Epochs(min_interval_ms=500, max_interval_ms=1_500, retry_interval_ms=250)
TIMING = Timing(election_min_s=0.7, election_max_s=1.4, heartbeat_s=0.2, quorum_s=1.6, settle_s=2.5)
LOOK_EVERY_US = 2 * SECOND
VISIT_EVERY_US = 2 * SECOND
MAJORITY_EVERY_US = round(LOOK_EVERY_S * SECOND)
UPDATE_TIMEOUT_MS = 5_000
NOTHING_COUNTED: Any = SimpleNamespace(
    count=lambda *_, **__: None, set=lambda *_: None, observe=lambda *_: None
)
NO_ENDORSER: Any = None  # clients of the simulator gather endorsements themselves
NO_LIMITS: Any = SimpleNamespace(
    lookup=lambda *_: None, update=lambda *_: None, signed_update=lambda *_: None,
    unknown_names=SimpleNamespace(take=lambda _: None),
)  # fmt: skip


@dataclass
class Waiting:
    """An update or a ratification whose answer is owed to its sender."""

    decided: Callable[[Code, int], None]
    since: int = 0


@dataclass(frozen=True)
class Line:
    """The Peers service of another replica."""

    site: ReplicaSite
    member: str

    async def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        try:
            return self.site.call_peer(self.member, method, request)
        except Unanswered:
            raise Unreached(self.member) from None


class ReplicaProcess:
    """The shipped parts of one running replica. Raises what their opening raises."""

    def __init__(self, site: ReplicaSite) -> None:
        self.site, world = site, site.world
        self.world = world
        self.journal = Journal(site.disk.open_store("log"), commands.public_part)
        self.log = Log(self)
        self.store = site.disk.open_store("db")
        self.signer = open_signer(site)
        data_directory.check_register(self.store, self.log, self.signer)
        for path in self._kept(quarantine.OWN_KEY):
            self.signer.quarantine(f"there is evidence that this key was used elsewhere: {path}")
        self.driver = Driver(
            member=site.name,
            members=world.members,
            journal=self.journal,
            clock=world.seconds,
            chance=world.chance("raft", site.name, site.lives),
            timing=TIMING,
        )
        vrf = VrfCache(self.store, self.signer.vrf_prove, limiter=NO_LIMITS.unknown_names)
        machine = Machine(world.cast.realm, EPOCHS.min_interval_ms)
        self.replica = Replica(machine, self.store, vrf, NOTHING_COUNTED)
        self.driver.know_committed(self.replica.position.index)
        lives, end = Lives(site.register.parent / CEILING), self.journal.last_application
        self.watch = KeyWatch(
            self.replica, self.signer, site.clock,
            log_end=end, ask=lambda _: b"", evidence=site.evidence, former_ms=lives.former_ms,
        )  # fmt: skip
        self.proposer = Proposer(
            self.log, self.signer, site.clock, self.watch.proposed, self.replica.applied.wake, lives,
            lambda: self.replica.state.rules,
        )  # fmt: skip
        chance = world.chance("duties", site.name, site.lives).random
        self.exchange = Exchange(
            self.replica, self.signer, self.proposer, NOTHING_COUNTED, site.clock, site.evidence
        )
        self.exchange.remember(self._kept(quarantine.DIFFERENT))
        self.majority = Majority(self.log, self.proposer, self.replica, site.clock, world.seconds)
        self.giving_way = GivingWay(
            self.log, self.proposer, self.replica, lambda: self.signer.quarantined, world.seconds
        )
        self.lines = [Line(site, member) for member in world.members if member != site.name]
        self.peers = Peers(
            self.replica, self.signer, self.proposer, NO_ENDORSER, self.exchange, (), site.clock
        )
        self.duties = Duties(
            self.replica, self.signer, self.proposer, self.log, EPOCHS, site.clock, chance, self._has_signed
        )
        self.service = Service(
            self.replica, self.proposer, NO_ENDORSER, realm_json=b"", update_timeout_ms=UPDATE_TIMEOUT_MS,
            clock=site.clock, fresh_salt=lambda: bytes(32), rates=NO_LIMITS,
        )  # fmt: skip
        self.blanker = Blanker(self.replica, self.log)  # type: ignore[arg-type]
        self._proposing = self.proposer.run()
        self._rows = self.replica.applied.turn()
        self._waiting: dict[bytes, list[Waiting]] = {}
        self._proofs: list[Callable[[], bool]] = []
        self._duties_at = 0
        self._look_at = self._majority_at = 0
        self._to_show = False
        self._visit_at = 0
        self._standing: tuple[Role | None, int] = (None, 0)

    def _kept(self, about: str) -> list[Path]:
        """The files of evidence that former lives left."""
        start = f"{self.site.evidence}/{about}-"
        return [Path(path) for path in sorted(self.site.disk.files) if path.startswith(start)]

    @property
    def leads(self) -> bool:
        return self.log.leader_hint()

    # One turn

    def run(self, inbox: list[Event]) -> int:
        """Everything there is to do now; microseconds until there is more. Raises StorageError, Halt."""
        self._look()
        turn = self.driver.turn([*inbox, *self.log.take()])
        self.log.turned(turn)
        if (turn.role, turn.term) != self._standing:
            self._standing = turn.role, turn.term
            self.world.note(self.site.name, turn.role, "of term", turn.term)
        self.world.judges.turned(self.site, turn)
        self._send(turn.outgoing)
        self._apply(turn.committed_to)
        self.log.settle(turn)
        if self.world.now >= self._majority_at:
            self._majority_at = self.world.now + MAJORITY_EVERY_US
            self.majority.look()
            self.giving_way.look()
        if self._rows.is_set() or self.world.now >= self._duties_at:
            self._pursue()
        if self._to_show or self.world.now >= self._visit_at:
            self._to_show = False
            self._visit()
        self._proposing.send(None)
        if self.log.has_news or self._rows.is_set():
            return 200
        until = min(self._duties_at, self._visit_at, self._majority_at)
        return min(round(self.driver.wait_s() * SECOND), until - self.world.now)

    def _send(self, outgoing: Any) -> None:
        lie = self.site.lie
        told = [(member, lie(member, message) if lie else message) for member, message in outgoing]
        for member, message in carried(told):
            self.world.network.send(self.site.name, member, message)

    def _apply(self, committed: int) -> None:
        while self.replica.position.index < committed:
            lo = self.replica.position.index + 1
            entries = self.journal.read(lo, min(committed + 1, lo + RUN_ENTRIES_MAX), RUN_BYTES_MAX)
            before = self.replica.position
            batch = self.replica.apply(entries)
            self.watch.see_entries(entries)
            self.watch.see_batch(batch)
            self.replica.announce(batch)
            self.exchange.advanced()
            self.world.judges.applied(self.site, before, entries, batch)
            self._note(batch)
            self._answer(batch)

    def _note(self, batch: Batch) -> None:
        position = batch.position
        self.world.note(self.site.name, "applied", position.index, position.digest)
        for notice in batch.notices:
            if isinstance(notice, notices.HeadComposed | notices.HeadSigned):
                self.world.note(self.site.name, type(notice).__name__, notice.epoch)

    def _has_signed(self) -> None:
        self._to_show = True

    def _pursue(self) -> None:
        self._rows = self.replica.applied.turn()  # BEFORE looking
        pause_ms = LOOK_AGAIN_MS
        if not self.signer.quarantined and not self.proposer.held:
            pause_ms = finish(self.duties.pursue())
        self._duties_at = self.world.now + pause_ms * MS

    def _answer(self, batch: Batch) -> None:
        for notice in batch.notices:
            if isinstance(notice, notices.CommandDecided):
                for waiting in self._waiting.pop(notice.command_id, ()):
                    waiting.decided(notice.code, notice.epoch)
        self._proofs = [answer for answer in self._proofs if not answer()]

    # What others ask

    def submit(
        self, command: SubmitUpdate | AddRatification, part: bytes, decided: Callable[[Code, int], None]
    ) -> None:
        """Raises Refused."""
        until = self.world.seconds() + UPDATE_TIMEOUT_MS / 1000
        command_id = self.proposer.submit(command, part, until)
        self._waiting.setdefault(command_id, []).append(Waiting(decided))
        self.site.wake()

    def update(self, command: SubmitUpdate, part: bytes, decided: Callable[[Code, int], None]) -> None:
        """As `Service.update`: what stands already is not proposed again. Raises Refused."""
        entry = command.update.entry
        found = views.current_entry(self.store, entry.index)
        if found is not None and found.update.entry.hash == entry.hash:
            decided(Code.APPLIED, -found.since_epoch)
        else:
            self.submit(command, part, decided)

    def when_ratified(self, since: int, give: Callable[[int], None]) -> None:
        """Give the epoch to show once there is one: `since`, or one not before it where it is negative."""
        quorum = self.world.cast.realm.verification_policy.quorum

        def answer() -> bool:
            published = self.replica.published
            newest = published.newest(quorum, 0) if since < 0 else None
            if newest is not None and newest >= -since:
                give(newest)
            elif published.is_ratified(since, quorum):
                give(since)
            else:
                return False
            return True

        if not answer():
            self._proofs.append(answer)

    def proof_at(self, user_id: str, epoch: int, lookup: Any) -> bytes:
        place = Located(user_id, *self.replica.vrf.locate(user_id, ""))
        return self.service._proof(self.replica.published, place, epoch, lookup)

    def steps(self, start: int) -> bytes | None:
        """A page of the verifier log, None where there is none yet."""
        if start > self.replica.state.verifier_log_size:
            return None
        return encode_page(views.verifier_steps(self.store, start, 32 * 1024, 200))

    def push(self, request: bytes, key_id: bytes, answer: Callable[[bytes | None], None]) -> None:
        """A verifier's ratification; `answer` gets the response, or None for a refusal. Raises Refused."""
        pushed = encoding.decode_signed_head(request)
        if not self.service._check_pushed(pushed, key_id):
            answer(self.service._standing(key_id))
            return

        def decided(code: Code, _: int) -> None:
            good = code in (Code.APPLIED, Code.DUPLICATE)
            answer(self.service._standing(key_id) if good else None)

        self.submit(AddRatification(pushed), b"", decided)

    # Beside the log

    def _visit(self) -> None:
        """Show the newest head to the other replicas and hear theirs, as `Peers.run` does."""
        self._visit_at = self.world.now + VISIT_EVERY_US
        for line in self.lines:
            with suppress(Unreached, Refused):
                finish(self.peers._show(line))  # type: ignore[arg-type]

    def _look(self) -> None:
        """What verifiers ratified with this replica's signature, BEFORE anything is signed; and erasure."""
        if self.world.now < self._look_at:
            return
        self._look_at = self.world.now + LOOK_EVERY_US
        owed = owed_blankings(self.store, 4)
        if owed and not self.proposer.held:
            finish(self.blanker.pay(owed))
        if self.signer.quarantined:
            return
        for shown in self.site.ask_verifiers():
            found = own_key.unaccounted(self.store, self.world.cast.realm, self.signer, shown)
            if found is not None:
                self.watch.accuse(found)


def carried(outgoing: Messages) -> Messages:
    """The messages of a turn as their receivers decode them. To each member its own encoder: a liar tells
    them different entries of the same names.
    """
    encoders: dict[str, Encoder] = {}
    return [
        (member, decode(encoders.setdefault(member, Encoder()).encode(message)))
        for member, message in outgoing
    ]


def open_signer(site: ReplicaSite) -> Signer:
    """In quarantine where the register is missing."""
    seeds = seed_of("simulated", "replica", site.number), site.world.cast.vrf_seed
    try:
        register = SignOnceRegister.open(site.register, key_id=site.key.id)
    except RegisterMissing as error:
        return Signer(site.world.cast.realm, *seeds, None, why=str(error))
    return Signer(site.world.cast.realm, *seeds, register)
