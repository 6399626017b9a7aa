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
from dataclasses import dataclass
from operator import itemgetter

from keyserver.rate_limits import network_of

DESCRIPTORS = ("/proc/self/fd", "/dev/fd")  # Linux; others


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection of this process: where its socket is, its peer as gRPC names it, its local port."""

    descriptor: int
    inode: int  # of the socket: another one may have the descriptor by now
    name: str
    port: int

    def shut(self) -> None:
        """Shut the socket down, unless it is gone."""
        with contextlib.suppress(OSError), _duplicate(self.descriptor) as found:
            if os.fstat(found.fileno()).st_ino == self.inode:
                found.shutdown(socket.SHUT_RDWR)


class Connections:
    """All connections of this process. Only what was not seen before is asked who it is."""

    def __init__(self) -> None:
        self._known: dict[int, Connection] = {}

    def look(self) -> list[Connection]:
        """Those that there are now."""
        found: dict[int, Connection] = {}
        for number, inode in _sockets():
            known = self._known.get(number)
            if known is None or known.inode != inode:
                known = _connection(number, inode)
            if known is not None:
                found[number] = known
        self._known = found
        return list(found.values())


def hang_up(connection: str) -> bool:
    """Shut down the socket of a gRPC peer such as "ipv4:192.0.2.1:40000"; whether it was there."""
    with contextlib.suppress(OSError):  # no descriptor left to look with
        for found in Connections().look():
            if found.name == connection:
                found.shut()
                return True
    return False


class Doorkeeper:
    """Keeps the connections of each network within `most`: the newest are cut.

    `ports` gives the ports of our own listeners. A connection counts as old from the first look that saw it.
    `arrived` is shown at each look those that came since the last.
    """

    def __init__(
        self,
        most: int,
        ports: Callable[[], Collection[int]],
        observe: Callable[[], None] = lambda: None,
        arrived: Callable[[list[Connection]], None] = lambda _: None,
    ) -> None:
        self._most = most
        self._ports = ports
        self._observe = observe
        self._arrived = arrived
        self._connections = Connections()
        self._seen: dict[Connection, int] = {}  # -> number of the look that saw it first
        self._looks = 0

    def look(self) -> int:
        """Count, and cut what is too much; the number of connections cut."""
        ports = set(self._ports())
        try:
            there = self._connections.look()
        except OSError:  # no descriptor left to look with: the next look may have one
            return 0
        self._looks += 1
        networks: defaultdict[str, list[tuple[int, Connection]]] = defaultdict(list)
        seen: dict[Connection, int] = {}
        for found in there:
            if found.port in ports:
                first = seen[found] = self._seen.get(found, self._looks)
                networks[network_of(found.name)].append((first, found))
        self._arrived([found for found in seen if found not in self._seen])
        self._seen = seen
        surplus = [
            each for found in networks.values() for each in sorted(found, key=itemgetter(0))[self._most :]
        ]
        for _, connection in surplus:
            self._observe()
            connection.shut()
        return len(surplus)


def listening(ports: Collection[int]) -> Iterator[socket.socket]:
    """The sockets that listen on the ports, as duplicates that are closed afterwards."""
    for number, _ in _sockets():
        with contextlib.suppress(OSError), _duplicate(number) as found:
            waits = _is_tcp(found) and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if waits and found.getsockname()[1] in ports:
                yield found


def _sockets() -> Iterator[tuple[int, int]]:
    """Descriptor and inode of every socket. Nothing else may be duplicated: closing a duplicate of the
    database's LOCK would give up its lock.
    """
    folder = next(name for name in DESCRIPTORS if os.path.isdir(name))
    for number in map(int, os.listdir(folder)):
        try:
            status = os.fstat(number)
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISSOCK(status.st_mode):
            yield number, status.st_ino


def _duplicate(number: int) -> socket.socket:
    return socket.socket(fileno=os.dup(number))


def _connection(number: int, inode: int) -> Connection | None:
    try:
        with _duplicate(number) as found:
            if not _is_tcp(found):
                return None
            return Connection(number, inode, _peer_name(found.getpeername()), found.getsockname()[1])
    except OSError:  # not connected, or closed meanwhile
        return None


def _is_tcp(found: socket.socket) -> bool:
    return found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM


def _peer_name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    if ":" not in host:
        return f"ipv4:{host}:{port}"
    if host.startswith("::ffff:") and "." in host:
        return f"ipv4:{host[7:]}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"
