"""Connections that must end: gRPC for Python closes none, so their sockets are found and shut down here.

A call whose caller takes nothing cannot even be refused: the refusal queues behind what is not taken. A
shut-down socket ends everything on it, and gRPC sees a caller that has gone. Sockets are found by asking
each descriptor of the process who is at the other end; the file descriptor looked at is a duplicate, so
another thread that closes and reuses the number changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from keyserver.rate_limits import network_of

DESCRIPTORS = ("/proc/self/fd", "/dev/fd")  # Linux; others


def hang_up(connection: str) -> bool:
    """Shut down the socket of a gRPC peer such as "ipv4:192.0.2.1:40000"; whether it was there."""
    for found, name, _ in _connected():
        if name == connection:
            _shut(found)
            return True
    return False


class Doorkeeper:
    """Keeps the connections of each network within `most`: the newest are cut.

    `ports` gives the ports of our own listeners. A connection counts as old from the first look that saw it.
    """

    def __init__(
        self, most: int, ports: Callable[[], Collection[int]], observe: Callable[[], None] = lambda: None
    ) -> None:
        self._most = most
        self._ports = ports
        self._observe = observe
        self._seen: dict[str, int] = {}  # connection -> number of the look that saw it first
        self._looks = 0

    def look(self) -> int:
        """Count, and cut what is too much; the number of connections cut."""
        ports = set(self._ports())
        self._looks += 1
        networks: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        seen: dict[str, int] = {}
        for _, name, port in _connected():
            if port in ports:
                seen[name] = self._seen.get(name, self._looks)
                networks[network_of(name)].append((seen[name], name))
        self._seen = seen
        surplus = {name for found in networks.values() for _, name in sorted(found)[self._most :]}
        if surplus:
            for found, name, _ in _connected():
                if name in surplus:
                    self._observe()
                    _shut(found)
        return len(surplus)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the caller was faster
        connected.shutdown(socket.SHUT_RDWR)


def _connected() -> Iterator[tuple[socket.socket, str, int]]:
    """Every TCP connection of this process: its socket, its peer as gRPC names it, its local port."""
    folder = next(name for name in DESCRIPTORS if os.path.isdir(name))
    for number in os.listdir(folder):
        try:
            # Only a socket is duplicated: closing a duplicate of the database's LOCK would give up its lock.
            if not stat.S_ISSOCK(os.stat(f"{folder}/{number}").st_mode):
                continue
            found = socket.socket(fileno=os.dup(int(number)))
        except OSError:
            continue  # closed meanwhile
        with found:
            try:
                if found.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if found.type != socket.SOCK_STREAM:
                    continue
                yield found, _peer_name(found.getpeername()), found.getsockname()[1]
            except OSError:
                continue  # not connected


def _peer_name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    if ":" not in host:
        return f"ipv4:{host}:{port}"
    if host.startswith("::ffff:") and "." in host:
        return f"ipv4:{host[7:]}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"
