"""A replica at work: the loop in which order matters, and the process around it.

Everything that happens to a realm happens in `follow`: committed entries are stepped through, written in
one synced batch, and only then announced. Whatever fails in the durable path ends the process; what is true
is found by starting again. Nothing is recovered: the rows say what is owed, and the normal code pays it.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from keyserver import free_space, logs, quarantine
from keyserver.admission.gate import Gate
from keyserver.backup_create import origin_of
from keyserver.config import Config, Epochs
from keyserver.crash_counter import CrashCounter
from keyserver.data_directory import open_data
from keyserver.duties import Duties
from keyserver.engines import engine_of
from keyserver.erasure import Blanker
from keyserver.frontends import operator
from keyserver.frontends.doors import Doors
from keyserver.lives import CEILING, Lives
from keyserver.machine.codes import Halt
from keyserver.machine.state import Machine
from keyserver.metrics import Metrics
from keyserver.own_key import KeyWatch
from keyserver.proposer import Clock, Proposer
from keyserver.rate_limits import Limits, RateLimits
from keyserver.replica import Replica
from keyserver.service import Service
from keyserver.signals import HANDLED, Obedience
from keyserver.signer import Signer, load_signer
from keyserver.status import Status
from keyserver.tls_files import read_credentials
from keyserver.vrf_cache import VrfCache
from kv import crash_points
from kv.free_space import Ballast, Watermark, advised
from kv.interface import StorageError, Store
from replication.interface import ReplicatedLog
from verifier.crypto import signatures
from verifier.errors import ConfigError
from verifier.types import Realm

FIRST_CAUSES = (StorageError, Halt, ConfigError)  # what a group of failures is about, if one of them is in it


def now_ms() -> int:
    """Unix time in milliseconds, by the clock of this machine."""
    return time.time_ns() // 1_000_000


async def follow(log: ReplicatedLog, replica: Replica, watch: KeyWatch) -> None:
    """THE loop: persist first, speak afterwards. One run of entries at a time, from this task alone."""
    async for entries in log.committed():
        async with replica.writing:
            batch = await trio.to_thread.run_sync(replica.apply, entries)
        watch.see_entries(entries)
        watch.see_batch(batch)
        replica.announce(batch)


@dataclass(frozen=True, slots=True)
class Parts:
    """What works together in one replica."""

    replica: Replica
    signer: Signer
    log: ReplicatedLog
    proposer: Proposer
    duties: Duties
    service: Service
    status: Status
    metrics: Metrics
    rates: RateLimits
    watch: KeyWatch


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is not deterministic: clocks and chance."""

    clock: Clock = now_ms
    chance: Callable[[], float] = random.random
    fresh_salt: Callable[[], bytes] = lambda: secrets.token_bytes(32)
    seconds: Callable[[], float] = time.monotonic


def assemble(
    *,
    name: str,
    realm: Realm,
    realm_json: bytes,
    epochs: Epochs,
    update_timeout_ms: int,
    store: Store,
    log: ReplicatedLog,
    signer: Signer,
    gate: Gate,
    around: Surroundings,
    limits: Limits | None = None,
    evidence: Path | None = None,
    lives: Lives | None = None,
    ready_alone: bool = False,
) -> Parts:
    """Put a replica together upon an open store and log; `evidence` is a folder for it. Raises Halt."""
    lives = lives or Lives()
    metrics = Metrics()
    rates = RateLimits(
        limits or Limits(), seconds=around.seconds, observe=lambda limit: metrics.count("rate_limited", limit)
    )
    vrf = VrfCache(
        store,
        signer.vrf_prove,
        limiter=rates.unknown_names,
        observe=lambda source: metrics.count("vrf", source),
    )
    replica = Replica(Machine(realm, epochs.min_interval_ms), store, vrf, metrics)
    log_end, former_ms = log.status().stored_index, lives.former_ms
    watch = KeyWatch(replica, signer, around.clock, log_end=log_end, evidence=evidence, former_ms=former_ms)
    proposer = Proposer(log, signer, around.clock, watch.proposed, replica.applied.wake, lives)
    duties = Duties(replica, signer, proposer, log, epochs, around.clock, around.chance)
    service = Service(
        replica,
        signer,
        proposer,
        gate,
        realm_json=realm_json,
        update_timeout_ms=update_timeout_ms,
        clock=around.clock,
        fresh_salt=around.fresh_salt,
        rates=rates,
    )
    status = Status(
        name, replica, signer, log, around.clock, held=lambda: proposer.held, ready_alone=ready_alone
    )
    return Parts(replica, signer, log, proposer, duties, service, status, metrics, rates, watch)


