"""The socket of a running replica, and what an operator's command reads from it."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from keyserver.exits import Unreachable
from verifier.errors import ConfigError

SOCKET = "operator.sock"  # in the data directory
MODE = 0o600
ANSWER_BYTES = 1024 * 1024  # of one that is no copy
ANSWER_SECONDS = 600.0  # for one piece: a busy disk may be slow, a replica that hangs is not waited for


@contextmanager
def socket_address(folder: Path) -> Iterator[str]:
    """A name of the socket that is short enough: those of Unix sockets have at most 107 bytes."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be opened: {error.strerror}") from None
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


class _Connection(http.client.HTTPConnection):
    def __init__(self, connected: socket.socket) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self.sock = connected


def ask(folder: Path, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of one answer by the replica of `folder`. Raises Unreachable, ConfigError."""
    connected = _connect(folder)
    if connected is None:
        raise Unreachable(f"no replica runs in {folder}: start it, or ask another one on its own machine")
    with closing(connected):
        connection = _Connection(connected)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read(ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the replica does not answer at {folder / SOCKET}: {error}") from None


@contextmanager
def running_replica(folder: Path) -> Iterator[Callable[[int], bytes] | None]:
    """Reads the copy that the replica of `folder` sends; None if no replica runs there.

    Raises Unreachable when it does not answer as it should.
    """
    with ExitStack() as stack:
        connected = _connect(folder)
        if connected is None:
            yield None
            return
        stack.callback(connected.close)
        connection = _Connection(connected)
        try:
            connection.request("POST", "/backup")
            answer = stack.enter_context(connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the replica does not answer at {folder / SOCKET}: {error}") from None
        if answer.status != http.HTTPStatus.OK:
            why = answer.read(1024).decode("utf-8", "replace").strip()
            raise Unreachable(f"the replica at {folder / SOCKET} refuses: {why}. Try again later")
        yield partial(_read, answer)


def _connect(folder: Path) -> socket.socket | None:
    if not folder.is_dir():
        return None
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(ANSWER_SECONDS)
    try:
        with socket_address(folder) as address:
            connected.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        connected.close()
        return None
    except OSError as error:
        connected.close()
        raise Unreachable(f"{folder / SOCKET} cannot be opened: {error.strerror}") from None
    return connected


def _read(answer: http.client.HTTPResponse, size: int) -> bytes:
    try:
        return answer.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"the replica ended while it sent its copy: {error}") from None
