"""Where a demo plays: the folder with realm, replicas, verifiers and people, and the processes in it.

DIR/realm.json  DIR/ca/  DIR/replicas/NAME/  DIR/verifiers/NAME/  DIR/identities/  DIR/proofs/  DIR/logs/
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from keyserver.config import Epochs, load_config
from keyserver.demo import impostor
from keyserver.demo.processes import DemoFailed, Processes, command, free_port, run, wait_until
from keyserver.installation import setup
from keyserver.verifier_list import read_verifier_info
from verifier.realm import parse_realm_json, realm_json
from verifier.types import Realm

HOST = "127.0.0.1"
REALM = "example.test"
REPLICA = "r1"
EPOCHS = Epochs(min_interval_ms=200, max_interval_ms=20_000, retry_interval_ms=500)
PORTS = fields(setup.Ports)
KEPT_ENVIRONMENT = ("PATH", "LANG", "TMPDIR")
ANSWER_SECONDS = 20.0  # on a machine whose disk stands still for a while; an answer takes milliseconds


@dataclass
class Stage:
    """One realm on loopback. `home` holds what the people keep: signing keys, pins, contexts.

    What names no replica is about the first one.
    """

    folder: Path
    verifiers: tuple[str, ...]
    replicas: tuple[str, ...] = (REPLICA,)
    ports_of: dict[str, setup.Ports] = field(init=False)
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.ports_of = {name: setup.Ports(*(free_port() for _ in PORTS)) for name in self.replicas}
        self.processes = Processes(self.folder / "logs")

    @property
    def realm_file(self) -> Path:
        return self.folder / "realm.json"

    @property
    def home(self) -> Path:
        return self.folder / "identities"

    @property
    def proofs(self) -> Path:
        return self.folder / "proofs"

    @property
    def replica(self) -> Path:
        return self.folder_of(REPLICA)

    @property
    def ports(self) -> setup.Ports:
        return self.ports_of[REPLICA]

    def folder_of(self, name: str) -> Path:
        """The folder of a replica or a verifier."""
        return self.folder / ("replicas" if name in self.replicas else "verifiers") / name

    def verifier(self, name: str) -> Path:
        return self.folder / "verifiers" / name

    def environment(self) -> dict[str, str]:
        """What the processes see: the demo's home, no colours, nothing else of the caller's settings."""
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        return {**kept, "HOME": str(self.home), "E2EKS_HOME": str(self.home), "NO_COLOR": "1"}

    def run(self, module: str, *arguments: str) -> CompletedProcess[str]:
        """Run one of the project's commands to its end."""
        return run(command(module, *arguments), self.environment())

    # Setting up

    def plan(self) -> setup.Plan:
        """What to set up; tests play on the same stage with other plans."""
        return setup.Plan(
            realm=REALM,
            replicas=tuple(setup.Replica(name, HOST, self.ports_of[name]) for name in self.replicas),
            epochs=EPOCHS,
            insecure_skip_registration_proof=True,
        )

    def set_up(self) -> None:
        """Keys, certificates and configuration of replicas and verifiers; the realm lists the verifiers."""
        setup.init(self.folder, self.plan(), datetime.now(UTC))
        for folder in (self.home, self.proofs, self.folder / "verifiers"):
            folder.mkdir(mode=0o700)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._init_verifier, self.verifiers))
        infos = [read_verifier_info(self.verifier(name) / "verifier-info.json") for name in self.verifiers]
        first, *others = (load_config(self.config_of(name)) for name in self.replicas)
        setup.add_verifiers(first, infos, others=others)
        for name in self.verifiers:
            (self.verifier(name) / "realm.json").write_bytes(self.realm_file.read_bytes())

    def _init_verifier(self, name: str) -> None:
        places = [
            part
            for ports in self.ports_of.values()
            for option, port in (
                ("--verification-address", ports.verification),
                ("--push-address", ports.push),
            )
            for part in (option, f"{HOST}:{port}")
        ]
        done = self.run(
            "verifier.daemon", "init", str(self.verifier(name)), "--realm-file", str(self.realm_file),
            "--name", name, "--address", f"{HOST}:{free_port()}", *places,
        )  # fmt: skip
        if done.returncode:
            raise DemoFailed(f"verifier init ended with status {done.returncode}: {done.stderr.strip()}")

    # Processes

    def config_of(self, name: str = REPLICA) -> Path:
        return self.folder_of(name) / "keyserver.toml"

    def spawn_replica(self, name: str = REPLICA) -> None:
        """Start a replica without waiting."""
        self.processes.spawn(name, command("keyserver", "serve", "-c", str(self.config_of(name))))

    def start_replica(self, name: str = REPLICA) -> None:
        """Start a replica and wait until it is ready."""
        self.spawn_replica(name)
        self.wait_ready(name)

    def start_replicas(self) -> None:
        """Start all of them, then wait: none is ready before a majority runs."""
        for name in self.replicas:
            self.spawn_replica(name)
        for name in self.replicas:
            self.wait_ready(name)

    def wait_ready(self, name: str = REPLICA) -> None:
        wait_until(lambda: self.replica_ready(name), name, self.processes.running[name])

    def start_verifiers(self) -> None:
        """Start the verifiers; they find the replicas by themselves."""
        for name in self.verifiers:
            arguments = command("verifier.daemon", "run", "-c", str(self.verifier(name) / "verifier.toml"))
            self.processes.spawn(name, arguments)

    def replica_ready(self, name: str = REPLICA) -> bool:
        return self.http("/readyz", name) is not None

    def status(self, name: str = REPLICA) -> dict[str, Any]:
        """A replica's status; empty while it is not ready."""
        return parse_json((self.http("/status", name) or b"{}").decode())

    def standing(self, name: str = REPLICA) -> dict[str, Any]:
        """A replica's status, ready or not; empty while it does not answer."""
        return parse_json((self.http("/status", name, although_not_ready=True) or b"{}").decode())

    def leader(self) -> str:
        """The replica that leads in the newest term any of them knows; "" while nobody does.

        A realm of one is always led.
        """
        if len(self.replicas) == 1:
            return REPLICA
        found = {name: self.standing(name) for name in self.replicas if name in self.processes.running}
        leading = [
            (said.get("term", 0), name) for name, said in found.items() if said.get("role") == "leader"
        ]
        return max(leading, default=(0, ""))[1]

    def wait_leader(self, other_than: str = "") -> str:
        """Wait until a replica leads that is not the one given; its name."""
        seen = [""]

        def leads() -> bool:
            seen.append(self.leader())
            return seen[-1] not in ("", other_than)

        wait_until(leads, "no replica leads")
        return seen[-1]

    def epochs(self) -> int:
        """The newest signed epoch that any replica knows."""
        return max(int(self.standing(name).get("signed_epoch", 0)) for name in self.replicas)

    def ratified(self) -> bool:
        """Whether every verifier has ratified an epoch."""
        verifiers = (self.status().get("head") or {}).get("verifiers", [])
        return len(verifiers) == len(self.verifiers) and all(v["ratified_epoch"] for v in verifiers)

    def http(self, path: str, name: str = REPLICA, *, although_not_ready: bool = False) -> bytes | None:
        """What a replica's HTTP listener answers; None while it does not, or says that it is not ready."""
        return answer_of(self.ports_of[name].http, path, although_not_ready=although_not_ready)

    # People

    def realm(self) -> Realm:
        return parse_realm_json(self.realm_file.read_bytes())

    def e2eks(self, *arguments: str) -> CompletedProcess[str]:
        """Run the unchanged client."""
        return self.run("verifier.client", *arguments)

    def start_impostor(self, answer: Path | None) -> Path:
        """Start a lying server in front of a replica; the realm file that leads to it."""
        port = free_port()
        roots = self.folder / "ca" / "realm-ca.pem"
        arguments = command(
            impostor.__name__,
            "--listen", f"{HOST}:{port}", "--upstream", f"{HOST}:{self.ports.public}",
            "--certificate", str(self.replica / "tls.pem"), "--key", str(self.replica / "tls.key"),
            "--roots", str(roots), *(("--answer", str(answer)) if answer else ()),
        )  # fmt: skip
        self.processes.start("impostor", arguments, lambda: listening(port))
        elsewhere = self.folder / "logs" / "realm-of-the-impostor.json"
        elsewhere.write_bytes(realm_json(replace(self.realm(), addresses=(f"{HOST}:{port}",))))
        return elsewhere


def answer_of(port: int, path: str, *, although_not_ready: bool = False) -> bytes | None:
    """What an HTTP listener of this machine answers; None while it does not, or says that it is not ready."""
    try:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=ANSWER_SECONDS) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                return error.read() if although_not_ready else None
    except (OSError, http.client.HTTPException):  # it may also end in the middle of its answer
        return None


def listening(port: int) -> bool:
    """Whether something accepts connections at the loopback port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def parse_json(text: str) -> dict[str, Any]:
    """The one JSON object a command printed."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DemoFailed("a command did not print a JSON object")
    return value
