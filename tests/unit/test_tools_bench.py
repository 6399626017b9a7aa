"""The benchmarks' runner: options, bounds, the form of results; and that every benchmark runs."""

import json
from pathlib import Path

import bench
import pytest
from bench_measure import Measured, Plan, alternated, median_ratio, quantile, unit_of

# What contract section 6 promises of each benchmark.
PROMISED = {
    "tree-insert": {"leaves_per_s", "hashes_per_leaf", "rows_per_leaf", "bytes_per_leaf", "ratio_to_hashing"},
    "tree-lookup": {
        "lookup_us", "gets_per_lookup", "ratio_to_vrf_prove", "proof_bytes_median", "proof_bytes_p99"
    },
    "vrf": {"prove_us", "verify_us", "compute_us"},
    "verify-lookup": {"verify_ms", "proof_bytes", "ratio_to_crypto"},
    "verifier-replay": {"per_s", "ratio_to_crypto_floor"},
    "check": {"per_s", "ratio_to_verifier_replay"},
    "disk": {"bytes_per_update", "log_bytes", "database_bytes"},
    "help-start": {"ratio_to_click"},
    "restart": {"p50_s", "max_s"},
    "lookup-rpc": {"per_s", "p50_ms", "p99_ms", "ratio_to_echo"},
    "update-rpc": {"per_s", "p50_ms", "p99_ms", "ratio_to_crypto_floor"},
    "failover": {"p50_s", "max_s"},
    "replication": {"per_s", "p50_ms", "p99_ms", "ratio_to_stock_pysyncobj", "ratio_to_etcd"},
    "replication-size": {"p50_s", "max_s", "rss_bytes"},
    "abuse": {"idle_p99_ms", "p99_ms", "ratio_to_idle", "memory_bytes"},
}  # fmt: skip


def write_bounds(folder: Path, **changes: object) -> Path:
    """A file with one bound, on something that is measured fast."""
    bound = {"bench": '"vrf"', "metric": '"prove_us"', "at_most": "1e9"} | changes
    path = folder / "bounds.toml"
    path.write_text("[[bound]]\n" + "".join(f"{key} = {value}\n" for key, value in bound.items()))
    return path


# Options


@pytest.mark.parametrize("arguments", [["tree"], ["vrf", "--check", "--quick"], ["--repeat"]])
def test_options_that_mean_nothing_are_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert "bench: error" in capsys.readouterr().err


def test_an_unknown_benchmark_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["tree"])
    said = capsys.readouterr().err
    assert all(name in said for name in bench.BENCHES)


# Results


def test_a_result_is_one_line_of_json_with_a_unit_for_each_metric() -> None:
    measured = Measured("vrf", {"operations": 3}, {"prove_us": 208.81234, "per_s": 4789.0, "proof_bytes": 80})
    assert json.loads(measured.line()) == {
        "schema": "e2eks.bench/1",
        "bench": "vrf",
        "params": {"operations": 3},
        "metrics": {"prove_us": 208.8, "per_s": 4789.0, "proof_bytes": 80.0},
        "unit": {"prove_us": "us", "per_s": "1/s", "proof_bytes": "B"},
    }
    assert "\n" not in measured.line()


def test_a_metric_without_a_unit_in_its_name_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end with a unit"):
        Measured("vrf", {}, {"prove": 1.0})


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("ratio_to_hashing", "1"),
        ("p50_ms", "ms"),
        ("max_s", "s"),
        ("leaves_per_s", "1/s"),
        ("log_bytes", "B"),
    ],
)
def test_the_end_of_a_name_is_its_unit(metric: str, unit: str) -> None:
    assert unit_of(metric) == unit


def test_ratios_are_those_of_measurements_side_by_side() -> None:
    slow_minute = 10.0
    assert median_ratio([2.0, 2.0 * slow_minute, 2.0], [1.0, slow_minute, 1.0]) == 2.0


def test_runs_are_taken_in_turn() -> None:
    order: list[str] = []
    taken = alternated(2, lambda: order.append("a"), lambda: order.append("b"))
    assert order == ["a", "b", "a", "b"]
    assert [len(column) for column in taken] == [2, 2]


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert quantile(values, 0.99) == 100.0
    assert quantile(values, 0.0) == 1.0


# Bounds


