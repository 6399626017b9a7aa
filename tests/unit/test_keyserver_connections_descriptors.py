"""Looking for connections leaves every descriptor of the process as it was: the database's lock above all."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from keyserver.frontends.connections import DESCRIPTORS, Connection, Doorkeeper, hang_up

TRY_LOCK = (
    "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'rb+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"  # fails if held
)


def open_descriptors() -> int:
    return len(os.listdir(next(name for name in DESCRIPTORS if os.path.isdir(name))))


def test_no_look_leaves_a_descriptor_behind(tmp_path: Path) -> None:
    with (
        (tmp_path / "a file").open("wb"),
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        doorkeeper = Doorkeeper(1, lambda: [listener.getsockname()[1]])
        before = open_descriptors()
        for _ in range(3):
            doorkeeper.look()
        assert open_descriptors() <= before  # what others close meanwhile is none of ours


def test_a_look_does_not_give_up_the_lock_of_a_file(tmp_path: Path) -> None:
    """POSIX drops a process's lock when any descriptor of the file is closed; LevelDB's LOCK is one."""
    path = tmp_path / "LOCK"
    path.write_bytes(b"")
    with path.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Doorkeeper(1, list).look()
        other = subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, check=False)
    assert other.returncode != 0, "another process took the lock"


def test_without_a_descriptor_to_look_with_the_look_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood that takes the last descriptor must not end the one who would cut it."""
    arrived: list[Connection] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as caller,
        listener.accept()[0],
    ):
        port = listener.getsockname()[1]
        doorkeeper = Doorkeeper(1, lambda: [port], arrived=arrived.extend)
        doorkeeper.look()
        assert len(arrived) == 1

        def refuse(_: str) -> list[str]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", refuse)
            assert doorkeeper.look() == 0
            assert not hang_up(f"ipv4:127.0.0.1:{caller.getsockname()[1]}")
        doorkeeper.look()
        assert len(arrived) == 1  # known still: nobody came anew
