"""Run schedules of the simulator: `make sim ARGS="--schedules N"`. One JSON object a line, the sum last.

A schedule follows from its seed alone. A violation is printed with its seed, its invariant, the end of its
trace and the command that runs it again. Each worker is a process of its own with a fixed hash seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

SCHEMA = "e2eks.sim/1"
ROOT = Path(__file__).resolve().parent.parent
FIRED_SHARE_MIN = 0.05  # of all schedules, for every kind of fault
SHARES_FROM = 1_000  # schedules; the rarest kind takes effect in 12 % of all
COVERAGE_MIN = 80.0
BUG_SCHEDULES = 2_000


def main() -> int:
    arguments = _arguments()
    if arguments.worker is not None:
        return _work(arguments)
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "big")
    many = 1 if arguments.seed is not None and arguments.schedules is None else arguments.schedules
    if arguments.mutant and many is None:
        many = BUG_SCHEDULES
    started = time.monotonic()
    total = Totals()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(_started(arguments, number, seed, many))
            for number in range(arguments.workers)
        ]
        for line in _said(workers):
            total.add(json.loads(line))
    failed = any(worker.returncode for worker in workers)
    return _conclude(arguments, total, seed, time.monotonic() - started) or int(failed)


def _said(workers: Sequence[subprocess.Popen[str]]) -> Iterator[str]:
    """What the workers say, as it comes: one that nobody reads from would have to wait."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read(worker: subprocess.Popen[str]) -> None:
        for line in worker.stdout or ():
            lines.put(line)
        lines.put(None)

    with ThreadPoolExecutor(len(workers)) as pool:
        for worker in workers:
            pool.submit(read, worker)
        for _ in workers:
            yield from iter(lines.get, None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, help="how many; as many as --seconds allow if not given")
    parser.add_argument("--seed", type=int, help="of the first schedule; alone: that one, with its trace")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=480.0, help="begin no schedule after so long …")
    parser.add_argument("--at-least", type=int, default=0, help="… but go on for so many full ones")
    parser.add_argument("--coverage", action="store_true", help="measure the shipped files that are driven")
    parser.add_argument("--mutant", default="", help="with this seeded bug; ends at the first violation")
    parser.add_argument("--stock", action="store_true", help="with pysyncobj as it is, journal and all")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _started(
    arguments: argparse.Namespace, number: int, seed: int, many: int | None
) -> subprocess.Popen[str]:
    own = [f"--seed={seed + number}", f"--worker={number}", f"--workers={arguments.workers}"]
    share = [] if many is None else [f"--schedules={len(range(number, many, arguments.workers))}"]
    flags = [f"--{name}" for name in ("coverage", "stock") if getattr(arguments, name)]
    until = [f"--seconds={arguments.seconds}", f"--at-least={-(-arguments.at_least // arguments.workers)}"]
    given = [*own, *share, *flags, *until, f"--mutant={arguments.mutant}"]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("tests", "proto", "."))
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__)), *given],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )


# A worker


def _work(arguments: argparse.Namespace) -> int:
    coverage = _measuring() if arguments.coverage else None
    if arguments.mutant:
        from simulator.mutants import apply

        apply(arguments.mutant)
    from simulator import schedule, seams

    with ExitStack() as stack:
        stack.enter_context(seams.remembered())
        stack.enter_context(seams.quiet())
        if arguments.stock:
            from simulator.stock import stock_engine

            stack.enter_context(stock_engine())
        until, full, number = time.monotonic() + arguments.seconds, 0, 0
        while number != arguments.schedules and (time.monotonic() < until or full < arguments.at_least):
            result = schedule.run(arguments.seed + number * arguments.workers)
            _say(_reported(result))
            if arguments.mutant and result.violation is not None:
                break
            full += result.is_full
            number += 1
    if coverage is not None:
        coverage.stop()
        coverage.save()
    return 0


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _reported(result: Any) -> dict[str, Any]:
    line: dict[str, Any] = {
        "seed": result.seed,
        "trace": result.trace,
        "entries": result.entries,
        "epochs": result.epochs,
        "acknowledged": result.acknowledged,
        "fired": dict(result.fired),
        "full": result.is_full,
        "progress": result.progress_owed,
    }
    if result.violation is not None:
        line["violation"] = {"invariant": result.violation.invariant, "what": result.violation.what}
        line["tail"] = list(result.tail)
    return line


def _measuring() -> Any:
    import coverage

    measured = coverage.Coverage(
        data_file=str(ROOT / ".coverage.sim"), data_suffix=True, branch=False, source=[str(ROOT)]
    )
    measured.start()
    return measured


# The sum


