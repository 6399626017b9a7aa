"""The machine of a replica: it keeps its disk when its process ends, and starts another one upon it.

What a process does is in `process`; here is what is done to it: events, crashes, starts, and the calls that
others make.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from keyserver import free_space
from keyserver.machine import commands
from keyserver.machine.codes import Code, Halt
from keyserver.machine.commands import SubmitUpdate
from keyserver.quarantine import EVIDENCE
from kv import crash_points
from kv.interface import StorageError
from replication.raft.events import Event
from simulator.clocks import WallClock
from simulator.clones import Clone
from simulator.disk import Crash
from simulator.network import Unanswered
from simulator.process import ReplicaProcess
from simulator.world import MS, Violation, World
from verifier import encoding
from verifier.signonce import SignOnceRegister
from verifier.types import SignedHead

T = TypeVar("T")


class ReplicaSite:
    """The machine of a replica."""

    def __init__(self, world: World, number: int, copy: str = "") -> None:
        """`copy` makes it a second machine of that name, whose disk is copied from somewhere."""
        self.world, self.number, self.name = world, number, f"r{number}"
        self.key = world.cast.replicas[number]
        self.clock = WallClock(lambda: world.now)
        self.disk = world.disk(self.name + copy)
        self.register = Path(f"/sim/{self.disk.name}/sign-once.register")
        self.evidence = self.register.parent / EVIDENCE
        self.process: ReplicaProcess | None = None
        self.paused = False
        self.tainted = ""  # why what this machine does is not held against shipped code
        self.key_at_large = False  # others sign with its key, or it has forgotten what it signed
        self.stays_down = ""  # why it is not started again
        self.only_reads = ""  # why it proposes nothing
        self.lie: Callable[[str, Any], Any] | None = None
        self.words: Callable[[str, bytes], bytes] | None = None  # what a liar shows of its heads, to whom
        self.falsify: Callable[[bytes], bytes] | None = None
        self.false_steps: Callable[[int], bytes | None] | None = None
        self.kept: Any = None  # the newest image of a disk that an old one has replaced
        self.lives = 0
        self.ambush: Any = None  # a crash point at which the process ends
        self._inbox: list[Event] = []
        self._wake_at: int | None = None
        self._rng = world.chance("site", self.disk.name)
        if not copy:
            SignOnceRegister.create(self.register, key_id=self.key.id).close()

    @property
    def runs(self) -> bool:
        return self.process is not None

    @property
    def healthy(self) -> bool:
        """Whether this replica can be counted on: it runs, and may sign."""
        process = self.process
        return process is not None and not self.paused and not process.signer.quarantined

    def start(self) -> None:
        if self.process is not None or self.stays_down:
            return
        self.lives += 1
        self.disk.struck = self.disk.trouble is not None
        try:
            self.process = ReplicaProcess(self)
        except Crash as crash:
            self.world.note(self.name, "ends as it starts", crash)
            self.disk.lose_unsynced()
            self.start_later()
            return
        except (StorageError, Halt) as error:
            self._refused(error)
            return
        if self.only_reads:
            self.hold(self.only_reads)
        self.world.note(self.name, "starts", self.process.replica.position.index)
        self.world.judges.started(self)
        self.world.network.restarted(self.name)
        self.wake()

    def _refused(self, error: Exception) -> None:
        self.world.note(self.name, "refuses to start", type(error).__name__)
        if not self.tainted and not self.disk.struck:
            raise Violation("stands", f"{self.name} lost nothing and does not start: {error}")
        self.disk.lose_unsynced()
        if self.tainted:
            self.stays_down = str(error)
        else:
            self.start_later()

    def start_later(self) -> None:
        self.world.after(self._rng.randint(100, 900) * MS, self.start)

    def stop(self) -> None:
        """As told: a leader hands over before its process ends."""
        assert self.process is not None
        process, grace_ms = self.process, self._rng.randint(0, 500)
        process.log.hand_over()
        self.world.after(grace_ms * MS, lambda: self._stopped(process))

    def _stopped(self, process: ReplicaProcess) -> None:
        if self.process is process:
            self.crash("stopped")
            self.start_later()

    def crash(self, why: str) -> None:
        """The process ends; what was not synced is lost."""
        if self.process is None:
            return
        self.world.judges.ended(self, why)
        self.world.note(self.name, "ends", why)
        self.process._proposing.close()
        self.process = None
        self.paused = False
        self._inbox.clear()
        self.disk.lose_unsynced()
        self.world.network.restarted(self.name)

    def cloned(self, number: int) -> Clone:
        """A second machine with a copy of this one's disk."""
        return Clone(self, ReplicaSite, f"x{number}")

    # Events

    def post(self, event: Event) -> None:
        if self.process is not None:
            self._inbox.append(event)
            self.wake()

    def wake(self, wait_us: int = 300) -> None:
        """Let the process have a turn, now or at a later time."""
        at = self.world.now + max(wait_us, 100)
        if self._wake_at is None or at < self._wake_at:
            self._wake_at = at
            self.world.at(at, lambda: self._turn(at))

    def _turn(self, at: int) -> None:
        if self._wake_at != at:
            return
        self._wake_at = None
        if self.process is None or self.paused:
            return
        inbox, self._inbox = self._inbox, []
        crash_points._armed = self.ambush
        self.world.running = self
        try:
            self.wake(self.process.run(inbox))
        except Crash as crash:
            self.crash(f"crash: {crash}")
            self.start_later()
        except (StorageError, Halt) as error:
            self._fell(error)
        finally:
            crash_points._armed = None

    def _fell(self, error: Exception) -> None:
        if not self.disk.struck and not self.tainted and not self.world.log_forged:
            raise Violation("stands", f"{self.name} ends though nothing failed: {error!r}")
        self.crash(f"halt: {type(error).__name__}")
        if self.disk.struck:
            self.start_later()
        else:
            self.stays_down = repr(error)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def hold(self, why: str) -> None:
        """As `free_space.watch` where there is too little room: this replica only reads."""
        self.only_reads = why
        if self.process is not None:
            self.process.proposer.hold(free_space.HOLDER, why)

    def release(self) -> None:
        self.only_reads = ""
        if self.process is not None:
            self.process.proposer.release(free_space.HOLDER)
            self.process.replica.applied.wake()
            self.wake()

    # What others ask of it. A call that a process does not survive is unanswered.

    def _asked(self, answer: Callable[[ReplicaProcess], T]) -> T:
        process = self.process
        if process is None or self.paused:
            raise Unanswered
        try:
            return answer(process)
        except StorageError:
            raise Unanswered from None
        except Crash as crash:
            self.crash(f"crash: {crash}")
            self.start_later()
            raise Unanswered from None

    def serve(self, answer: Callable[[ReplicaProcess], bytes]) -> bytes:
        """An answer to a client, which a lying replica alters."""
        made = self._asked(answer)
        return self.falsify(made) if self.falsify else made

    def lookup(self, request: bytes) -> bytes:
        return self.serve(lambda process: process.service.lookup(request, ""))

    def consistency(self, request: bytes) -> bytes:
        return self.serve(lambda process: process.service.consistency(request))

    def endorse(self, command: SubmitUpdate, proof_id: bytes, not_after_ms: int) -> commands.Endorsement:
        entry = command.update.entry

        def endorsed(process: ReplicaProcess) -> commands.Endorsement:
            process.proposer.require_signing()
            return process.signer.endorse(
                private_hash=command.private_hash, index=entry.index, entry_hash=entry.hash,
                proof_id=proof_id, not_after_ms=not_after_ms,
            )  # fmt: skip

        return self._asked(endorsed)

    def take_update(self, command: SubmitUpdate, part: bytes, decided: Callable[[Code, int], None]) -> None:
        self._asked(lambda process: process.update(command, part, decided))

    def take_push(self, request: bytes, key_id: bytes, answer: Callable[[bytes | None], None]) -> None:
        self._asked(lambda process: process.push(request, key_id, answer))

    def steps_for(self, start: int) -> bytes | None:
        news = self.process is not None and start <= self.process.replica.state.verifier_log_size
        if self.false_steps is not None and self._rng.random() < (0.5 if news else 0.1):
            return self._asked(lambda _: self.false_steps(start) if self.false_steps else None)
        made = self._asked(lambda process: process.steps(start))
        return self.falsify(made) if self.falsify and made is not None else made

    # What it asks of others

    def call_peer(self, member: str, method: str, request: bytes) -> bytes:
        """Call the Peers service of another replica. Raises Unanswered, Refused."""
        site: ReplicaSite = self.world.sites[member]
        told = self.words(member, request) if self.words else request
        calls: dict[str, Callable[[ReplicaProcess], bytes]] = {
            "ShowHead": lambda process: process.peers.show_head(told),
        }
        return self.world.network.call(self.name, member, lambda: site._asked(calls[method]))

    def ask_verifiers(self) -> list[SignedHead]:
        """The newest heads that verifiers say they ratified."""
        answers = []
        for name in (f"v{number}" for number in range(self.world.plan.verifiers)):
            site = self.world.sites[name]
            with suppress(Unanswered):
                answers.append(self.world.network.call(self.name, name, site.newest))
        return [encoding.decode_signed_head(answer) for answer in answers if answer is not None]
