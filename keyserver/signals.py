"""What a running replica does when it is told something: SIGTERM and SIGINT end it, SIGHUP renews its TLS.

Ending: it says that it is not ready, no new update is taken, those that wait get their proof or, when the
time is over, NOT_READY. All else goes on meanwhile: without epochs and verifiers nobody would get a proof.
A second signal ends the process at once: that is as safe as a crash, only less polite.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable

import structlog
import trio

from keyserver.config import Config
from keyserver.frontends.doors import Doors
from keyserver.proposer import Clock
from keyserver.status import Status
from keyserver.tls_files import DAY_MS, Credentials, expiring, read_credentials
from replication.types import ReplicationError
from verifier.errors import ConfigError

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNAL_EXIT = 128  # plus the number: how shells tell what ended a process


class Obedience:
    """One replica's answers to signals. `told` is called as soon as it is asked to end."""

    def __init__(
        self,
        config: Config,
        doors: Doors,
        status: Status,
        clock: Clock,
        told: Callable[[], None],
        links: Callable[[Credentials], None] = lambda _: None,
    ) -> None:
        """`links` renews what this replica shows other replicas, or raises ReplicationError."""
        self._config = config
        self._doors = doors
        self._status = status
        self._clock = clock
        self._told = told
        self._links = links
        self._log = structlog.get_logger("run")

    async def obey(self, signals: AsyncIterator[int]) -> None:
        """Return when the process may end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_certificates)
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    nursery.start_soon(self.renew)
                elif self._status.stopping:
                    self._log.warning("ended at once", signal=name)
                    os._exit(SIGNAL_EXIT + number)
                else:
                    self._log.info("stopping", signal=name)
                    self._told()
                    nursery.start_soon(self._drain, nursery.cancel_scope)

    async def renew(self) -> None:
        """Read TLS files and verifiers.json again; what does not fit changes nothing."""
        try:
            credentials = await trio.to_thread.run_sync(read_credentials, self._config)
        except ConfigError as error:
            self._log.error("certificates not renewed; the former stay in use", why=str(error))
            return
        try:
            self._links(credentials)
        except ReplicationError as error:
            self._log.error("certificates of links not renewed; the former stay in use", why=str(error))
        self._doors.renew(credentials)
        ends_ms = credentials.not_after_ms()
        self._log.info("certificates renewed", not_after_ms=ends_ms)
        self._warn()

    async def _drain(self, ended: trio.CancelScope) -> None:
        self._status.stopping = True
        grace_s = self._config.stop_grace_ms / 1000
        with trio.move_on_after(grace_s) as waiting:
            await self._doors.drain()
        self._log.info("drained", in_time=not waiting.cancelled_caught)
        ended.cancel()

    async def _watch_certificates(self) -> None:
        """Say every day which certificates end soon."""
        while True:
            self._warn()
            await trio.sleep(DAY_MS / 1000)

    def _warn(self) -> None:
        for sentence in expiring(dict(self._status.certificates_ms), self._clock()):
            self._log.warning("certificate", what=sentence)
