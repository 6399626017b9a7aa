"""From commands to the log: many commands in one signed envelope, one proposal under way at a time.

While one envelope waits for the disk the next one fills, so the busier a replica is, the more commands
share a sync. An envelope carries a clock reading of the moment it is proposed; what is tried again gets a
fresh one.

What was proposed may be lost with a leader. Then commands that somebody waits for are proposed again until
their deadline: the log may contain them twice, and the step takes each once. Duties are derived again, and
`Attempts` says when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import structlog
import trio

from keyserver.lives import Lives
from keyserver.machine import commands
from keyserver.machine.commands import Command, Delimiter
from keyserver.signer import Quarantined, Signer
from kv import crash_points
from replication.interface import ReplicatedLog
from replication.types import ReplicationError
from verifier import limits
from verifier.errors import Reason, Refused

T = TypeVar("T", bound=Hashable)
Clock = Callable[[], int]  # Unix milliseconds

FRAME_BYTES = 16  # tags and lengths of one command and its private part in an entry, at most
ENVELOPE_BYTES = 4 * 1024  # the rest of an entry, with room
ENTRY_ROOM = limits.LOG_ENTRY_BYTES - ENVELOPE_BYTES
QUEUED_BYTES_MAX = 64 * 1024 * 1024  # beyond it the log is hopelessly behind, and memory must not pay for it
PAUSE_S = 0.05  # before a lost proposal is tried again: a new leader is found in a second
BACKOFF_DOUBLINGS = 4  # a duty is tried again after at most 16 times the retry interval


@dataclass(frozen=True, slots=True)
class Proposal:
    """An encoded command, its private part (or b""), and whether it is a delimiter, alone in its entry.

    `until` somebody waits for it, in seconds of trio's clock; None: it is somebody's duty.
    """

    command: bytes
    private: bytes = b""
    alone: bool = False
    until: float | None = None

    @property
    def size(self) -> int:
        return len(self.command) + len(self.private) + FRAME_BYTES


class Proposer:
    """Signs and proposes what is submitted, in order. Runs on the trio thread."""

    def __init__(
        self,
        log: ReplicatedLog,
        signer: Signer,
        clock: Clock,
        proposed: Callable[[bytes], None] = lambda _: None,
        lost: Callable[[], None] = lambda: None,
        lives: Lives | None = None,
        rules: Callable[[], int] = lambda: limits.RULES,
    ) -> None:
        """`proposed` is told every entry BEFORE the log gets it; `lost` that duties may have been lost.

        `rules` gives the level of the realm's rules.
        """
        self._log = log
        self._proposed = proposed
        self._lost = lost
        self._lives = lives or Lives()
        self._rules = rules
        self.losses = 0  # how often duties may have been lost since the start
        self._signer = signer
        self._clock = clock
        self._queue: deque[Proposal] = deque()
        self._bytes = 0
        self._filled = trio.Event()
        self._held: dict[str, str] = {}  # by whom -> why
        self._stopped: set[str] = set()  # by whom also what is queued is kept back
        self._logger = structlog.get_logger("proposer")

    def submit(self, command: Command, private: bytes = b"", until: float | None = None) -> bytes:
        """Queue a command; returns its id. It is proposed again `until` then if the log loses it.

        Raises Refused: NOT_READY in quarantine or when the log is behind.
        """
        encoded = commands.encode_command(command)
        proposal = Proposal(encoded, private, isinstance(command, Delimiter), until)
        self.require_signing()
        if self._bytes + proposal.size > QUEUED_BYTES_MAX:
            raise Refused(Reason.NOT_READY, "this replica's log is behind; try again")
        self._queue.append(proposal)
        self._bytes += proposal.size
        self._filled.set()
        return commands.command_id(encoded)

    def require_signing(self) -> None:
        """Raises Refused (NOT_READY) if this replica may not sign or is held, and so cannot propose."""
        if self.unfit:
            raise Refused(Reason.NOT_READY, self.unfit)

    @property
    def unfit(self) -> str:
        """Why this replica proposes nothing new, or ""."""
        return "this replica only reads: it may not sign" if self._signer.quarantined else self.held

    @property
    def held(self) -> str:
        """Why nothing new is proposed, or ""."""
        return self.held_but("")

    def held_but(self, by: str) -> str:
        """The same, apart from what `by` holds."""
        return next((why for holder, why in self._held.items() if holder != by), "")

    def holds(self, by: str) -> bool:
        """Whether `by` holds this replica."""
        return by in self._held

    def hold(self, by: str, why: str, *, stop: bool = False) -> None:
        """Accept nothing new until `by` releases it; what is queued already goes on, unless it is to `stop`.

        `why` is for callers.
        """
        self._held[by] = why
        if stop:
            self._stopped.add(by)

    def release(self, by: str) -> None:
        """End what `by` held."""
        self._held.pop(by, None)
        self._stopped.discard(by)

    async def run(self) -> None:
        """Propose for ever. Raises StorageError when the log fails."""
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled = trio.Event()
                continue
            if not await self._propose(batch):
                self._put_back(batch)
                await trio.sleep(PAUSE_S)

    async def _propose(self, batch: list[Proposal]) -> bool:
        """Whether the log has taken the batch. Raises StorageError."""
        if self._stopped:
            return False
        now_ms = self._clock()
        await self._lives.cover(now_ms)
        try:
            entry = self._sign(batch, now_ms)
            self._proposed(entry)
            crash_points.reach("P2")
            await self._log.propose(entry)
        except (ReplicationError, Quarantined) as error:
            self._logger.warning("proposal lost", commands=len(batch), error=type(error).__name__)
            return False
        return True

    def _put_back(self, batch: list[Proposal]) -> None:
        """What somebody waits for comes first next time; duties are their owner's."""
        waited_for = [proposal for proposal in batch if proposal.until is not None]
        self._queue.extendleft(reversed(waited_for))
        self._bytes += sum(proposal.size for proposal in waited_for)
        if len(waited_for) < len(batch):
            self.losses += 1
            self._lost()

    def _take(self) -> list[Proposal]:
        """The commands of the next entry: a delimiter by itself, or as many others as fit. Those that nobody
        waits for any more are left out.
        """
        batch: list[Proposal] = []
        size, now = 0, trio.current_time()
        while self._queue and len(batch) < limits.COMMANDS_PER_ENTRY:
            proposal = self._queue[0]
            if proposal.until is not None and proposal.until <= now:
                self._bytes -= self._queue.popleft().size
                continue
            if batch and (proposal.alone or batch[0].alone or size + proposal.size > ENTRY_ROOM):
                break
            batch.append(self._queue.popleft())
            size += proposal.size
        self._bytes -= size
        return batch

    def _sign(self, batch: list[Proposal], now_ms: int) -> bytes:
        envelope = commands.encode_envelope(
            replica=self._signer.key_id,
            time_ms=now_ms,
            commands=[proposal.command for proposal in batch],
            rules=self._rules(),
        )
        signature = self._signer.sign_envelope(envelope)
        return commands.encode_log_entry(envelope, signature, [proposal.private for proposal in batch])


