"""Benchmarks: `bench.py [NAME...] [--json] [--check]`, one result a line (contract section 6).

Without names all run; with --check those that have bounds in bench_bounds.toml, and a bound that is not met
is told and makes the exit code 1. Absolute figures are of this machine and this minute; bounds are on
ratios, measured side by side, and on sizes.
"""

import argparse
import importlib
import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_measure import Measured, Plan, progress

BOUNDS = Path(__file__).with_name("bench_bounds.toml")
USAGE_ERROR = 2

Bench = Callable[[Plan], Iterator[Measured]]

# Name -> module and function. Imported only when asked for: a benchmark of the client needs no server.
BENCHES: Mapping[str, tuple[str, str]] = {
    "tree-insert": ("bench_tree", "tree_insert"),
    "tree-lookup": ("bench_lookup", "tree_lookup"),
    "vrf": ("bench_crypto", "vrf_operations"),
    "verify-lookup": ("bench_crypto", "verify_lookup"),
    "verifier-replay": ("bench_replay", "verifier_replay"),
    "check": ("bench_check", "check"),
    "disk": ("bench_disk", "disk"),
    "restart": ("bench_start", "restart"),
    "help-start": ("bench_start", "help_start"),
    "lookup-rpc": ("bench_lookup_rpc", "lookup_rpc"),
    "update-rpc": ("bench_update_rpc", "update_rpc"),
    "replication": ("bench_replication", "replication"),
    "replication-size": ("bench_replication", "replication_size"),
    "failover": ("bench_failover", "failover"),
    "abuse": ("bench_abuse", "abuse"),
}


@dataclass(frozen=True, slots=True)
class Bound:
    """Between what a metric of a benchmark, with these parameters among its own, must lie."""

    bench: str
    params: Mapping[str, object]
    metric: str
    at_most: float = math.inf
    at_least: float = -math.inf

    def judge(self, value: float) -> tuple[bool, str]:
        """Whether it is met, and how value and bound relate."""
        if value > self.at_most:
            return False, f"EXCEEDS {self.at_most:g}"
        if value < self.at_least:
            return False, f"FALLS SHORT OF {self.at_least:g}"
        return True, f"<= {self.at_most:g}" if self.at_most < math.inf else f">= {self.at_least:g}"

    def applies(self, measured: Measured) -> bool:
        return self.bench == measured.bench and self.params.items() <= measured.params.items()


def read_bounds(path: Path) -> tuple[Bound, ...]:
    """The bounds in a TOML file. Raises KeyError, TypeError or ValueError for a file of another form."""
    tables: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["bound"]
    bounds = tuple(Bound(**{"params": {}, **table}) for table in tables)
    for bound in bounds:
        if bound.bench not in BENCHES:
            raise ValueError(f"a bound on {bound.bench}, which is no benchmark")
    return bounds


def judge(bounds: Iterable[Bound], results: Sequence[Measured]) -> Iterator[tuple[bool, str]]:
    """Whether each bound is met, and a sentence about it. A bound on something not measured is not met."""
    for bound in bounds:
        found = [measured for measured in results if bound.applies(measured)]
        name = " ".join((bound.bench, *(f"{key}={value}" for key, value in bound.params.items())))
        if not found:
            yield False, f"{name}: {bound.metric} was not measured"
        for measured in found:
            value = measured.metrics.get(bound.metric)
            if value is None:
                yield False, f"{name}: {bound.metric} was not measured"
            else:
                met, relation = bound.judge(value)
                yield met, f"{name}: {bound.metric} {value:.4g} {relation}"


def run(names: Iterable[str], plan: Plan, show: Callable[[Measured], None]) -> list[Measured]:
    """Run the named benchmarks in turn; each result is shown as soon as it is there."""
    results = []
    for name in names:
        progress(f"… {name}")
        module, function = BENCHES[name]
        bench: Bench = getattr(importlib.import_module(module), function)
        for measured in bench(plan):
            results.append(measured)
            show(measured)
    return results


def show_text(measured: Measured) -> None:
    """A result for people: one metric a line."""
    params = "  ".join(f"{name}={value}" for name, value in measured.params.items())
    print(f"{measured.bench}  {params}")
    for name, value in measured.metrics.items():
        print(f"    {name:<32} {value:>12.4g} {measured.unit[name]}")
    sys.stdout.flush()


def show_json(measured: Measured) -> None:
    """A result for programs: one JSON object."""
    print(measured.line(), flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Exits with 2 for others."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure; docs/benchmarks.md says what.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless all bounds are met")
    parser.add_argument("--quick", action="store_true", help="only prove that it runs; figures mean nothing")
    parser.add_argument("--loads", default="", metavar="A,B", help="of abuse only these")
    parser.add_argument("--bounds", type=Path, default=BOUNDS, help="another file of bounds")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(BENCHES)}")
    if options.check and options.quick:
        parser.error("a quick run measures nothing that could be checked")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    bounds = read_bounds(options.bounds) if options.check else ()
    wanted = options.names or ([name for name in BENCHES if any(b.bench == name for b in bounds)] or BENCHES)
    loads = tuple(options.loads.split(",")) if options.loads else ()
    plan = Plan(repetitions=3, rounds=3, quick=True, loads=loads) if options.quick else Plan(loads=loads)
    results = run(wanted, plan, show_json if options.json else show_text)
    judged = list(judge((bound for bound in bounds if bound.bench in wanted), results))
    for met, sentence in judged:
        print("✓" if met else "✗", sentence, file=sys.stderr)
    return 0 if all(met for met, _ in judged) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
