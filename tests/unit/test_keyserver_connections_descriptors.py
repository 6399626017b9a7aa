"""Looking for connections leaves every descriptor of the process as it was: the database's lock above all."""

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

from keyserver.frontends.connections import DESCRIPTORS, Doorkeeper

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
        assert open_descriptors() == before


def test_a_look_does_not_give_up_the_lock_of_a_file(tmp_path: Path) -> None:
    """POSIX drops a process's lock when any descriptor of the file is closed; LevelDB's LOCK is one."""
    path = tmp_path / "LOCK"
    path.write_bytes(b"")
    with path.open("rb+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Doorkeeper(1, list).look()
        other = subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, check=False)
    assert other.returncode != 0, "another process took the lock"