async def run_parts(parts: Parts, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Work until cancelled; the log is stopped then. Raises StorageError, Halt."""
    try:
        await parts.watch.look()  # BEFORE anything is signed: what was signed may have been forgotten
        await _start(parts.log, parts.replica.position.index + 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, parts.log, parts.replica, parts.watch)
            nursery.start_soon(parts.proposer.run)
            nursery.start_soon(parts.duties.run)
            nursery.start_soon(parts.watch.run)
            blanker = Blanker(parts.replica, parts.log, may_write=lambda: not parts.proposer.held)
            nursery.start_soon(blanker.run)
            task_status.started()
    finally:
        with trio.CancelScope(shield=True):
            await parts.log.stop()


async def _start(log: ReplicatedLog, lo: int) -> None:
    try:
        await log.start(lo)
    except OSError as error:
        raise ConfigError(
            f"listen.replication cannot be bound: {error}. Is another process using it?"
        ) from None


def serve(config: Config, *, leave_diagnostic: bool = False) -> None:
    """Serve a realm until SIGTERM or SIGINT; `leave_diagnostic`: forget crashes that were counted.

    Raises StorageError, Halt, ConfigError: the process must end then.
    """
    signatures.self_test()
    logs.configure(now_ms, config.replica_name)
    arm_crash_point()
    counter = CrashCounter(config.data, now_ms)
    if leave_diagnostic:
        counter.clear()
    try:
        trio.run(_until_told, config, counter)
    except BaseExceptionGroup as group:
        cause = first_cause(group)
        if isinstance(cause, ConfigError):  # a port in use, say: refused, not crashed
            counter.clear()
        raise advised(cause) from group


def arm_crash_point() -> None:
    """Let a test end this process at a named point. Raises ConfigError for a point that is none."""
    try:
        point = crash_points.arm(os.environ.get(crash_points.VARIABLE, ""), _die)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if point:
        structlog.get_logger("run").warning("this process will end at a crash point", point=point)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _until_told(config: Config, counter: CrashCounter) -> None:
    """Run everything until a signal comes; then drain, and stop everything."""
    logger = structlog.get_logger("run")
    with trio.open_signal_receiver(*HANDLED) as signals:
        async with trio.open_nursery() as nursery:
            running = await nursery.start(partial(run_replica, counter=counter), config)
            logger.info("serving", realm=config.realm.name, ports=running.ports)
            status = running.parts.status
            told = counter.clear if not status.diagnostic else lambda: None
            await Obedience(config, running.doors, status, now_ms, told).obey(signals)
            nursery.cancel_scope.cancel()
    logger.info("stopped")


@dataclass(frozen=True, slots=True)
class Running:
    """A replica that serves, and the port of each of its listeners."""

    parts: Parts
    doors: Doors
    ports: dict[str, int]


async def run_replica(
    config: Config,
    around: Surroundings | None = None,
    *,
    counter: CrashCounter | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Open what the configuration names and serve until cancelled; in diagnostic mode if `counter` says so.

    Raises as `serve` does, perhaps in groups.
    """
    credentials = read_credentials(config)
    ballast = Ballast(config.data, config.storage.ballast_bytes)
    with (
        closing(ballast.unless_full(lambda: load_signer(config))) as signer,
        open_data(config.data, ballast, engine_of(config, _turned_away)) as data,
    ):
        quarantine.check_start(config, data, signer)
        if signer.quarantined:
            structlog.get_logger("run").critical("quarantined", why=signer.quarantined)
        parts = assemble(
            name=config.replica_name,
            realm=config.realm,
            realm_json=config.realm_json,
            epochs=config.epochs,
            update_timeout_ms=config.update_timeout_ms,
            store=data.store,
            log=data.log,
            signer=signer,
            gate=Gate(config.registration, config.realm),
            around=around or Surroundings(),
            limits=config.limits,
            evidence=quarantine.evidence_folder(config),
            lives=Lives(config.sign_once_register.parent / CEILING),
            ready_alone=config.cluster is not None and config.cluster.ready_without_majority,
        )
        doors = Doors(config, credentials, parts.service, parts.status, parts.metrics, parts.rates)
        folders = (config.data, config.sign_once_register.parent)
        watermark = Watermark(folders, config.storage.min_free_bytes, ballast)
        async with trio.open_nursery() as nursery:
            wake = parts.replica.applied.wake
            await nursery.start(free_space.watch, watermark, parts.proposer, parts.metrics, wake)
            diagnostic = counter.begin() if counter else ""
            if diagnostic:
                await _only_read(parts, diagnostic)
            else:
                await nursery.start(run_parts, parts)
                origin = partial(origin_of, config)
                await nursery.start(operator.serve, config.data, data.store, data.log, origin)
                if counter:
                    nursery.start_soon(counter.clear_when_steady)
            ports = await nursery.start(doors.serve)
            task_status.started(Running(parts, doors, ports))


def _turned_away(address: str, reason: str) -> None:
    structlog.get_logger("replication").warning("turned away", address=address, reason=reason)


async def _only_read(parts: Parts, why: str) -> None:
    """Diagnostic mode: nothing is applied, proposed or signed. The log is let go, for `log-dump` to open."""
    structlog.get_logger("run").critical("diagnostic", why=why)
    parts.signer.quarantine(why)
    parts.status.diagnostic = why
    parts.metrics.set("diagnostic", 1)
    await parts.log.stop()


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that a group of failures is about."""
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            leaves.append(error)
    return next((leaf for leaf in leaves if isinstance(leaf, FIRST_CAUSES)), leaves[0])
