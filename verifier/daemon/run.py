"""Start and stop of a verifier's process: open what belongs together, watch until told to stop, close."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import structlog
import trio

from kv import crash_points
from kv.interface import StorageError, Store
from verifier.crypto import signatures
from verifier.daemon.config import Config
from verifier.daemon.database import check_key, check_register, open_database, open_register
from verifier.daemon.failures import ConfigError
from verifier.daemon.files import read_file, read_private, read_seed, refuse_while_evidence_is_kept
from verifier.daemon.outbox import Outbox
from verifier.daemon.ratified import serving
from verifier.daemon.status import StatusFile
from verifier.daemon.transport import Credentials, Keyserver, Peer, PushTarget
from verifier.daemon.watch import Daemon, Parts
from verifier.errors import E2eksError
from verifier.signonce import SignOnceRegister

PEM_BYTES = 64 * 1024

log = structlog.get_logger()


def unix_ms() -> int:
    """The clock of this machine."""
    return time.time_ns() // 1_000_000


async def until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it ends or the process is asked to stop (SIGTERM, SIGINT)."""
    async with trio.open_nursery() as nursery:

        async def wait_for_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for number in signals:
                    log.info("stopping", signal=signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    return

        nursery.start_soon(wait_for_signal)
        await work()
        nursery.cancel_scope.cancel()


def serve(config: Config) -> None:
    """Run the verifier of a configuration until it is asked to stop.

    Raises ConfigError, Quarantined, Halted, UpgradeNeeded, StorageError.
    """
    signatures.self_test()
    arm_crash_point()
    refuse_while_evidence_is_kept(config.evidence)
    seed = read_seed(config.key)
    public_key, key_id = check_key(config.realm, seed)
    with ExitStack() as stack:
        register: SignOnceRegister = open_register(config.sign_once_register, key_id)
        stack.callback(register.close)
        store = open_database(config.data, config.realm, key_id)
        stack.callback(store.close)
        check_register(store, config.realm, register)
        parts = _parts(config, store, Outbox(store, register, seed, key_id, unix_ms), key_id)
        stack.enter_context(_front(config, store))
        log.info("started", verifier=config.name, realm=config.realm.name, public_key=public_key.hex())
        failure: Exception | None = trio.run(_outcome, Daemon(parts))
    if failure is not None:
        raise failure


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


async def _outcome(daemon: Daemon) -> Exception | None:
    """How the daemon ended, as a value: nurseries would wrap it into groups."""
    ended: list[Exception] = []

    async def work() -> None:
        try:
            await daemon.run()
        except (E2eksError, StorageError) as error:
            ended.append(error)

    await until_signalled(work)
    return ended[0] if ended else None


def _parts(config: Config, store: Store, outbox: Outbox, key_id: bytes) -> Parts:
    credentials = Credentials(
        roots="\n".join(config.realm.tls_roots_pem).encode("ascii"),
        certificate=read_file(config.tls_certificate, PEM_BYTES, "TLS certificate"),
        key=read_private(config.tls_key, PEM_BYTES, "TLS key"),
    )
    others = [v for v in config.realm.verifiers if v.address and v.key_id != key_id]
    timeout_s = config.times.push_timeout_ms / 1000
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
    )


def _front(config: Config, store: Store) -> AbstractContextManager[int]:
    if not config.listen:
        return nullcontext(0)
    certificate = read_file(config.tls_certificate, PEM_BYTES, "TLS certificate")
    key = read_private(config.tls_key, PEM_BYTES, "TLS key")
    return serving(
        config.listen, store, config.realm, certificate, key, lambda why: log.error("front", why=why)
    )
