"""`e2eks` in this process, asking a simulated realm instead of the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import pytest
from samples import BOB

from simulated_realm import SimulatedRealm
from verifier import realm as realms
from verifier.client.cli import main
from verifier.client.client import now_ms

OTHER = "bob@example.test"


def realm_of_bob() -> SimulatedRealm:
    """A realm of today whose one user has keys of every kind."""
    world = SimulatedRealm(clock=now_ms)
    world.put(OTHER, {"age": b"age1bob", "bin": b"\0\xff", "ssh": b"# mine\nssh-ed25519 AAAA bob\n"}, BOB)
    world.close()
    return world


class Wire:
    """What the command takes for its gRPC transport."""

    def __init__(self, world: SimulatedRealm) -> None:
        self._world = world

    @property
    def addresses(self) -> Sequence[str]:
        return self._world.addresses

    def call(self, address: str, method: str, request: bytes) -> bytes:
        return self._world.call(address, method, request)

    def stream(self, address: str, method: str, request: bytes) -> Sequence[bytes]:
        return self._world.stream(address, method, request)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Run:
    """How a command ended: its exit code, stdout as bytes, stderr as text."""

    exit: int
    raw: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.raw)
        return value


class Shell:
    """A user with an empty home who trusts the simulated realm."""

    def __init__(self, world: SimulatedRealm, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.home = home
        self.terminal = False  # whether stderr and stdout are one
        self.realm_file = home / "realm.json"
        self.realm_file.write_bytes(realms.realm_json(world.realm))
        monkeypatch.setattr("verifier.client.transport.GrpcTransport", lambda *_, **__: Wire(self.world))
        self.trust = self("context", "add", str(self.realm_file))

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Run:
        runner = click.testing.CliRunner()
        result = runner.invoke(
            main, arguments, input=stdin, env={**environment}, prog_name="e2eks", color=self.terminal
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Run(result.exit_code, result.stdout_bytes, result.stderr)

    def file(self, name: str, contents: bytes) -> str:
        """A file of the user; its path."""
        path = self.home / name
        path.write_bytes(contents)
        return str(path)
