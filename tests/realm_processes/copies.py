"""A realm whose folders are copied, put back and lost behind its processes' backs, and whose clocks may be
wrong.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from keyserver.demo.processes import command, free_port, wait_until
from keyserver.demo.stage import HOST, REPLICA, answer_of
from keyserver.installation import setup
from realm_processes.realm import RealmProcesses
from verifier.signonce import read_rows

DAY_NS = 24 * 3600 * 10**9


class CopiedRealm(RealmProcesses):
    """With hands to take processes out, put other folders in their place, and look at how they end.

    What a stopped one has signed stays fresh for an hour: copies of it are put back all the while.
    """

    def plan(self) -> setup.Plan:
        return replace(super().plan(), epoch_ttl_ms=3_600_000)

    def ensure_replica(self) -> None:
        if REPLICA not in self.processes.running:
            self.start_replica()

    def spawn_clone(self, folder: Path) -> None:
        """A second replica, from another folder."""
        self.processes.spawn("clone", command("keyserver", "serve", "-c", str(folder / "keyserver.toml")))

    def end_of(self, name: str) -> int:
        """The status with which a process ends by itself; it counts as stopped."""
        process = self.processes.running[name]
        wait_until(lambda: process.poll() is not None, f"the end of {name}")
        del self.processes.running[name]
        assert process.returncode is not None
        return process.returncode

    def wait_beyond(self, epoch: int) -> int:
        """Wait until a newer epoch is signed; its number."""
        wait_until(lambda: self.epochs() > epoch, f"an epoch after {epoch}")
        return self.epochs()

    def ratified_by(self, name: str) -> int:
        """The newest epoch that the replica has this verifier's ratification of, under the key it has now."""
        listed = (self.status().get("head") or {}).get("verifiers", [])
        return next((v["ratified_epoch"] for v in listed if v["name"] == name), 0)

    def wait_ratified_by(self, name: str, beyond: int) -> int:
        wait_until(lambda: self.ratified_by(name) > beyond, f"{name} to ratify after {beyond}")
        return self.ratified_by(name)

    def newest_in_register(self, name: str, folder: Path | None = None) -> int:
        """Read without a lock: its owner may run."""
        path = (folder or self.register_of(name).parent) / "sign-once.register"
        floor, rows = read_rows(path, key_id=self.key_id_of(name))
        return max([floor, *rows])


def put(source: Path, target: Path) -> None:
    """A file or a folder in place of another."""
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def status_of(port: int) -> dict[str, Any]:
    """The status document, whatever HTTP says of it; empty while nobody answers."""
    found: dict[str, Any] = json.loads(answer_of(port, "/status", although_not_ready=True) or b"{}")
    return found


def cloned(realm: CopiedRealm, folder: Path) -> tuple[Path, dict[str, int]]:
    """A copy of a replica's folder, beside it, that listens elsewhere."""
    copy = shutil.copytree(folder, folder.with_name("clone"))
    config = copy / "keyserver.toml"
    ports = {name: free_port() for name in ("public", "verification", "push", "http")}
    text = config.read_text()
    for name, port in ports.items():
        text = re.sub(rf'^{name} = ".*"$', f'{name} = "{HOST}:{port}"', text, flags=re.MULTILINE)
    config.write_text(text)
    return copy, ports


def follow(realm: CopiedRealm, name: str, ports: dict[str, int]) -> None:
    """Let a verifier follow another replica."""
    config = realm.verifier(name) / "verifier.toml"
    text = config.read_text()
    for key in ("verification", "push"):
        text = re.sub(rf"^{key} = \[.*\]", f'{key} = ["{HOST}:{ports[key]}"]', text, flags=re.MULTILINE)
    config.write_text(text)


def compare_every(realm: CopiedRealm, name: str, interval_ms: int) -> None:
    config = realm.verifier(name) / "verifier.toml"
    text = re.sub(r"compare_interval_ms = \d+", f"compare_interval_ms = {interval_ms}", config.read_text())
    config.write_text(text)


YESTERDAY = (
    "import runpy, sys, time; real = time.time_ns; module = sys.argv.pop(1); "
    f"time.time_ns = lambda: real() - {DAY_NS}; "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


class YesterdaysRealm(CopiedRealm):
    """Whose clocks are a day behind while `yesterday`."""

    yesterday = True

    def start_verifier(self, name: str) -> None:
        self._spawn(name, "verifier.daemon", "run", "-c", str(self.verifier(name) / "verifier.toml"))

    def spawn_replica(self, name: str = REPLICA, *, counting_crashes: bool = False) -> None:
        self._spawn(name, "keyserver", "serve", "-c", str(self.config_of(name)))

    def _spawn(self, name: str, module: str, *arguments: str) -> None:
        line = command(module, *arguments)
        if self.yesterday:
            line = [sys.executable, "-I", "-c", YESTERDAY, module, *arguments]
        self.processes.spawn(name, line)
