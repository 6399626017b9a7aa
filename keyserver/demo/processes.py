"""The processes of a demo: started with their output in a file, waited for until ready, killed or stopped."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READY_SECONDS = 60.0  # a cold start on a busy machine; a warm one takes two
COMMAND_SECONDS = 600.0  # to replay ten thousand epochs while others use the machine
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
PORTS = (12_000, 32_000)


class DemoFailed(Exception):
    """A step did not do what it promises; the text says what was expected and what came."""


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of the project's modules with this very interpreter, isolated."""
    return [sys.executable, "-I", "-m", module, *arguments]


_given: set[int] = set()


def free_port() -> int:
    """A loopback port that is free now, and that neither the kernel nor this process gives to anybody else.

    Below the ephemeral range: who retries a closed port in that range may in the end connect to itself.
    """
    while True:
        port = PORTS[0] + secrets.randbelow(PORTS[1] - PORTS[0])
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port


def wait_until(ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once `ready()`; raises DemoFailed after READY_SECONDS or when the process ended before."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if process is not None and process.poll() is not None:
            raise DemoFailed(f"{what}: the process ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what}: not ready after {READY_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)


@dataclass
class Processes:
    """Long-running processes by name; each writes to `logs`/NAME.log.

    `variables` are what a process finds in its environment on top of the caller's.
    """

    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    variables: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def start(self, name: str, arguments: Sequence[str], ready: Callable[[], bool]) -> None:
        """Start a process and wait until it is ready."""
        self.spawn(name, arguments)
        wait_until(ready, name, self.running[name])

    def spawn(self, name: str, arguments: Sequence[str]) -> None:
        """Start a process without waiting."""
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self.variables.get(name, {})}
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """SIGKILL: the process gets no chance to tidy up."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        """SIGTERM and wait; SIGKILL if it does not obey. The exit status."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()

    def stop_all(self) -> None:
        """Stop what still runs, last started first."""
        for name in reversed(list(self.running)):
            self.stop(name)


def run(arguments: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and capture what it says."""
    return subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=COMMAND_SECONDS,
        check=False,
    )
