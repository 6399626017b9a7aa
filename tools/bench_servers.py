"""Processes to measure: a replica, its verifiers, a bare echo server; with the processor time they used."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from bench_realm import HOST, Ground, temporary_folder

from keyserver.config import Listen
from keyserver.demo.processes import free_port
from verifier.daemon.config import load_config

READY_S = 60.0
POLL_S = 0.005
STOP_S = 20.0
CPU_CLOCK = 2  # with a process id, the number of its clock: clock_getcpuclockid(3) on Linux


class Process:
    """A process that is started, waited for, and ended with the context it was started in."""

    def __init__(self, name: str, command: Sequence[str], is_ready: Callable[[], bool]) -> None:
        self._name = name
        self._command = command
        self._is_ready = is_ready
        self._log = temporary_folder() / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Launch, and return once it is ready. Raises RuntimeError with the end of its output."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start without waiting: members of a cluster are ready together."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """Return once it is ready. Raises RuntimeError as `start` does."""
        process = self._process
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            if process is None or process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._name} is not ready: {tail}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def memory_bytes(self) -> int:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Seconds of processor time that all its threads have used so far."""
        return time.clock_gettime(~self.pid << 3 | CPU_CLOCK)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not obeyed."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()


class Replica(Process):
    """A replica of a realm, as `keyserver serve` runs it; ready when its /readyz says so."""

    def __init__(self, ground: Ground, number: int = 0) -> None:
        self.config = config = ground.configs[number]
        command = [
            sys.executable,
            "-I",
            "-m",
            "keyserver",
            "serve",
            "--leave-diagnostic",
            "-c",
            str(config.path),
        ]
        command += [] if ground.verifiers else ["--allow-split-view"]
        super().__init__(config.replica_name, command, lambda: _is_ready(config.listen))

    def status(self) -> dict[str, Any]:
        """Its status document."""
        connection = http.client.HTTPConnection(self.config.listen.http, timeout=5)
        try:
            connection.request("GET", "/status")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()


@contextmanager
def cluster(ground: Ground) -> Iterator[tuple[Replica, ...]]:
    """All replicas of a realm, running and ready."""
    replicas = tuple(Replica(ground, number) for number in range(len(ground.configs)))
    with ExitStack() as stopping:
        for replica in replicas:
            stopping.callback(replica.stop)
            replica.launch()
        for replica in replicas:
            replica.wait_ready()
        yield replicas


def _is_ready(listen: Listen) -> bool:
    connection = http.client.HTTPConnection(listen.http, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK and _listens(listen.public)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Verifier(Process):
    """A verifier of a realm, as `verifier run` runs it; ready when it listens."""

    def __init__(self, folder: Path) -> None:
        config = load_config(folder / "verifier.toml")
        command = [sys.executable, "-I", "-m", "verifier.daemon", "run", "-c", str(config.path)]
        super().__init__(folder.name, command, lambda: _listens(config.listen))


class Echo(Process):
    """A bare server with the certificate of a replica, that answers with so many bytes."""

    def __init__(self, ground: Ground, answer_bytes: int) -> None:
        self.address = f"{HOST}:{free_port()}"
        tls = ground.config.tls
        given = [self.address, str(tls.certificate), str(tls.key), str(answer_bytes)]
        command = [sys.executable, "-I", str(Path(__file__).with_name("bench_echo.py")), *given]
        super().__init__("echo", command, lambda: _listens(self.address))


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
