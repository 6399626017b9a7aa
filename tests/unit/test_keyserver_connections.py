"""Connections that must end are found among the sockets of this process; all others stay open."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from keyserver.frontends.connections import Doorkeeper, hang_up

Pair = tuple[socket.socket, socket.socket]  # the caller's end, ours


class Listener:
    """Callers of one port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    def caller(self, source: str = "127.0.0.1") -> Pair:
        made = socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0), timeout=30)
        ours, _ = self._listening.accept()
        return self._stack.enter_context(made), self._stack.enter_context(ours)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with ExitStack() as stack:
        yield Listener(stack)


def name_of(pair: Pair) -> str:
    host, port = pair[0].getsockname()
    return f"ipv4:{host}:{port}"


def is_open(pair: Pair) -> bool:
    """Whether bytes still come through."""
    try:
        pair[1].send(b"?")
    except BrokenPipeError:
        return False
    return pair[0].recv(1) == b"?"


def test_only_the_named_connection_is_cut(listener: Listener) -> None:
    first, second = listener.caller(), listener.caller()
    assert hang_up(name_of(first))
    assert not is_open(first)
    assert is_open(second)


def test_a_connection_that_is_not_there_is_nobodys(listener: Listener) -> None:
    pair = listener.caller()
    assert not hang_up("ipv4:192.0.2.1:1")
    assert is_open(pair)


def test_the_newest_of_too_many_connections_of_one_network_are_cut(listener: Listener) -> None:
    cut: list[int] = []
    keeper = Doorkeeper(2, lambda: [listener.port], lambda: cut.append(1))
    old = [listener.caller(), listener.caller()]
    other = listener.caller("127.0.0.2")
    assert keeper.look() == 0
    new = [listener.caller() for _ in range(3)]
    assert keeper.look() == 3
    assert len(cut) == 3
    assert all(is_open(pair) for pair in (*old, other))
    assert not any(is_open(pair) for pair in new)


def test_connections_of_other_ports_are_not_the_doorkeepers(listener: Listener) -> None:
    pairs = [listener.caller() for _ in range(3)]
    assert Doorkeeper(1, lambda: [listener.port + 1]).look() == 0
    assert all(is_open(pair) for pair in pairs)