class Totals:
    """What all workers said."""

    def __init__(self) -> None:
        self.schedules = self.thin = self.judged = self.entries = self.epochs = self.acknowledged = 0
        self.kinds: Counter[str] = Counter()  # in how many schedules each kind of fault took effect
        self.strikes: Counter[str] = Counter()
        self.violations: list[dict[str, Any]] = []
        self.traces: dict[int, str] = {}

    def add(self, line: dict[str, Any]) -> None:
        """Count one schedule; show its violation, if it has one."""
        self.traces[line["seed"]] = line["trace"]
        if "violation" in line:
            self.violations.append(line)
            _show(line)
        self.schedules += 1
        self.thin += not line["full"]
        self.judged += line["progress"]
        self.entries += line["entries"]
        self.epochs += line["epochs"]
        self.acknowledged += line["acknowledged"]
        self.kinds.update(line["fired"].keys())
        self.strikes.update(line["fired"])


def _show(line: dict[str, Any]) -> None:
    found = line["violation"]
    print(f"VIOLATION of {found['invariant']} by seed {line['seed']}: {found['what']}", file=sys.stderr)
    print("\n".join(line["tail"]), file=sys.stderr)
    print(f'again: make sim ARGS="--seed {line["seed"]}"', file=sys.stderr, flush=True)


def _conclude(arguments: argparse.Namespace, total: Totals, seed: int, seconds: float) -> int:
    from simulator.faults import KINDS  # AFTER the workers: it imports half the house

    shares = {kind: round(total.kinds[kind] / max(total.schedules, 1), 4) for kind in KINDS}
    rare = [kind for kind, share in shares.items() if share < FIRED_SHARE_MIN]
    unjudged = total.schedules < SHARES_FROM or arguments.mutant or arguments.stock
    line: dict[str, Any] = {
        "schema": SCHEMA,
        "schedules": total.schedules - total.thin,
        "violations": len(total.violations),
        "seed": seed,
        "seconds": round(seconds, 1),
        "per_second": round(total.schedules / max(seconds, 0.001), 2),
        "thin": total.thin,
        "progress_judged": total.judged,
        "entries": total.entries,
        "epochs": total.epochs,
        "acknowledged": total.acknowledged,
        "fired": dict(total.strikes),
        "fired_share": shares,
        "rare": [] if unjudged else rare,
    }
    if total.schedules == 1:
        line["trace"] = total.traces[seed]
    failed = bool(total.violations) or bool(line["rare"])
    if arguments.coverage:
        line["coverage"], low = _coverage()
        failed = failed or bool(low)
        line["coverage_low"] = low
    _say(line)
    return 1 if failed else 0


# Shipped files that schedules are there to judge, each of which has to run; and others that they drive.
JUDGED: Sequence[str] = (
    "keyserver/machine/step.py",
    "keyserver/machine/epochs.py",
    "keyserver/machine/updates.py",
    "keyserver/machine/ratifications.py",
    "keyserver/machine/commands.py",
    "keyserver/machine/obligations.py",
    "keyserver/machine/state.py",
    "keyserver/replica.py",
    "replication/raft/engine.py",
    "replication/raft/journal.py",
    "replication/raft/driver.py",
    "replication/raft/proposals.py",
    "replication/raft/codec.py",
    "replication/raft/messages.py",
    "replication/raft/rows.py",
    "verifier/daemon/step.py",
    "verifier/daemon/state.py",
    "verifier/encoding.py",
    "verifier/proof_encoding.py",
    "verifier/update.py",
    "verifier/lookup.py",
)
DRIVEN: Sequence[str] = (
    *JUDGED,
    "keyserver/signer.py",
    "keyserver/peers/exchange.py",
    "verifier/signonce.py",
    "verifier/epoch.py",
    "verifier/consistency.py",
    "verifier/daemon/outbox.py",
)


def _coverage() -> tuple[dict[str, float], list[str]]:
    """Per cent of the lines of each driven file that ran, and the judged files below the bound."""
    import coverage

    measured = coverage.Coverage(data_file=str(ROOT / ".coverage.sim"))
    measured.combine([str(path) for path in ROOT.glob(".coverage.sim.*")])
    shares: dict[str, float] = {}
    for name in DRIVEN:
        _, statements, _, missing, _ = measured.analysis2(str(ROOT / name))
        shares[name] = round(100 * (1 - len(missing) / max(len(statements), 1)), 1)
    (ROOT / ".coverage.sim").unlink(missing_ok=True)
    return shares, [name for name in JUDGED if shares[name] < COVERAGE_MIN]


if __name__ == "__main__":
    sys.exit(main())
