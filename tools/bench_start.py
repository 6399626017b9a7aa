"""How long commands and replicas take to start."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from bench_long_log import long_log
from bench_measure import Measured, Plan, alternated, median, median_ratio
from bench_realm import grown
from bench_servers import Replica, cluster

HELP = "import sys; sys.argv = ['e2eks', '--help']; from verifier.client.cli import main; main()"


def help_start(plan: Plan) -> Iterator[Measured]:
    """`e2eks --help` beside the same interpreter that only imports click."""
    repetitions = plan.size(15, 3)
    helping, importing, bare = alternated(
        repetitions,
        lambda: _run([sys.executable, "-I", "-c", HELP]),
        lambda: _run([sys.executable, "-I", "-c", "import click"]),
        lambda: _run([sys.executable, "-I", "-c", "pass"]),
    )
    metrics = {
        "help_ms": 1e3 * median(helping),
        "click_ms": 1e3 * median(importing),
        "interpreter_ms": 1e3 * median(bare),
        "ratio_to_click": median_ratio(helping, importing),
    }
    yield Measured("help-start", {"repetitions": repetitions}, metrics)


def _run(command: Sequence[str]) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def restart(plan: Plan) -> Iterator[Measured]:
    """From SIGKILL of a replica to a process that is ready again: a lone one with few and many users, and a
    member of a cluster with a short and a long log, all applied.
    """
    restarts = plan.size(plan.repetitions, 1)
    for users in (plan.size(1000, 100), plan.size(100_000, 300)):
        with Replica(grown(users)) as replica:
            taken = [_restart(replica) for _ in range(restarts)]
        params = {"engine": "local", "users": users, "restarts": restarts}
        yield Measured("restart", params, _times(taken))
    yield from _restart_members(plan, restarts)


def _restart_members(plan: Plan, restarts: int) -> Iterator[Measured]:
    """Both clusters run, and a member of each is restarted in turn."""
    sizes = (plan.size(10_000, 100), plan.size(1_000_000, 1_000))
    with ExitStack() as running:
        members = [_follower(running.enter_context(cluster(long_log(size)))) for size in sizes]
        rounds = [[_restart(member) for member in members] for _ in range(restarts)]
        memory = [member.memory_bytes() for member in members]
    for size, member_bytes, taken in zip(sizes, memory, zip(*rounds, strict=True), strict=True):
        metrics = {**_times(taken), "memory_bytes": float(member_bytes)}
        if size != sizes[0]:
            metrics["ratio_to_short_log"] = median_ratio(taken, [short for short, _ in rounds])
            metrics["grown_bytes"] = float(member_bytes - memory[0])
        params = {"engine": "raft", "replicas": 3, "entries": size, "restarts": restarts}
        yield Measured("restart", params, metrics)


def _follower(members: Sequence[Replica]) -> Replica:
    return next(member for member in members if member.status()["role"] == "follower")


def _restart(replica: Replica) -> float:
    """Seconds."""
    start = time.perf_counter()
    replica.kill()
    replica.start()
    return time.perf_counter() - start


def _times(taken: Sequence[float]) -> dict[str, float]:
    return {"p50_s": median(taken), "max_s": max(taken)}
