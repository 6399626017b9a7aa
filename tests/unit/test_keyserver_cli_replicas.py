"""`keyserver replicas` and what a running replica says to it, or fails to say."""

from pathlib import Path

import pytest
from operators import keyserver_command, set_up

from keyserver import operator_socket
from keyserver.installation.plan import Replica

HOSTS = tuple(Replica(f"r{n}", f"{letter}.example.org") for n, letter in enumerate("abc", 1))
REFUSED = b'{"reason": "NOT_READY", "what": "no other replica can be reached"}'


@pytest.mark.parametrize("command", ["list", "hand-over"])
@pytest.mark.parametrize(
    ("status", "answer", "code", "said"),
    [
        (409, REFUSED, 6, "no other replica can be reached (NOT_READY)"),
        (404, b"Not Found", 5, "answers with status 404"),  # of another version
        (500, b"Internal Server Error", 5, "answers with status 500"),  # its storage has just failed
        (409, b'{"reason": "OF_A_LATER_VERSION", "what": ""}', 5, "answers with status 409"),
        (409, b'["reason"]', 5, "answers with status 409"),
    ],
)
def test_what_a_replica_does_not_do_is_told_and_is_no_bug(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    status: int,
    answer: bytes,
    code: int,
    said: str,
) -> None:
    config = set_up(tmp_path / "realm", replicas=HOSTS).configs[0]
    monkeypatch.setattr(operator_socket, "ask", lambda *_: (status, answer))
    ended = keyserver_command(capsys)("replicas", command, "-c", config)
    assert ended.code == code
    assert said in ended.err
