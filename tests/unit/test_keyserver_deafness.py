"""Who connects too often is heard no more, until it has paid; all others are, and what is open stays open."""

import ipaddress
import socket
import sys
from collections.abc import Iterator

import pytest

from keyserver.frontends import deafness
from keyserver.frontends.connections import Connection, Doorkeeper
from keyserver.frontends.deafness import NETWORKS, Turnstile, program, turn_deaf
from keyserver.rate_limits import Arrivals, Rate

SOON_S = 0.2  # an unheard SYN is answered by nothing; it would be sent again after a second
PATIENCE_S = 30.0
NET_OFFSET = 2**32 - 2**20  # SKF_NET_OFF

linux = pytest.mark.skipif(sys.platform != "linux", reason="filters of sockets are Linux's")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def connect(listener: socket.socket, source: str, seconds: float = PATIENCE_S) -> socket.socket:
    return socket.create_connection(listener.getsockname(), seconds, source_address=(source, 0))


def hears(listener: socket.socket, source: str) -> bool:
    try:
        connect(listener, source, SOON_S).close()
    except TimeoutError:
        return False
    listener.accept()[0].close()
    return True


# The kernel's filter


@linux
def test_only_new_connections_of_the_networks_are_not_heard(listener: socket.socket) -> None:
    with connect(listener, "127.0.0.2") as before, listener.accept()[0] as ours:
        assert turn_deaf(listener, ["127.0.0.2", "2001:db8::/64"])
        assert not hears(listener, "127.0.0.2")
        assert hears(listener, "127.0.0.3")
        before.send(b"still")
        assert ours.recv(10) == b"still"
    assert turn_deaf(listener, ["127.0.0.3"])
    assert hears(listener, "127.0.0.2")
    assert not hears(listener, "127.0.0.3")
    assert turn_deaf(listener, [])
    assert hears(listener, "127.0.0.3")


@linux
def test_a_full_filter_is_one_that_the_kernel_takes(listener: socket.socket) -> None:
    numbers = range(NETWORKS)
    assert turn_deaf(listener, [f"192.0.2.{number}" for number in numbers])
    assert turn_deaf(listener, [f"2001:db8:0:{number:x}::/64" for number in numbers])
    assert hears(listener, "127.0.0.2")


def verdict(networks: list[str], source: str, flags: int) -> bool:
    """Whether a segment passes, by the rules of linux/filter.h: not every machine has IPv6 to try it with."""
    packed = ipaddress.ip_address(source).packed
    version, addresses_at = (0x40, 12) if len(packed) == 4 else (0x60, 8)
    seen = {0: bytes(13) + bytes([flags]), NET_OFFSET: bytes([version]) + bytes(addresses_at - 1) + packed}
    steps, at, held = program(networks), 0, 0
    while True:
        code, then, other, operand = steps[at]
        at += 1
        match code:
            case 0x20 | 0x30:
                base = NET_OFFSET if operand >= NET_OFFSET else 0
                place, size = operand - base, 4 if code == 0x20 else 1
                held = int.from_bytes(seen[base][place : place + size], "big")
            case 0x54:
                held &= operand
            case 0x15:
                at += then if held == operand else other
            case _:
                assert code == 0x06
                return operand > 0


def test_networks_of_ipv6_are_whole_and_both_versions_may_come_over_one_socket() -> None:
    syn, syn_ack, ack = 0x02, 0x12, 0x10
    networks = ["2001:db8:0:7::/64", "2001:db8:0:8::/64", "192.0.2.7"]
    for source, heard in (
        ("2001:db8:0:7::1", False),
        ("2001:db8:0:7:ffff::", False),
        ("2001:db8:0:8::1", False),
        ("2001:db8:0:9::1", True),
        ("2001:db9:0:7::1", True),
        ("192.0.2.7", False),
        ("192.0.2.8", True),
    ):
        assert verdict(networks, source, syn) == heard, source
        assert verdict(networks, source, ack), source
        assert verdict(networks, source, syn_ack), source
        assert verdict([], source, syn), source


def test_no_step_of_a_filter_jumps_beyond_its_end() -> None:
    networks = [f"192.0.2.{number}" for number in range(NETWORKS // 2)]
    networks += [f"2001:db8:0:{number:x}::/64" for number in range(NETWORKS // 2)]
    steps = program(networks)
    for at, (_, then, other, operand) in enumerate(steps):
        assert max(then, other) < 256
        assert at + 1 + max(then, other) < len(steps) or at == len(steps) - 1
        assert 0 <= operand < 2**32


# Who owes


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_came_above_the_rate_is_owed_and_time_pays_it() -> None:
    clock = Clock()
    arrivals = Arrivals(Rate(10, 20), seconds=clock)
    assert arrivals.count({"a": 20, "b": 1}) == []
    assert arrivals.count({"a": 5}) == ["a"]
    assert arrivals.count({"b": 40}) == ["b", "a"]
    clock.now = 0.4
    assert arrivals.count({}) == ["b", "a"]
    clock.now = 0.5
    assert arrivals.count({}) == ["b"]
    clock.now = 2.1
    assert arrivals.count({}) == []
    assert arrivals.count({"a": 20}) == ["a"]  # never more than the rate, however long ago
    clock.now = 1_000.0
    assert arrivals.count({"a": 20}) == []


@linux
def test_a_network_that_connects_too_often_is_unheard_until_it_has_paid(listener: socket.socket) -> None:
    clock, told = Clock(), list[int]()
    port: int = listener.getsockname()[1]
    turnstile = Turnstile(Arrivals(Rate(1, 2), seconds=clock), [port], lambda: told.append(1))
    keeper = Doorkeeper(100, lambda: [port, port + 1], arrived=turnstile.see)
    pairs = [(connect(listener, "127.0.0.2"), listener.accept()[0]) for _ in range(3)]
    keeper.look()
    assert not hears(listener, "127.0.0.2")
    assert hears(listener, "127.0.0.1")
    keeper.look()  # who came is counted once
    assert told == [1]
    clock.now = 1.0
    keeper.look()
    assert hears(listener, "127.0.0.2")
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_listeners_that_cannot_be_found_now_are_turned_deaf_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left to look with, just when somebody connects too often."""
    sought, told = list[int](), list[int]()

    def find(_: object) -> list[socket.socket]:
        sought.append(1)
        if len(sought) == 1:
            raise OSError
        return []

    monkeypatch.setattr(deafness, "listening", find)
    turnstile = Turnstile(Arrivals(Rate(1, 1), seconds=Clock()), [1], lambda: told.append(1))
    for came in ([Connection(9, number, f"ipv4:192.0.2.1:{number}", 1) for number in range(2)], [], []):
        turnstile.see(came)
    assert len(sought) == 2
    assert told == [1]


def test_connections_of_other_listeners_are_not_counted() -> None:
    told: list[int] = []
    turnstile = Turnstile(Arrivals(Rate(1, 1), seconds=Clock()), [1], lambda: told.append(1))
    turnstile.see(Connection(9, number, f"ipv4:192.0.2.1:{number}", 2) for number in range(50))
    assert told == []
    turnstile.see(Connection(9, number, f"ipv4:192.0.2.1:{number}", 1) for number in range(2))
    assert told == [1]
