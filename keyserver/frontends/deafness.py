"""Networks whose new connections are not heard: the kernel drops what would begin one, before TLS costs
anything.

gRPC for Python refuses no caller before its TLS handshake. Linux drops what the filter of a listening
socket (classic BPF, socket(7)) does not pass; the caller sees silence and tries again, a second later at
first. Law: only segments that begin a connection are dropped. Connections inherit the filter of their
listener, and nothing that belongs to one is touched by it, however old it is.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from keyserver.frontends.connections import Connection, listening
from keyserver.rate_limits import Arrivals, network_of

NETWORKS = 64  # of which a filter knows: each costs every segment that begins a connection two steps
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module does not name it

_FLAGS_AT = 13  # of the TCP header, where the filter of a TCP socket begins to see
_SYN, _ACK = 0x02, 0x10
_IP = 0x100000000 - 0x100000  # SKF_NET_OFF of linux/filter.h, as the unsigned number it is in a step
_SOURCE_4, _SOURCE_6 = _IP + 12, _IP + 8
_LOAD_BYTE, _LOAD_WORD, _AND, _EQUAL, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x06  # linux/bpf_common.h

Step = tuple[int, int, int, int]  # code, steps to jump if so, if not, operand
_PASS, _DROP = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)


class Turnstile:
    """Turns the listeners on `ports` deaf to networks that connect more often than `arrivals` allows.

    `observe` is told of each network that is heard no more.
    """

    def __init__(self, arrivals: Arrivals, ports: Collection[int], observe: Callable[[], None]) -> None:
        self._arrivals = arrivals
        self._ports = frozenset(ports)
        self._observe = observe
        self._unheard: frozenset[str] = frozenset()

    def see(self, new: Iterable[Connection]) -> None:
        """Count these connections; hear whom there is reason to hear. Call it often: time pays debts."""
        came = Counter(network_of(connection.name) for connection in new if connection.port in self._ports)
        owing = frozenset(self._arrivals.count(came)[:NETWORKS])
        if owing == self._unheard:
            return
        try:
            for listener in listening(self._ports):
                turn_deaf(listener, sorted(owing))
        except OSError:  # no descriptor left to find them with: they are sought again at the next call
            return
        for _ in owing - self._unheard:
            self._observe()
        self._unheard = owing


def turn_deaf(listener: socket.socket, networks: Collection[str]) -> bool:
    """Hear new connections from all but these at most NETWORKS networks (rate_limits.network_of), whatever
    was said before. False where the kernel has no such filter.
    """
    steps = program(networks)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    filtered = struct.pack("@HP", len(steps), ctypes.addressof(code))
    if not sys.platform.startswith("linux"):
        return False
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtered)
    except OSError:
        return False
    return True


def program(networks: Collection[str]) -> list[Step]:
    """The filter: passes everything but a SYN of one of the networks."""
    of_4: list[Step] = [(_LOAD_WORD, 0, 0, _SOURCE_4)]
    of_6: list[Step] = []
    for network in map(ipaddress.ip_network, networks):
        packed = network.network_address.packed
        if len(packed) == 4:
            of_4 += [(_EQUAL, 0, 1, int.from_bytes(packed, "big")), _DROP]
        else:
            high, low = struct.unpack("!II", packed[:8])  # IPV6_PREFIX bits
            of_6 += [(_LOAD_WORD, 0, 0, _SOURCE_6), (_EQUAL, 0, 3, high)]
            of_6 += [(_LOAD_WORD, 0, 0, _SOURCE_6 + 4), (_EQUAL, 0, 1, low), _DROP]
    of_4.append(_PASS)
    begins = [(_LOAD_BYTE, 0, 0, _FLAGS_AT), (_AND, 0, 0, _SYN | _ACK), (_EQUAL, 1, 0, _SYN), _PASS]
    version = [(_LOAD_BYTE, 0, 0, _IP), (_AND, 0, 0, 0xF0), (_EQUAL, 0, len(of_4), 0x40)]
    return [*begins, *version, *of_4, *of_6, _PASS]
