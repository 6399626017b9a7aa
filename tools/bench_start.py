"""How long commands and replicas take to start."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from bench_measure import Measured, Plan, alternated, median, median_ratio
from bench_realm import grown
from bench_servers import Replica

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
    """From SIGKILL of a replica to a process that is ready again, with few and many entries."""
    for users in (plan.size(1000, 100), plan.size(100_000, 300)):
        ground = grown(users)
        taken = []
        with Replica(ground) as replica:
            for _ in range(plan.repetitions):
                start = time.perf_counter()
                replica.kill()
                replica.start()
                taken.append(time.perf_counter() - start)
        metrics = {"p50_s": median(taken), "max_s": max(taken)}
        yield Measured("restart", {"users": users, "restarts": plan.repetitions}, metrics)
