"""A verifier at work: follow the log, ratify, deliver, compare. The only place of the daemon where order
matters.

Order of an epoch: rows of the head and its outbox row in one synced batch, THEN the sign-once register,
THEN the ratification row, THEN the push, THEN the outbox row goes. Starting again at any point is the
normal code. Order of misbehaviour: evidence on the disk, THEN the end. After it nothing is ratified, served
or compared until a person has moved the evidence away.

Everything that blocks (disk, gRPC) runs in threads, a handful at most; the state changes in one task only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Protocol

import structlog
import trio

from kv import crash_points
from kv.free_space import Watermark, is_full
from kv.interface import StorageError, Store
from verifier.daemon.config import Times
from verifier.daemon.evidence import Evidence
from verifier.daemon.evidence_files import keep_evidence
from verifier.daemon.failures import CallRefused, Halted, Misbehaved, Unreachable, UpgradeNeeded
from verifier.daemon.outbox import GivenUp, Outbox, Waiting
from verifier.daemon.ratified import compare
from verifier.daemon.retry import Backoff
from verifier.daemon.room import Room
from verifier.daemon.state import State, load_state, newest_ratified, owed_epochs
from verifier.daemon.status import StatusFile
from verifier.daemon.step import Outcome, Upgrade, apply_message
from verifier.daemon.transport import Peer
from verifier.errors import ConfigError, E2eksError, Malformed, Reason
from verifier.types import Realm

DELIVER_AT_ONCE = 256  # owed epochs looked at in one pass
# Refusals that are about this verifier or that keyserver: of the other epochs it would say the same.
TAKES_NONE = frozenset({Reason.NOT_AUTHORIZED, Reason.NOT_READY, Reason.RATE_LIMITED})
REPORT_S = 1.0

log = structlog.get_logger()


class Source(Protocol):
    """Where steps come from."""

    @property
    def address(self) -> str: ...
    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> Messages: ...


class Messages(Protocol):
    """A stream that one thread reads and another may cancel. `overdue`: it ended, for its time was over."""

    overdue: bool

    def read(self) -> bytes | None: ...
    def cancel(self) -> None: ...


class Sender(Protocol):
    """Where one ratification goes at a time."""

    def push(self, ratification: bytes) -> bytes: ...


class Target(Protocol):
    """Where ratifications go."""

    @property
    def address(self) -> str: ...
    def connected(self) -> AbstractContextManager[Sender]: ...


@dataclass(kw_only=True)
class Parts:
    """What a daemon is put together from. `clock` tells Unix milliseconds."""

    realm: Realm
    store: Store
    outbox: Outbox
    sources: Sequence[Source]
    targets: Sequence[Target]
    evidence: Path
    clock: Callable[[], int]
    rng: Random  # spreads retries; no secret depends on it
    times: Times = field(default_factory=Times)
    peers: Sequence[Peer] = ()
    status: StatusFile | None = None
    certificate_end_ms: Callable[[], int] = lambda: 0  # when this verifier's TLS certificate ends
    watermark: Watermark | None = None  # below it nothing is followed


class Daemon:
    """One verifier. `run` ends only by an error, or when it is cancelled."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._realm = parts.realm
        self._store = parts.store
        self.state: State = load_state(parts.store, parts.realm)
        self._room = Room(parts.watermark)
        self._writing = trio.Lock()  # a store has one writer at a time
        self._owed = trio.Event()  # set: the outbox has grown
        self._asked = False  # whether a keyserver has said what this key signed before
        self._stopping = trio.CancelScope()
        self._failure: Exception | None = None
        self._seen: dict[str, Any] = {"following": "", "last_message_ms": 0, "peers": {}}

    async def run(self) -> None:
        """Work until cancelled. Raises Halted, UpgradeNeeded, Quarantined, StorageError; never a group."""
        loops = [self._follow, self._deliver]
        loops += [self._room.watch] if self._parts.watermark else []
        loops += [self._compare] if self._parts.peers else []
        loops += [self._report] if self._parts.status else []
        with self._stopping:
            async with trio.open_nursery() as nursery:
                for loop in loops:
                    nursery.start_soon(self._guarded, loop)
        if self._failure is not None:
            raise self._failure

    async def deliver_once(self) -> None:
        """AFTER `run` was cancelled: offer what is still owed to each keyserver once. Raises as `run`."""
        self._stopping = trio.CancelScope()
        await self._guarded(self._offer)
        if self._parts.status is not None:
            await trio.to_thread.run_sync(
                partial(self._write_status, stopped=str(self._failure or "asked to"))
            )
        if self._failure is not None:
            raise self._failure

    async def _offer(self) -> None:
        for target in self._parts.targets:
            try:
                if await self._deliver_to(target):
                    return
            except (Unreachable, CallRefused) as error:
                log.warning("ratification not delivered", keyserver=target.address, why=str(error))

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop; its first failure ends all loops."""
        try:
            await loop()
        except Misbehaved as found:
            with trio.CancelScope(shield=True):  # once found, the evidence is kept, come what may
                self._failure = await self._keep(found.evidence)
        except (E2eksError, StorageError) as error:
            self._failure = self._failure or error
        self._stopping.cancel()

    async def _keep(self, evidence: Evidence) -> Exception:
        kept = partial(keep_evidence, self._parts.evidence, self._realm, evidence, self._parts.clock())
        try:
            path = await trio.to_thread.run_sync(self._room.even_if_full, kept)
        except (E2eksError, StorageError) as error:
            return error
        log.error("misbehaviour", kind=str(evidence.kind), what=evidence.what, evidence=str(path))
        return Halted(evidence.what, path, evidence.exit_code)

    # Following the log

    async def _follow(self) -> None:
        times = self._parts.times
        backoff = Backoff(times.retry_min_ms, times.retry_max_ms, self._parts.rng)
        for source in itertools.cycle(self._parts.sources):
            try:
                with await self._room.wait():
                    await self._follow_one(source, backoff)
            except (Unreachable, CallRefused) as error:
                log.warning("stream broke", keyserver=source.address, why=str(error))
            self._seen["following"] = ""
            await trio.sleep(backoff.next_s())

    async def _follow_one(self, source: Source, backoff: Backoff) -> None:
        times = self._parts.times
        timeout_s = times.stream_renew_ms / 1000
        silence_s = times.silence_max_ms / 1000 if len(self._parts.sources) > 1 else math.inf
        stream = source.follow(self.state.next_index, timeout_s=timeout_s)
        log.info("following", keyserver=source.address, start=self.state.next_index)
        try:
            # Abandoned when cancelled: cancelling the stream below is what ends the thread.
            while True:
                message = None
                with trio.move_on_after(silence_s) as silence:
                    message = await trio.to_thread.run_sync(stream.read, abandon_on_cancel=True)
                if silence.cancelled_caught or stream.overdue:  # no failure, and wait enough by itself
                    backoff.reset()
                if message is None:
                    return
                self._seen |= {"following": source.address, "last_message_ms": self._parts.clock()}
                backoff.reset()
                crash_points.reach("V1")
                await self._replay(message)
        finally:
            stream.cancel()

    async def _replay(self, message: bytes) -> None:
        async with self._writing:
            outcome = await trio.to_thread.run_sync(self._apply, message)
        if outcome.owed:
            log.info("replayed", epoch=outcome.state.chain.epoch, next_index=outcome.state.next_index)
            self._owed.set()
        if isinstance(outcome.stop, Upgrade):
            raise UpgradeNeeded(
                f"the realm follows rules level {outcome.stop.rules}, which this version does not know. "
                "Upgrade the verifier; it goes on where it stopped"
            )
        if outcome.stop is not None:
            raise Misbehaved(outcome.stop)

    def _apply(self, message: bytes) -> Outcome:
        """One message, one synced batch. In a thread."""
        outcome = apply_message(self._store, self._realm, self.state, message)
        crash_points.reach("V2")
        if outcome.writes:
            self._store.write(outcome.writes)
            crash_points.reach("V3")
        self.state = outcome.state
        return outcome

    # Delivering what is owed

    async def _deliver(self) -> None:
        times = self._parts.times
        backoff = Backoff(times.retry_min_ms, times.retry_max_ms, self._parts.rng)
        for target in itertools.cycle(self._parts.targets):
            while await self._delivered(target):  # who takes everything is offered the next, too
                backoff.reset()
                await self._owed.wait()
            if not self._owed.is_set():
                with trio.move_on_after(backoff.next_s()):
                    await self._owed.wait()

    async def _delivered(self, target: Target) -> bool:
        """Whether nothing is owed any more."""
        try:
            return await self._deliver_to(target)
        except (Unreachable, CallRefused) as error:
            log.warning("ratification not delivered", keyserver=target.address, why=str(error))
            return False

    async def _deliver_to(self, target: Target) -> bool:
        """Push all that is owed over one connection; False when something has to wait. Raises Unreachable,
        CallRefused by a keyserver that takes nothing.
        """
        with target.connected() as sender:
            while True:
                self._owed = trio.Event()  # BEFORE the rows are read: what comes after them sets it
                if not self._asked and not await self._ask(sender, target.address):
                    return False
                epochs = await trio.to_thread.run_sync(owed_epochs, self._store, DELIVER_AT_ONCE)
                if not epochs:
                    return True
                left = False
                for epoch in epochs:
                    left |= not await self._deliver_one(epoch, sender, target.address)
                    if self._owed.is_set():  # a newer head is worth more than the rest of the old ones
                        break
                else:
                    if left:
                        return False

    async def _ask(self, sender: Sender, address: str) -> bool:
        """Before anything is signed: what does the keyserver know of this key? A restored or copied verifier
        has forgotten what it signed. False when the keyserver does not say.
        """
        newest = await trio.to_thread.run_sync(self._parts.outbox.newest_made)
        if newest is not None:
            try:
                await self._push(sender, newest)
            except CallRefused as refused:
                log.warning("newest ratification refused", keyserver=address, reason=refused.reason)
                if refused.reason != Reason.NOT_AUTHORIZED:  # whom it does not list, it has nothing to tell
                    return False
        self._asked = True
        return True

    async def _push(self, sender: Sender, ratification: bytes) -> None:
        """Push, then compare the answer with the register. Raises Misbehaved, Unreachable, CallRefused."""
        answer = await trio.to_thread.run_sync(sender.push, ratification, abandon_on_cancel=True)
        try:
            await trio.to_thread.run_sync(self._parts.outbox.check_standing, answer)
        except Malformed as error:
            log.warning("answer to a push not understood", why=str(error))

    async def _deliver_one(self, epoch: int, sender: Sender, address: str) -> bool:
        async with self._writing:
            owed = await trio.to_thread.run_sync(self._parts.outbox.ratify, epoch)
        if isinstance(owed, GivenUp):
            log.warning("too old to be ratified", epoch=epoch)
            return True
        if isinstance(owed, Waiting):
            log.warning(
                "head is issued ahead of this clock; not ratified yet", epoch=epoch, ahead_ms=owed.ahead_ms
            )
            return False
        crash_points.reach("V4")
        try:
            await self._push(sender, owed.push)
        except CallRefused as refused:
            if refused.reason in TAKES_NONE:
                raise
            log.warning("ratification refused", epoch=epoch, keyserver=address, reason=refused.reason)
            return False
        crash_points.reach("V5")
        async with self._writing:
            await trio.to_thread.run_sync(self._parts.outbox.settle, epoch)
        log.info("ratified", epoch=epoch, keyserver=address)
        return True

    # Comparing with other verifiers

    async def _compare(self) -> None:
        while True:
            await trio.sleep(self._parts.times.compare_interval_ms / 1000)
            for peer in self._parts.peers:
                await self._compare_with(peer)

    async def _compare_with(self, peer: Peer) -> None:
        try:
            agreed = await trio.to_thread.run_sync(
                compare, self._store, self._realm, peer, abandon_on_cancel=True
            )
        except (Unreachable, CallRefused, Malformed) as error:
            log.warning("not compared", peer=peer.name, why=str(error))
            return
        if agreed.epoch:
            self._seen["peers"][peer.name] = agreed.epoch

    # Reporting

    async def _report(self) -> None:
        try:
            while True:
                await trio.to_thread.run_sync(self._write_status)
                await trio.sleep(REPORT_S)
        finally:
            self._write_status(stopped=str(self._failure or "asked to"))

    def _write_status(self, **ended: str) -> None:
        if self._parts.status is None:
            return
        try:
            self._parts.status.write(self.standing() | ended, self._parts.clock())
        except ConfigError as error:
            if not is_full(error):  # the file may be lost
                raise
            log.warning("status file not written", why=str(error))

    def standing(self) -> dict[str, Any]:
        """Where this verifier stands, for `verifier status`."""
        state, ratified = self.state, newest_ratified(self._store)
        return {
            "realm": self._realm.name,
            "next_index": state.next_index,
            "epoch": state.chain.epoch,
            "issue_time_ms": state.chain.issue_time_ms,
            "lag_epochs": max(state.chain.epoch - ratified, 0),
            "certificate_end_ms": self._parts.certificate_end_ms(),
            "head_hash": state.chain.head_hash.hex(),
            "pending_updates": state.pending_updates,
            "ratified_epoch": ratified,
            "owed": len(owed_epochs(self._store, DELIVER_AT_ONCE)),
            "free_bytes": self._room.free_bytes,
            "not_following_because": self._room.short,
            **self._seen,
            "peers": dict(self._seen["peers"]),  # as it is now: other threads read what is told
        }
