"""A replica at work: the loop in which order matters, and the process around it.

Everything that happens to a realm happens in `follow`: committed entries are stepped through, written in
one synced batch, and only then announced. Whatever fails in the durable path ends the process; what is true
is found by starting again. Nothing is recovered: the rows say what is owed, and the normal code pays it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from keyserver import free_space, logs, quarantine
from keyserver.admission.gate import Gate
from keyserver.config import Config
from keyserver.copies.backup_create import origin_of
from keyserver.crash_counter import CrashCounter
from keyserver.data_directory import open_data
from keyserver.engines import engine_of, renew_tls
from keyserver.erasure import Blanker
from keyserver.frontends import operator
from keyserver.frontends.doors import Doors
from keyserver.frontends.replica_desk import ReplicaDesk
from keyserver.lives import CEILING, Lives
from keyserver.machine.codes import Halt
from keyserver.own_key import KeyWatch
from keyserver.parts import Parts as Parts  # where callers look for these
from keyserver.parts import Surroundings as Surroundings
from keyserver.parts import assemble as assemble
from keyserver.parts import now_ms as now_ms
from keyserver.peers.lines import PeerLine, lines_to
from keyserver.replica import Replica
from keyserver.signals import HANDLED, Obedience
from keyserver.signer import load_signer
from keyserver.tls_files import Credentials, read_credentials
from keyserver.turned_away import TurnedAway
from kv import crash_points
from kv.free_space import Ballast, Watermark, advised
from kv.interface import StorageError
from replication.interface import ReplicatedLog
from verifier.crypto import signatures
from verifier.errors import ConfigError

FIRST_CAUSES = (StorageError, Halt, ConfigError)  # what a group of failures is about, if one of them is in it


async def follow(log: ReplicatedLog, replica: Replica, watch: KeyWatch) -> None:
    """THE loop: persist first, speak afterwards. One run of entries at a time, from this task alone."""
    async for entries in log.committed():
        async with replica.writing:
            batch = await trio.to_thread.run_sync(replica.apply, entries)
        watch.see_entries(entries)
        watch.see_batch(batch)
        replica.announce(batch)


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
            nursery.start_soon(parts.peers.run)
            nursery.start_soon(parts.majority.run)
            nursery.start_soon(parts.giving_way.run)
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
        what = f"listen.replication cannot be bound: {error.strerror}"
        raise ConfigError(f"{what}. Is another process using the port?") from None


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
            counter.take_back()
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
            obedience = Obedience(config, running.doors, status, now_ms, told, running.renew_links)
            await obedience.obey(signals)
            nursery.cancel_scope.cancel()
    logger.info("stopped")


@dataclass(frozen=True, slots=True)
class Running:
    """A replica that serves, and the port of each of its listeners."""

    parts: Parts
    doors: Doors
    ports: dict[str, int]
    lines: Collection[PeerLine]

    def renew_links(self, credentials: Credentials) -> None:
        """Show other replicas these from the next connection on. Raises ReplicationError."""
        renew_tls(self.parts.log)
        for line in self.lines:
            if credentials.links is not None:
                line.renew(credentials.links)


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
    others = config.cluster.others(config.replica_name) if config.cluster else {}
    lines = lines_to(others, credentials.links)
    ballast = Ballast(config.data, config.storage.ballast_bytes)
    with (
        closing(ballast.unless_full(lambda: load_signer(config))) as signer,
        open_data(config.data, ballast, engine_of(config, TurnedAway())) as data,
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
            lines=lines,
        )
        parts.exchange.remember(quarantine.kept_evidence(config, signer.key_id, quarantine.DIFFERENT))
        doors = Doors(
            config, credentials, parts.service, parts.status, parts.metrics, parts.rates, parts.peers
        )
        folders = (config.data, config.sign_once_register.parent)
        watermark = Watermark(folders, config.storage.min_free_bytes, ballast)
        parts.status.disk = partial(_disk, folders, config.storage.min_free_bytes)
        async with trio.open_nursery() as nursery:
            wake = parts.replica.applied.wake
            await nursery.start(free_space.watch, watermark, parts.proposer, parts.metrics, wake)
            diagnostic = counter.begin() if counter else ""
            if diagnostic:
                await _only_read(parts, diagnostic)
            else:
                await nursery.start(run_parts, parts)
                origin = partial(origin_of, config)
                desk = ReplicaDesk(parts, config.replica_name)
                await nursery.start(operator.serve, config.data, data.store, data.log, origin, desk)
                if counter:
                    nursery.start_soon(counter.clear_when_steady)
            ports = await nursery.start(doors.serve)
            task_status.started(Running(parts, doors, ports, lines))


def _disk(folders: Sequence[Path], min_free_bytes: int) -> dict[str, int]:
    """What is left where there is least; nothing once a folder is gone, which ends the process anyway."""
    try:
        free = min(shutil.disk_usage(folder).free for folder in folders)
    except OSError:
        return {}
    return {"free_bytes": free, "min_free_bytes": min_free_bytes}


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