def test_the_committed_bounds_are_on_metrics_the_contract_or_the_issue_names() -> None:
    bounds = bench.read_bounds(bench.BOUNDS)
    assert {(bound.bench, bound.metric, min(bound.at_most, bound.at_least, key=abs)) for bound in bounds} == {
        ("tree-insert", "ratio_to_hashing", 14.0),
        ("tree-insert", "bytes_per_leaf", 800),
        ("tree-lookup", "ratio_to_1000_users", 2.0),
        ("tree-lookup", "proof_bytes_p99", 1600),
        ("verify-lookup", "ratio_to_crypto", 1.25),
        ("help-start", "ratio_to_click", 1.5),
        ("check", "ratio_to_verifier_replay", 2.0),
        ("update-rpc", "ratio_to_one_replica", 1 / 0.4),
        ("replication", "ratio_to_stock_pysyncobj", 2.5),
        ("replication", "ratio_to_etcd", 1.5),
        ("replication-size", "more_rss_bytes", 64 * 2**20),
        ("replication-size", "ratio_to_few_entries", 2.0),
        ("restart", "ratio_to_short_log", 2.0),
        ("restart", "grown_bytes", 64 * 2**20),
        ("abuse", "ratio_to_idle", 3.0),
        ("abuse", "grown_bytes", 64 * 2**20),
    }


def test_a_bound_on_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no benchmark"):
        bench.read_bounds(write_bounds(tmp_path, bench='"vfr"'))


def test_a_bound_that_says_more_than_it_may_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        bench.read_bounds(write_bounds(tmp_path, at_worst="1"))


@pytest.mark.parametrize(("value", "met"), [(14.0, True), (13.9, True), (14.01, False)])
def test_a_bound_is_met_up_to_its_value(value: float, met: bool) -> None:
    bound = bench.Bound("tree-insert", {"existing": 7}, "ratio_to_hashing", 14.0)
    other = Measured("tree-insert", {"existing": 8}, {"ratio_to_hashing": 99.0})
    measured = Measured("tree-insert", {"existing": 7, "inserted": 1}, {"ratio_to_hashing": value})
    assert [verdict for verdict, _ in bench.judge([bound], [other, measured])] == [met]


@pytest.mark.parametrize(("value", "met"), [(2.5, True), (2.51, True), (2.49, False)])
def test_a_bound_from_below_is_met_from_its_value_on(value: float, met: bool) -> None:
    bound = bench.Bound("replication", {}, "ratio_to_etcd", at_least=2.5)
    measured = Measured("replication", {}, {"ratio_to_etcd": value})
    assert [verdict for verdict, _ in bench.judge([bound], [measured])] == [met]


def test_what_was_not_measured_meets_no_bound() -> None:
    bound = bench.Bound("vrf", {}, "prove_us", 1.0)
    assert [met for met, _ in bench.judge([bound], [])] == [False]
    assert [met for met, _ in bench.judge([bound], [Measured("vrf", {}, {"verify_us": 0.5})])] == [False]


@pytest.mark.parametrize(("at_most", "code", "mark"), [("1e9", 0, "✓"), ("1e-9", 1, "✗")])
def test_a_bound_that_is_not_met_makes_the_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], at_most: str, code: int, mark: str
) -> None:
    bounds = write_bounds(tmp_path, at_most=at_most)
    assert bench.main(["--check", "--json", "--bounds", str(bounds)]) == code
    said = capsys.readouterr()
    assert [json.loads(line)["bench"] for line in said.out.splitlines()] == ["vrf"]
    assert f"{mark} vrf: prove_us" in said.err


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMISED)
def test_a_quick_run_gives_every_metric_the_contract_promises(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([name, "--quick", "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert results
    for result in results:
        assert result["bench"] == name
        assert result["metrics"].keys() >= PROMISED[name]
        assert result["unit"].keys() == result["metrics"].keys()
        assert all(value > 0 for metric, value in result["metrics"].items() if metric in PROMISED[name])


def test_every_benchmark_of_the_table_is_run_here() -> None:
    assert PROMISED.keys() == bench.BENCHES.keys()


def test_results_for_people_have_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    [measured] = bench.run(["vrf"], Plan(rounds=1, quick=True), bench.show_text)
    shown = capsys.readouterr().out
    assert all(name in shown for name in measured.metrics)
