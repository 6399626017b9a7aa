"""What the stage of the demo and of the tests with processes says of its replicas."""

import socket
import threading

import pytest

from keyserver.demo.stage import HOST, Stage, answer_of

PATIENCE_S = 60


def test_who_leads_is_said_as_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once more, nobody may lead."""
    answers = iter(["", "r1", "r2", ""])
    monkeypatch.setattr(Stage, "leader", lambda self: next(answers))
    assert object.__new__(Stage).wait_leader(other_than="r1") == "r2"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_who_dies_in_the_middle_of_an_answer_has_said_nothing(said: bytes) -> None:
    with socket.create_server((HOST, 0)) as server:

        def say_and_die() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        dying = threading.Thread(target=say_and_die)
        dying.start()
        assert answer_of(server.getsockname()[1], "/status") is None
        dying.join(PATIENCE_S)