class Attempts:
    """When each duty may be proposed: at once, then after waits that double up to a cap, spread by chance.

    `chance` returns numbers in [0, 1). The spread keeps replicas from trying again at one moment for ever.
    """

    def __init__(self, retry_interval_ms: int, chance: Callable[[], float]) -> None:
        self._retry_interval_ms = retry_interval_ms
        self._chance = chance
        self._next: dict[Hashable, tuple[int, int]] = {}  # duty -> (attempts made, not before)

    def due(self, duties: Iterable[T], now_ms: int) -> list[T]:
        """The duties to propose now; those no longer given are forgotten, with their waits."""
        given = list(duties)
        self._next = {duty: self._next[duty] for duty in given if duty in self._next}
        due = [duty for duty in given if self._next.get(duty, (0, now_ms))[1] <= now_ms]
        for duty in due:
            made = self._next.get(duty, (0, 0))[0]
            wait_ms = self._retry_interval_ms * 2 ** min(made, BACKOFF_DOUBLINGS)
            self._next[duty] = (made + 1, now_ms + round(wait_ms * (0.75 + self._chance() / 2)))
        return due

    def start_over(self) -> None:
        """Try everything again at once: not the duties failed, but the way into the log."""
        self._next = {}

    def next_ms(self) -> int | None:
        """When the first of the waiting duties may be proposed again."""
        return min((not_before for _, not_before in self._next.values()), default=None)
