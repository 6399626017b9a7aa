"""Where the simulator stands in for what shipped code takes from the world: files, waiting, and time.

Signatures, VRF and decoding are pure functions with results that never change: remembering these by all
their arguments changes no verdict, and spares each replica of a schedule what another has computed already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import structlog
from nacl.exceptions import BadSignatureError
from replayer import primitives

import keyserver.duties
import keyserver.erasure
import keyserver.lives
import keyserver.own_key
import keyserver.peers.exchange
import keyserver.proposer
import keyserver.replica
import verifier.signonce
from keyserver.machine import commands
from simulator.disk import Files
from verifier import encoding
from verifier.crypto import hashing, signatures, vrf

T = TypeVar("T")
REMEMBERED_MAX = 20_000


class Event:
    """As trio's, for a coroutine that is resumed by hand and looks again each time."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> None:
        await Until(self.is_set)


class Until:
    """Over when something is so, which is looked at whenever the coroutine is resumed."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self._is_so = is_so

    def __await__(self) -> Generator[None, None, None]:
        while not self._is_so():
            yield


class Lock:
    """As trio's, among coroutines that are run to their end one after the other."""

    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


def finish(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a coroutine that should be finished at once waits")


def _remembering(function: Callable[..., T], key: Callable[..., Any]) -> Callable[..., T]:
    known: dict[Any, T] = {}

    def remembered(*given: Any) -> T:
        asked = key(*given)
        if asked not in known:
            if len(known) >= REMEMBERED_MAX:
                known.clear()
            known[asked] = function(*given)
        return known[asked]

    return remembered


def _opening(open_signed: Callable[[bytes, bytes], bytes]) -> Callable[[bytes, bytes], bytes]:
    """libsodium's answer to one question, for the shipped house and for the naive replayer."""

    def outcome(signed: bytes, key: bytes) -> bytes | None:
        try:
            return open_signed(signed, key)
        except BadSignatureError:
            return None

    known = _remembering(outcome, lambda *given: given)

    def opened(signed: bytes, key: bytes) -> bytes:
        message = known(signed, key)
        if message is None:
            raise BadSignatureError
        return message

    return opened


async def _run_sync(function: Callable[..., T], *given: object, **_: object) -> T:
    return function(*given)


@contextmanager
def remembered() -> Iterator[None]:
    """Compute each signature, verification and VRF proof, and decode the same bytes, once."""
    secret, opened = signatures.SigningKey, _opening(signatures.crypto_sign_open)
    everything = [
        (owner, name, lambda *given: given)
        for owner, names in (
            (signatures, ("verify", "sign")),
            (vrf, ("verify",)),
            (hashing, ("key_id",)),
            (commands, ("decode_log_entry", "public_part")),
            (
                encoding,
                ("decode_head", "decode_policy", "decode_signed_head", "decode_update", "decode_entry"),
            ),
        )
        for name in names
    ]
    with ExitStack() as patched:
        for owner, name, key in (
            *everything,
            (secret, "sign", lambda self, message: (self.public_key, message)),
            (vrf, "prove", lambda key, alpha: (key.public_key, alpha)),
        ):
            patched.enter_context(mock.patch.object(owner, name, _remembering(getattr(owner, name), key)))
        for room in (signatures, primitives):
            patched.enter_context(mock.patch.object(room, "crypto_sign_open", opened))
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Nobody reads the logs of thousands of simulated processes."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
        processors=[lambda *given: str(given[2])],
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def surroundings(
    files: Files, seconds: Callable[[], float], alarm: Callable[[float], None]
) -> Iterator[None]:
    """Shipped code sees these files and this time while a world runs. `alarm`: wake whoever runs, so many
    seconds from now.
    """

    async def sleep(wait_s: float) -> None:
        alarm(wait_s)
        until = seconds() + wait_s
        await Until(lambda: seconds() >= until)

    waiting = SimpleNamespace(
        Event=Event,
        to_thread=SimpleNamespace(run_sync=_run_sync),
        current_time=seconds,
        sleep=sleep,
        Lock=Lock,
    )
    locks = SimpleNamespace(LOCK_EX=0, LOCK_NB=0, flock=lambda *_: None)
    with ExitStack() as patched:
        for module, name, value in (
            (keyserver.duties, "trio", waiting),
            (keyserver.erasure, "trio", waiting),
            (keyserver.replica, "trio", waiting),
            (keyserver.proposer, "trio", waiting),
            (keyserver.own_key, "keep_evidence", files.keep_evidence),
            (keyserver.peers.exchange, "keep_evidence", files.keep_evidence),
            (keyserver.lives, "trio", waiting),
            (keyserver.lives, "find_file", files.find_file),
            (keyserver.lives, "replace_file", files.replace_file),
            (verifier.signonce, "os", files),
            (verifier.signonce, "fcntl", locks),
        ):
            patched.enter_context(mock.patch.object(module, name, value))
        yield
