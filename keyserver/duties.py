"""From obligations to proposals: what the rows say this replica owes, compared with what was tried already.

Nothing is started by an event here. After every batch, and when time alone makes something due, the duties
are derived anew from the rows; so a crash loses none, and start-up is not a special case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog
import trio

from keyserver.config import Epochs
from keyserver.machine import obligations
from keyserver.machine.commands import AdmitVerifier, AnnounceRules, Command, Delimiter, SignHead, Tick
from keyserver.machine.obligations import (
    Facts,
    Obligation,
    OweAdmission,
    OweAnnouncement,
    OweDelimiter,
    OweSignature,
    OweTick,
)
from keyserver.proposer import Attempts, Clock, Proposer
from keyserver.replica import Replica
from keyserver.signer import Signer
from kv import crash_points
from replication.interface import ReplicatedLog
from verifier.crypto import hashing
from verifier.errors import E2eksError, Reason, Refused
from verifier.signonce import BelowFloor

LOOK_AGAIN_MS = 5_000  # at the latest: clocks jump, leaders change, and nothing announces either
LOOK_SOONEST_MS = 5  # a clock that stands still must not make this loop spin

Duty = tuple[str, bytes | int]


class Duties:
    """Pursues the duties of one replica, for ever."""

    def __init__(
        self,
        replica: Replica,
        signer: Signer,
        proposer: Proposer,
        log: ReplicatedLog,
        epochs: Epochs,
        clock: Clock,
        chance: Callable[[], float],
        signed: Callable[[], None] = lambda: None,
    ) -> None:
        """`signed` is told when a head is signed, BEFORE its signature is proposed."""
        self._replica = replica
        self._signer = signer
        self._proposer = proposer
        self._log = log
        self._epochs = epochs
        self._clock = clock
        self._signed = signed
        self._losses = proposer.losses
        self._attempts = Attempts(epochs.retry_interval_ms, chance)
        self._admit = tuple(verifier.public_key for verifier in replica.machine.realm.verifiers)
        self._due: tuple[int, int] | None = None  # (last epoch, when the next was first seen to be due)
        self._logger = structlog.get_logger("duties")

    async def run(self) -> None:
        """Propose what is owed when it is due. Raises Halt and StorageError."""
        while True:
            turn = self._replica.applied.turn()  # BEFORE looking: what is written meanwhile wakes us at once
            pause_ms = LOOK_AGAIN_MS
            if not self._signer.quarantined and not self._proposer.held:
                pause_ms = await self.pursue()
            with trio.move_on_after(pause_ms / 1000):
                await turn.wait()

    async def pursue(self) -> int:
        """Propose what is owed now and was not tried too recently. After how many ms to look again, even if
        no batch is applied. Raises Halt and StorageError.
        """
        began_ms, replica = steady_ms(), self._replica
        facts = self._facts(began_ms)
        if self._proposer.losses != self._losses:
            self._losses = self._proposer.losses
            self._attempts.start_over()
        owed = {
            duty_of(obligation): obligation
            for obligation in obligations.wanted(replica.store, replica.machine, replica.state, facts)
        }
        for duty in self._attempts.due(owed, steady_ms()):
            try:
                command = await self._command(owed[duty])
                self._proposer.submit(command)
                if isinstance(command, SignHead):
                    crash_points.reach("S5")
            except Refused as refusal:  # the log is behind: tried again like every other failure
                self._logger.warning("duty postponed", duty=duty[0], reason=refusal.reason.value)
        return max(self._next_ms(facts.now_ms, began_ms) - steady_ms(), LOOK_SOONEST_MS)

    def _facts(self, looked_ms: int) -> Facts:
        facts = Facts(
            now_ms=self._clock(),
            replica=self._signer.key_id,
            leader=self._log.leader_hint(),
            max_epoch_interval_ms=self._epochs.max_interval_ms,
            admit=self._admit,
        )
        state = self._replica.state
        if not obligations.is_due(state, facts):
            self._due = None
            return facts
        if self._due is None or self._due[0] != state.epoch:
            self._due = state.epoch, looked_ms
        return replace(facts, due_for_ms=looked_ms - self._due[1])

    async def _command(self, obligation: Obligation) -> Command:
        match obligation:
            case OweSignature():
                command = await trio.to_thread.run_sync(partial(self._sign, obligation))
                self._signed()
                return command
            case OweDelimiter(epoch, _):
                return Delimiter(epoch, self._clock())
            case OweTick():
                return Tick()
            case OweAdmission(public_key):
                return AdmitVerifier(public_key)
            case OweAnnouncement(rules):
                return AnnounceRules(rules)

    def _sign(self, owed: OweSignature) -> SignHead:
        """Blocks on the sign-once register. Another head signed before puts this replica into quarantine."""
        crash_points.reach("S1")
        try:
            made = self._signer.sign_head(owed.head, log_index=owed.log_index, digest=owed.digest)
        except BelowFloor as error:
            raise Refused(Reason.NOT_READY, str(error)) from error
        except E2eksError as error:
            self._signer.quarantine(f"head {owed.epoch} will not be signed: {error}")
            self._logger.critical("quarantined", epoch=owed.epoch, why=str(error))
            raise Refused(Reason.NOT_READY, "this replica only reads: it may not sign") from error
        return SignHead(owed.epoch, hashing.head_hash(owed.head), made)

    def _next_ms(self, now_ms: int, looked_ms: int) -> int:
        """When, by the steady clock, time alone makes something due that was not due at the look: at `now_ms`
        by this replica's clock, `looked_ms` by the steady one. What was due then is proposed, and waits for
        its retry; what has become due since is not even seen.
        """
        state = self._replica.state
        waits = [LOOK_AGAIN_MS]
        if state.is_signed:
            since = state.issue_time_ms
            waits.append(since + self._epochs.max_interval_ms - now_ms)
            if state.pending_updates:
                waits.append(since + max(state.min_epoch_interval_ms, 1) - now_ms)
        if self._due is not None and self._signer.key_id in state.policy.keys:
            waits.append(self._due[1] + obligations.takeover_ms(state, self._signer.key_id) - looked_ms)
        ahead = [looked_ms + wait for wait in waits if wait > 0]
        retry_ms = self._attempts.next_ms()
        return min(ahead) if retry_ms is None else min(*ahead, retry_ms)


def steady_ms() -> int:
    """A clock that never jumps, for waiting only."""
    return round(trio.current_time() * 1000)


def duty_of(obligation: Obligation) -> Duty:
    """What stays the same when an obligation is derived again: never a time."""
    match obligation:
        case OweSignature(epoch=epoch):
            return "signature", epoch
        case OweDelimiter(epoch, _):
            return "delimiter", epoch
        case OweTick():
            return "tick", 0
        case OweAdmission(public_key):
            return "admission", public_key
        case OweAnnouncement(rules):
            return "rules", rules
