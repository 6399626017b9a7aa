"""A cluster some of whose processes are of a newer version, which knows a rules level 2. Nothing ships it."""

from __future__ import annotations

import sys

from keyserver.demo.stage import REPLICA
from realm_processes.cluster import ClusterProcesses

# Its digests take the length of a value in.
NEWER = """
import runpy, sys
from keyserver.machine import digest, rules, state
from verifier import limits

def with_lengths(writes):
    framed = {k: None if v is None else len(v).to_bytes(4, "big") + v for k, v in writes.items()}
    return digest.encode_writes(framed)

limits.RULES = 2
state.LEVELS = {**rules.LEVELS, 2: rules.Rules(encode_writes=with_lengths)}
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class UpgradedCluster(ClusterProcesses):
    """`newer` are the processes that are of the newer version from their next start on."""

    newer: frozenset[str] = frozenset()

    def spawn_replica(self, name: str = REPLICA, *, counting_crashes: bool = False) -> None:
        if name in self.newer:
            self._spawn(name, "keyserver", "serve", "-c", str(self.config_of(name)), "--leave-diagnostic")
        else:
            super().spawn_replica(name, counting_crashes=counting_crashes)

    def start_verifier(self, name: str) -> None:
        if name in self.newer:
            self._spawn(name, "verifier.daemon", "run", "-c", str(self.verifier(name) / "verifier.toml"))
        else:
            super().start_verifier(name)

    def _spawn(self, name: str, module: str, *arguments: str) -> None:
        self.processes.spawn(name, [sys.executable, "-I", "-c", NEWER, module, *arguments])
