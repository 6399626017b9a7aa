"""What every benchmark shares: its plan, clocks, statistics, and the one form of a result."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SCHEMA = "e2eks.bench/1"
DIGITS = 4  # of a figure: what a run on a shared machine can tell apart, and one more

# The end of a metric's name is its unit; the first that fits counts.
UNITS: Mapping[str, str] = {
    "per_s": "1/s",
    "_us": "us",
    "_ms": "ms",
    "_s": "s",
    "_per_leaf": "1/leaf",
    "_per_lookup": "1/lookup",
}
BYTES = "B"
RATIO = "1"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure. A quick plan proves that a benchmark runs; its figures mean nothing."""

    repetitions: int = 5
    rounds: int = 25  # of what is short: many short turns see the same minutes, few long ones do not
    quick: bool = False
    loads: tuple[str, ...] = ()  # of abuse; none: all

    def size(self, full: int, quick: int) -> int:
        """A size of the plan."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Measured:
    """One result. Metrics are named so that the end of the name is the unit."""

    bench: str
    params: Mapping[str, object]
    metrics: Mapping[str, float]
    unit: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", {name: unit_of(name) for name in self.metrics})

    def line(self) -> str:
        """The result as one line of JSON (contract section 6)."""
        metrics = {name: rounded(value) for name, value in self.metrics.items()}
        result = {"schema": SCHEMA, "bench": self.bench, "params": self.params, "metrics": metrics}
        return json.dumps({**result, "unit": self.unit})


def unit_of(metric: str) -> str:
    """The unit in which a metric of this name is given. Raises ValueError for a name without one."""
    if metric.startswith("ratio_"):
        return RATIO
    if "bytes" in metric:
        return BYTES
    for end, unit in UNITS.items():
        if metric.endswith(end):
            return unit
    raise ValueError(f"the name of the metric {metric} does not end with a unit")


def rounded(value: float) -> float:
    """A figure with as many digits as it deserves."""
    return float(f"{value:.{DIGITS}g}")


def progress(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


Clock = Callable[[], float]

# What waits for nothing is measured in processor time of its thread: a busy neighbour does not lengthen it.
CPU: Clock = time.thread_time
WALL: Clock = time.perf_counter


def seconds(run: Callable[[], object], clock: Clock = WALL) -> float:
    """How long a call takes."""
    start = clock()
    run()
    return clock() - start


def alternated(rounds: int, *runs: Callable[[], object], clock: Clock = WALL) -> list[list[float]]:
    """Seconds of each run, round by round in turn: a slow moment slows all of them alike.

    What this process already holds is taken out of the garbage collector's sight: those who are measured do
    not live beside it.
    """
    gc.collect()
    gc.freeze()
    try:
        taken = [[seconds(run, clock) for run in runs] for _ in range(rounds)]
    finally:
        gc.unfreeze()
    return [list(column) for column in zip(*taken, strict=True)]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of what was measured side by side."""
    return median([a / b for a, b in zip(above, below, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
