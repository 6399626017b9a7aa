"""An honest caller's lookups, and the replica's memory, while another address does harm.

The loads are those of tests/hostile, each a process of its own with the lowest priority: an attacker's
processor is elsewhere. Quiet moments and loads take turns.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from bench_lookup import request_of
from bench_measure import Measured, Plan, progress, quantile
from bench_realm import REALM, Ground, grown, temporary_folder
from bench_servers import Replica
from hostile.loads import LOADS, LOOKUP, Target

PAUSE_S = 0.005  # an honest caller does other things too
SETTLE_S = 0.5
POLL_S = 0.05
TIMEOUT_S = 30.0
QUICK = ("half-open-calls", "control-flood")


def abuse(plan: Plan) -> Iterator[Measured]:
    """p99 and memory under each load, beside those of the quiet moments before. Raises ValueError for a
    load that is none.
    """
    loads = plan.loads or (QUICK if plan.quick else tuple(LOADS))
    if unknown := set(loads) - set(LOADS):
        raise ValueError(f"no load is called {min(unknown)}; there are {', '.join(LOADS)}")
    ground = grown(plan.size(1000, 50))
    seconds, rounds = plan.size(20, 4) / 10, 1 if plan.quick else 3
    target = temporary_folder() / "target.json"
    _target(ground).write(target)
    with Replica(ground) as replica, _channel(ground) as channel:
        caller = Caller(channel, list(ground.users))
        caller.ask(seconds)
        for load in loads:
            progress(f"abuse: {load}")
            quiet, loaded, grown_bytes = [], [], 0
            for _ in range(rounds):
                quiet += caller.ask(seconds / 2)
                with Memory(replica.pid) as memory, _under(load, target, seconds + SETTLE_S):
                    time.sleep(SETTLE_S)
                    loaded += caller.ask(seconds)
                grown_bytes = max(grown_bytes, memory.grown_bytes)
            params = {"load": load, "rounds": rounds, "seconds": seconds, "lookups": len(loaded)}
            yield Measured("abuse", params, _metrics(quiet, loaded, memory.most_bytes, grown_bytes))


def _metrics(quiet: list[float], loaded: list[float], most: int, grown_bytes: int) -> dict[str, float]:
    idle_s, loaded_s = quantile(quiet, 0.99), quantile(loaded, 0.99)
    return {
        "idle_p99_ms": 1e3 * idle_s,
        "p50_ms": 1e3 * quantile(loaded, 0.5),
        "p99_ms": 1e3 * loaded_s,
        "ratio_to_idle": loaded_s / idle_s,
        "memory_bytes": most,
        "grown_bytes": grown_bytes,
    }


class Caller:
    """Asks for one registered name after the other. Raises grpc.RpcError when it is not answered."""

    def __init__(self, channel: grpc.Channel, names: list[str]) -> None:
        self._lookup: Any = channel.unary_unary(LOOKUP)
        self._names = names
        self._asked = 0

    def ask(self, seconds: float) -> list[float]:
        """Seconds that each answer took."""
        end, taken = time.perf_counter() + seconds, []
        while (start := time.perf_counter()) < end:
            self._asked += 1
            self._lookup(request_of(self._names[self._asked % len(self._names)]), timeout=TIMEOUT_S)
            taken.append(time.perf_counter() - start)
            time.sleep(PAUSE_S)
        return taken


class Memory:
    """Watches the resident memory of a process while entered."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._idle = self.most_bytes = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def grown_bytes(self) -> int:
        return self.most_bytes - self._idle

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            self.most_bytes = max(self.most_bytes, self._now())

    def _now(self) -> int:
        lines = self._status.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@contextmanager
def _under(load: str, target: Path, seconds: float) -> Iterator[None]:
    """A load for so many seconds; raises RuntimeError if it failed by itself."""
    tests = Path(__file__).parent.parent / "tests"
    start = (
        f"import sys; sys.path.insert(0, {str(tests)!r}); from hostile.loads import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-I", "-c", start, str(target), load, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        out, _ = process.communicate()
    if process.returncode or not json.loads(out):
        raise RuntimeError(f"the load {load} failed: status {process.returncode}, {out!r}")


def _target(ground: Ground) -> Target:
    listen = ground.config.listen
    public, verification = (int(name.rpartition(":")[2]) for name in (listen.public, listen.verification))
    roots = "\n".join(ground.realm.tls_roots_pem)
    return Target(public, verification, roots, next(iter(ground.users)), REALM)


@contextmanager
def _channel(ground: Ground) -> Iterator[grpc.Channel]:
    roots = "\n".join(ground.realm.tls_roots_pem).encode()
    with grpc.secure_channel(ground.config.listen.public, grpc.ssl_channel_credentials(roots)) as channel:
        yield channel
