"""A verifier: the shipped replay, outbox and comparison, in the order of `verifier/daemon/watch.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kv import crash_points
from kv.interface import StorageError
from simulator.cast import seed_of
from simulator.clocks import WallClock
from simulator.disk import Crash
from simulator.network import Unanswered
from simulator.world import MS, Violation, World
from verifier.daemon import ratified
from verifier.daemon.database import check_register
from verifier.daemon.failures import Misbehaved, Quarantined, Unreachable, UpgradeNeeded
from verifier.daemon.outbox import Outbox, Ready, served_head
from verifier.daemon.state import load_state, newest_ratified, owed_epochs
from verifier.daemon.step import Upgrade, apply_message
from verifier.errors import Malformed, Reason, Refused
from verifier.signonce import SignOnceRegister

if TYPE_CHECKING:
    from simulator.replica import ReplicaSite

POLL_US = 70 * MS
RETRY_US = 500 * MS
COMPARE_US = 900 * MS
OWED_AT_ONCE = 4


class VerifierProcess:
    """The shipped parts of a running verifier. Raises StorageError, Quarantined."""

    def __init__(self, site: VerifierSite) -> None:
        self.site, self.world = site, site.world
        self.realm = site.world.cast.realm
        self.store = site.disk.open_store("db")
        register = SignOnceRegister.open(site.register, key_id=site.key.id)
        check_register(self.store, self.realm, register)
        seed = seed_of("simulated", "verifier", site.number)
        self.outbox = Outbox(self.store, register, seed, site.key.id, site.clock)
        self.state = load_state(self.store, self.realm)
        self._asked = False
        self._due: dict[int, int] = {}  # epoch -> not pushed again before
        self._compare_at = 0

    def run(self) -> None:
        """Follow, ratify, deliver, compare. Raises Misbehaved, Quarantined, StorageError."""
        self._follow()
        self._deliver()
        if self.world.now >= self._compare_at:
            self._compare_at = self.world.now + COMPARE_US
            self._compare()

    def _follow(self) -> None:
        source = self.site.source()
        try:
            start = self.state.next_index
            message = self.world.network.call(self.site.name, source.name, lambda: source.steps_for(start))
        except Unanswered:
            self.site.next_source()
            return
        if message is None:
            if self.site.rng.random() < 0.03:
                self.site.next_source()
            return
        outcome = apply_message(self.store, self.realm, self.state, message)
        if outcome.writes:
            self.store.write(outcome.writes)
        self.state = outcome.state
        self.world.judges.replayed(self.site, outcome)
        if isinstance(outcome.stop, Upgrade):
            raise UpgradeNeeded(f"rules level {outcome.stop.rules}")
        if outcome.stop is not None:
            raise Misbehaved(outcome.stop)

    def _deliver(self) -> None:
        target = self.site.source()
        if not self._asked:
            newest = self.outbox.newest_made()
            if newest is not None:
                self._push(target, newest, None)
                return
            self._asked = True
        for epoch in owed_epochs(self.store, OWED_AT_ONCE):
            if self._due.get(epoch, 0) <= self.world.now:
                self._due[epoch] = self.world.now + RETRY_US
                owed = self.outbox.ratify(epoch)
                if isinstance(owed, Ready):
                    self.world.judges.ratified(self.site, owed.push)
                    self._push(target, owed.push, epoch)

    def _push(self, target: ReplicaSite, request: bytes, epoch: int | None) -> None:
        def answered(response: bytes | None) -> None:
            self.world.after(self.world.network.delay_us(target.name), lambda: self._stored(epoch, response))

        try:
            self.world.network.call(
                self.site.name, target.name, lambda: target.take_push(request, self.site.key.id, answered)
            )
        except Unanswered:
            self.site.next_source()
        except Refused as refused:
            if epoch is None and refused.reason is Reason.NOT_AUTHORIZED:
                self._asked = True  # whom it does not list, it has nothing to tell
            else:
                self.site.next_source()

    def _stored(self, epoch: int | None, response: bytes | None) -> None:
        if self.site.process is not self or response is None:
            return
        self.site.guarded(lambda: self._settle(epoch, response))

    def _settle(self, epoch: int | None, response: bytes) -> None:
        try:
            self.outbox.check_standing(response)
        except Malformed:
            return
        self._asked = True
        if epoch is not None:
            self.outbox.settle(epoch)

    def _compare(self) -> None:
        for name, peer in self.world.sites.items():
            if name.startswith("v") and peer is not self.site:
                try:
                    ratified.compare(self.store, self.realm, _Peer(self.site, peer))  # type: ignore[arg-type]
                except (Unreachable, Malformed):
                    continue


class _Peer:
    def __init__(self, site: VerifierSite, other: VerifierSite) -> None:
        self._site, self._other = site, other

    def get(self, epoch: int) -> bytes | None:
        try:
            return self._site.world.network.call(
                self._site.name, self._other.name, lambda: self._other.served(epoch)
            )
        except Unanswered:
            raise Unreachable("unanswered") from None


class VerifierSite:
    """The machine of a verifier."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number, self.name = world, number, f"v{number}"
        self.key = world.cast.verifiers[number]
        self.clock = WallClock(lambda: world.now)
        self.disk = world.disk(self.name)
        self.register = Path(f"/sim/{self.name}/sign-once.register")
        self.process: VerifierProcess | None = None
        self.paused = False
        self.tainted = ""
        self.stopped_by = ""  # the evidence that made it stop
        self.serves: Callable[[int], bytes | None] | None = None  # a byzantine verifier's own answer
        self.ambush = None
        self.rng = world.chance("verifier", self.name)
        self._source = number
        SignOnceRegister.create(self.register, key_id=self.key.id).close()

    @property
    def runs(self) -> bool:
        return self.process is not None

    @property
    def healthy(self) -> bool:
        return self.process is not None and not self.paused and not self.tainted

    def start(self) -> None:
        if self.process is not None or self.stopped_by:
            return
        self.disk.struck = self.disk.trouble is not None
        try:
            self.process = VerifierProcess(self)
        except Quarantined as error:
            raise Violation("stands", f"{self.name} lost nothing and may not sign: {error}") from error
        except (StorageError, Crash) as error:
            if not self.disk.struck and isinstance(error, StorageError):
                raise Violation("stands", f"{self.name} lost nothing and does not start: {error}") from error
            self.disk.lose_unsynced()
            self.start_later()
            return
        self.world.note(self.name, "starts", self.process.state.next_index)
        self._poll(self.process)

    def start_later(self) -> None:
        self.world.after(self.rng.randint(100, 900) * MS, self.start)

    def crash(self, why: str) -> None:
        if self.process is None:
            return
        self.world.note(self.name, "ends", why)
        self.process = None
        self.paused = False
        self.disk.lose_unsynced()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def _poll(self, process: VerifierProcess) -> None:
        if self.process is not process:
            return
        if not self.paused:
            self.guarded(process.run)
        self.world.after(POLL_US + self.rng.randint(0, POLL_US // 4), lambda: self._poll(process))

    def guarded(self, work: Callable[[], None]) -> None:
        """Do some work of the process, and what follows from its failure."""
        crash_points._armed = self.ambush
        try:
            work()
        except Crash as crash:
            self.crash(f"crash: {crash}")
            self.start_later()
        except StorageError as error:
            if not self.disk.struck:
                raise Violation("stands", f"{self.name} ends though nothing failed: {error!r}") from error
            self.crash(f"halt: {type(error).__name__}")
            self.start_later()
        except (Misbehaved, Quarantined, UpgradeNeeded) as found:
            self.stopped_by = str(found)
            self.world.note(self.name, "stops", str(found)[:90])
            self.world.judges.accused(self, found)
            self.crash(f"stops: {type(found).__name__}")
        finally:
            crash_points._armed = None

    # Where it follows the log

    def source(self) -> ReplicaSite:
        members = self.world.members
        site: ReplicaSite = self.world.sites[members[self._source % len(members)]]
        if site.tainted and self.world.healed_at:
            return self.world.sites[members[(self._source + 1) % len(members)]]  # type: ignore[no-any-return]
        return site

    def follow(self, number: int) -> None:
        self._source = number

    def next_source(self) -> None:
        self._source += 1

    # What it shows

    def served(self, epoch: int) -> bytes | None:
        """RatifiedHeads, 0 = the newest."""
        if self.serves is not None:
            return self.serves(epoch)
        assert self.process is not None
        store, realm = self.process.store, self.process.realm
        wanted = epoch or newest_ratified(store)
        return served_head(store, realm, wanted) if wanted else None

    def newest(self) -> bytes | None:
        return self.served(0)
