"""The processes of a realm: set up by the operators' own commands, started, killed, stopped."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from e2eks.v1 import client_pb2

from keyserver.config import Epochs
from keyserver.demo.processes import command, wait_until
from keyserver.demo.stage import HOST, REPLICA, Stage
from keyserver.installation import setup
from realm_processes.calls import Door, Reply
from realm_processes.people import Authority
from verifier.crypto.hashing import key_id
from verifier.crypto.signatures import SigningKey
from verifier.files import read_secret
from verifier.signonce import Row, SignOnceRegister
from verifier.types import SignedHead

KEYSERVER = "/e2eks.v1.Keyserver/"
VERIFICATION = "/e2eks.v1.Verification/"
RATIFIED_HEADS = "/e2eks.v1.RatifiedHeads/"
EPOCHS = Epochs(min_interval_ms=200, max_interval_ms=800, retry_interval_ms=300)
JSON = {"keyserver": ("-o", "json")}  # how a command is told to print it; `verifier` prints its info anyway
QUICK_RETRIES = """
[times]
retry_min_ms = 50
retry_max_ms = 250
compare_interval_ms = 1000
silence_max_ms = 1000
"""

# Tests ask from one address, over a connection for each call.
MANY_CONNECTIONS = """
[limits]
peer_new_connections = { per_second = 1e6, at_once = 1e6 }
"""


class RealmProcesses(Stage):
    """`verifiers` are listed by the realm, and run unless they are in `mute`. One replica, if not told more.

    A mute verifier is played by the test. Registrations need a certificate of `authority`, or nothing.
    """

    epochs_plan = EPOCHS
    authority: Authority | None = None
    mute: tuple[str, ...] = ()
    limits = MANY_CONNECTIONS

    def plan(self) -> setup.Plan:
        plan = replace(super().plan(), epochs=self.epochs_plan)
        if self.authority is None:
            return plan
        file = self.folder.parent / "registration-ca.pem"
        file.write_bytes(self.authority.pem)
        return replace(plan, registration_ca=file, insecure_skip_registration_proof=False)

    def set_up(self) -> None:
        super().set_up()
        for config in map(self.config_of, self.replicas):
            with config.open("a") as file:
                file.write(self.limits)

    def open(self) -> None:
        """Set up and start everything."""
        self.set_up()
        for name in self.verifiers:
            with (self.verifier(name) / "verifier.toml").open("a") as file:
                file.write(QUICK_RETRIES)
        self.start_replicas()
        for name in self.running_verifiers:
            self.start_verifier(name)
        wait_until(self.is_ratified, "the first ratified epoch")

    @contextmanager
    def used(self) -> Iterator[Self]:
        """Open. At the end every process still runs, stops cleanly, and has logged no exception or person."""
        try:
            self.open()
            yield self
            self.check_alive()
            for name in list(self.processes.running):
                assert self.processes.stop(name) == 0, f"{name} did not stop cleanly"
                log = self.log_of(name)
                assert "Traceback" not in log, f"{name} logged an exception"
                assert "person-" not in log, f"{name} logged a user id"
        finally:
            self.close()

    def stop_all(self) -> None:
        """End every process; files stay where they are."""
        self.processes.stop_all()

    def close(self) -> None:
        """Stop everything, and give back what was taken."""
        self.stop_all()

    def is_ratified(self) -> bool:
        """Whether the realm's quorum has ratified an epoch that is still fresh."""
        request = client_pb2.LookupRequest(user_id=f"nobody@{self.realm().domains[0]}")
        return self.lookup(request).code == "OK"

    @property
    def running_verifiers(self) -> tuple[str, ...]:
        return tuple(name for name in self.verifiers if name not in self.mute)

    def start_verifier(self, name: str) -> None:
        arguments = command("verifier.daemon", "run", "-c", str(self.verifier(name) / "verifier.toml"))
        self.processes.spawn(name, arguments)

    def spawn_replica(self, name: str = REPLICA, *, counting_crashes: bool = False) -> None:
        """Start a replica without waiting. Tests kill it more often than it would bear counting."""
        leave = () if counting_crashes else ("--leave-diagnostic",)
        self.processes.spawn(name, command("keyserver", "serve", "-c", str(self.config_of(name)), *leave))

    def kill(self, name: str) -> None:
        """SIGKILL a process, which must still run."""
        process = self.processes.running[name]
        assert process.poll() is None, f"{name} ended by itself with status {process.returncode}"
        self.processes.kill(name)
        assert process.returncode == -signal.SIGKILL

    def check_alive(self) -> None:
        """Raises AssertionError if a process ended by itself."""
        for name, process in self.processes.running.items():
            assert process.poll() is None, f"{name} ended by itself with status {process.returncode}"

    def ok(self, module: str, *arguments: object) -> Any:
        """The JSON that a command prints, which must succeed."""
        done = self.run(module, *(str(argument) for argument in arguments), *JSON.get(module, ()))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # Doors

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the replicas' clients find them today."""
        return tuple(f"{HOST}:{self.ports_of[name].public}" for name in self.replicas)

    def public(self, replica: str = REPLICA) -> Door:
        return Door(f"{HOST}:{self.ports_of[replica].public}", self._roots())

    def verification(self, replica: str = REPLICA) -> Door:
        return Door(f"{HOST}:{self.ports_of[replica].verification}", self._roots())

    def push(self, name: str) -> Door:
        """The first replica's push port, with the certificate of the verifier `name`."""
        folder = self.verifier(name)
        pair = ((folder / "tls.pem").read_bytes(), (folder / "tls.key").read_bytes())
        return Door(f"{HOST}:{self.ports.push}", self._roots(), pair)

    def ratified_heads(self, name: str) -> Door:
        """The door of the verifier `name`."""
        address = next(v.address for v in self.realm().verifiers if v.name == name)
        return Door(address, self._roots())

    def _roots(self) -> bytes:
        return "\n".join(self.realm().tls_roots_pem).encode()

    # What processes say and keep

    def lookup(self, request: client_pb2.LookupRequest) -> Reply:
        """The answer to a lookup, believed unseen."""
        return self.public().call(KEYSERVER + "Lookup", request.SerializeToString())

    def signers_of(self, head: SignedHead) -> set[str]:
        """Names of those whose signatures a head carries."""
        made = {s.key_id for ratification in head.ratifications for s in ratification.signatures}
        return {name for name in (*self.replicas, *self.verifiers) if self.key_id_of(name) in made}

    def key_of(self, name: str) -> SigningKey:
        """The signing key of a replica or a verifier."""
        file = "head.key" if name in self.replicas else "verifier.key"
        return SigningKey(read_secret(self.folder_of(name) / file))

    def key_id_of(self, name: str) -> bytes:
        return key_id(self.key_of(name).public_key)

    def log_of(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()

    def register_of(self, name: str) -> Path:
        """The sign-once register of a process."""
        return self.folder_of(name) / "sign-once.register"

    def signed_by(self, name: str) -> list[Row]:
        """Every row of the sign-once register of a process that does not run."""
        register = SignOnceRegister.open(self.register_of(name), key_id=self.key_id_of(name))
        try:
            newest = register.newest()
            rows = (register.get(epoch) for epoch in range(1, newest.epoch + 1 if newest else 1))
            return [row for row in rows if row is not None]
        finally:
            register.close()
