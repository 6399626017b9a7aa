"""Start and stop of a verifier's process: open what belongs together, watch until told to stop, close."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

import structlog
import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kv import crash_points
from kv.free_space import Ballast, Watermark, advised
from kv.interface import StorageError, Store
from verifier.crypto import signatures
from verifier.daemon import metrics
from verifier.daemon.config import Config
from verifier.daemon.database import check_key, check_register, open_database, open_register
from verifier.daemon.evidence_files import refuse_while_evidence_is_kept
from verifier.daemon.outbox import Outbox
from verifier.daemon.ratified import serving
from verifier.daemon.status import StatusFile
from verifier.daemon.transport import Credentials, Keyserver, Peer, PushTarget, Renewable
from verifier.daemon.watch import Daemon, Parts
from verifier.errors import ConfigError, E2eksError
from verifier.files import read_file, read_private, read_secret
from verifier.signonce import SignOnceRegister

PEM_BYTES = 64 * 1024
DAY_MS = 24 * 3_600_000
WARN_DAYS = 30  # time to renew, and for the realm's operator to list the new certificate
UNDECODABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)
SIGNAL_EXIT = 128  # plus the number: how shells tell what ended a process

log = structlog.get_logger()


def unix_ms() -> int:
    """The clock of this machine."""
    return time.time_ns() // 1_000_000


class Obedience:
    """What signals do: SIGTERM and SIGINT end the run, a second one ends the process at once, SIGHUP renews
    the TLS files.
    """

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = renew
        self._working = trio.CancelScope()

    async def run(
        self, work: Callable[[], Awaitable[None]], afterwards: Callable[[], Awaitable[None]]
    ) -> None:
        """Run `work` until it ends or is to stop; then, if it was stopped, `afterwards`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey)
            with self._working:
                await work()
            if self._working.cancelled_caught:
                await afterwards()
            nursery.cancel_scope.cancel()

    async def _obey(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    await trio.to_thread.run_sync(self._renew)
                elif self._working.cancel_called:
                    log.warning("ended at once", signal=name)
                    os._exit(SIGNAL_EXIT + number)
                else:
                    log.info("stopping", signal=name)
                    self._working.cancel()


class OwnTls:
    """This verifier's TLS files, as they were read last; new connections use them."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError."""
        self._config = config
        self.renewable = Renewable(self._read())

    @property
    def end_ms(self) -> int:
        """When the certificate ends (Unix milliseconds)."""
        chain = x509.load_pem_x509_certificates(self.renewable.current.certificate)
        return min(round(one.not_valid_after_utc.timestamp() * 1000) for one in chain)

    def renew(self) -> None:
        """Read the files again; if they cannot be used, the former stay in use."""
        try:
            self.renewable.current = self._read()
        except ConfigError as error:
            log.error("certificate not renewed; the former stays in use", why=str(error))
            return
        log.info("certificate renewed", not_after_ms=self.end_ms)
        self.warn()

    def expiring(self) -> str:
        """A sentence if the certificate ends within WARN_DAYS, or has ended; else ""."""
        days = (self.end_ms - unix_ms()) // DAY_MS
        if days >= WARN_DAYS:
            return ""
        when = f"ends in {days} days" if days >= 0 else f"ended {-days} days ago"
        return f"the TLS certificate {when}. Renew it, have the realm list it, then send SIGHUP"

    def warn(self) -> None:
        """Say in the log when the certificate ends soon."""
        what = self.expiring()
        if what:
            log.warning("certificate", what=what)

    def _read(self) -> Credentials:
        config = self._config
        read = Credentials(
            roots="\n".join(config.realm.tls_roots_pem).encode("ascii"),
            certificate=read_file(config.tls_certificate, PEM_BYTES, "TLS certificate"),
            key=read_private(config.tls_key, PEM_BYTES, "TLS key"),
        )
        try:
            certified = x509.load_pem_x509_certificates(read.certificate)[0].public_key()
            public_key = load_pem_private_key(read.key, None).public_key()
        except UNDECODABLE:
            what = (
                f"{config.tls_certificate} and {config.tls_key} are not a PEM certificate and its key, or of"
            )
            raise ConfigError(f"{what} a kind that is not known. Put the verifier's own there") from None
        if certified != public_key:
            what = f"{config.tls_certificate} is for another key than {config.tls_key}. Replace both together"
            raise ConfigError(what)
        return read


def serve(config: Config) -> None:
    """Run the verifier of a configuration until it is asked to stop.

    Raises ConfigError, Quarantined, Halted, UpgradeNeeded, StorageError.
    """
    signatures.self_test()
    arm_crash_point()
    refuse_while_evidence_is_kept(config.evidence)
    seed = read_secret(config.key, "key")
    public_key, key_id = check_key(config.realm, seed)
    ballast = Ballast(config.data, config.storage.ballast_bytes)
    with ExitStack() as stack:
        register: SignOnceRegister = ballast.unless_full(
            lambda: open_register(config.sign_once_register, key_id)
        )
        stack.callback(register.close)
        store = ballast.unless_full(lambda: open_database(config.data, config.realm, key_id))
        stack.callback(store.close)
        check_register(store, config.realm, register)
        tls = OwnTls(config)
        tls.warn()
        outbox = Outbox(store, register, seed, key_id, unix_ms)
        parts = _parts(config, store, outbox, key_id, tls, ballast)
        stack.enter_context(_front(config, store, tls))
        log.info("started", verifier=config.name, realm=config.realm.name, public_key=public_key.hex())
        failure: Exception | None = trio.run(_outcome, Daemon(parts), config, tls)
    if failure is not None:
        raise advised(failure)


def check_files(config: Config) -> list[str]:
    """That a start would find every file; what to care about soon. Opens no register. Raises ConfigError."""
    check_key(config.realm, read_secret(config.key, "key"))
    if not config.sign_once_register.is_file():
        raise ConfigError(
            f"the sign-once register {config.sign_once_register} is missing. This key may have signed "
            "before, so it must not sign again: give this verifier a new key"
        )
    return [sentence for sentence in (OwnTls(config).expiring(),) if sentence]


def arm_crash_point() -> None:
    """Let a test end this process at a named point. Raises ConfigError for a point that is none."""
    try:
        point = crash_points.arm(os.environ.get(crash_points.VARIABLE, ""), _die)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if point:
        log.warning("this process will end at a crash point", point=point)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _outcome(daemon: Daemon, config: Config, tls: OwnTls) -> Exception | None:
    """How the daemon ended, as a value: nurseries would wrap it into groups."""
    ended: list[Exception] = []

    async def guarded(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (E2eksError, StorageError) as error:
            ended.append(error)

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            if config.metrics:
                nursery.start_soon(guarded, partial(_measure, config, daemon, nursery.cancel_scope))
            await guarded(daemon.run)
            nursery.cancel_scope.cancel()

    async def afterwards() -> None:
        with trio.move_on_after(config.stop_grace_ms / 1000):
            await guarded(daemon.deliver_once)

    await Obedience(tls.renew).run(work, afterwards)
    return ended[0] if ended else None


async def _measure(config: Config, daemon: Daemon, ending: trio.CancelScope) -> None:
    try:
        listening = partial(log.info, "metrics")
        await metrics.serve(config.metrics, daemon.standing, lambda port: listening(port=port))
    except ConfigError:
        ending.cancel()
        raise


def _parts(
    config: Config, store: Store, outbox: Outbox, key_id: bytes, tls: OwnTls, ballast: Ballast
) -> Parts:
    credentials = tls.renewable
    others = [v for v in config.realm.verifiers if v.address and v.key_id != key_id]
    timeout_s = config.times.push_timeout_ms / 1000
    folders = (config.data, config.sign_once_register.parent)
    return Parts(
        realm=config.realm,
        store=store,
        outbox=outbox,
        sources=[Keyserver(address, credentials) for address in config.verification],
        targets=[PushTarget(address, credentials, timeout_s) for address in config.push],
        evidence=config.evidence,
        clock=unix_ms,
        rng=random.Random(),  # noqa: S311 - spreads retries; no secret depends on it
        times=config.times,
        peers=[Peer(v.name, v.address, credentials) for v in others],
        status=StatusFile(config.status, config.name),
        certificate_end_ms=lambda: tls.end_ms,
        watermark=Watermark(folders, config.storage.min_free_bytes, ballast),
    )


def _front(config: Config, store: Store, tls: OwnTls) -> AbstractContextManager[int]:
    if not config.listen:
        return nullcontext(0)
    shown = tls.renewable
    return serving(
        config.listen, store, config.realm, lambda: shown.current, lambda why: log.error("front", why=why)
    )
