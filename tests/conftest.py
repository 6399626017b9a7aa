"""What every test may rely on: a repeatable source of randomness, an empty home, and no silent skips.

`--seed N` repeats a run: the `rng` fixture and Hypothesis both start from it. The seed stands in the header
of every run and beside every failure. E2EKS_SOAK multiplies what tests ask for with `count`, and the
examples of Hypothesis.
E2EKS_NO_SKIP=1 turns a skipped test into a failed one. A run whose logs name a user or hold a secret fails.
"""

import os
import random
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from log_leaks.plugin import Leaks

SEEDS = 2**32
SOAK = int(os.environ.get("E2EKS_SOAK", "1"))
XDG_FOLDERS = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_RUNTIME_DIR": ".run",
    "XDG_STATE_HOME": ".local/state",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="repeat a run: the seed its header or a failure named"
    )


@pytest.hookimpl(tryfirst=True)  # BEFORE Hypothesis reads its own option
def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(SEEDS)
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.option.seed)
    if getattr(config.option, "hypothesis_profile", None) is None:
        load_hypothesis_profile()
    config.pluginmanager.register(Leaks())


def load_hypothesis_profile() -> None:
    """One profile everywhere: left alone in a CI, Hypothesis repeats the same examples and ignores seeds."""
    slow = [HealthCheck.too_slow]  # how slow a machine is says nothing about the code
    settings.register_profile(
        "house",
        derandomize=False,
        deadline=None,
        print_blob=True,
        max_examples=100 * SOAK,
        suppress_health_check=slow,
    )
    settings.load_profile("house")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (repeat with --seed {config.option.seed})"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"--seed {item.config.option.seed}"))
    if report.skipped and not hasattr(report, "wasxfail"):
        forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        forbid_skip(report)
    return report


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("E2EKS_NO_SKIP") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipping is forbidden here: {reason}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run."""
    value: int = request.config.option.seed
    return value


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Randomness of this test alone: equal for equal seeds, whatever else runs and in which order."""
    return random.Random(f"{seed}:{request.node.nodeid}")


@pytest.fixture
def count() -> Callable[[int], int]:
    """How many repetitions: the number a test asks for, times E2EKS_SOAK."""
    return lambda number: number * SOAK


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for this process and every process it starts, and none of our own settings."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, folder in XDG_FOLDERS.items():
        monkeypatch.setenv(name, str(home / folder))
    for name in [name for name in os.environ if name.startswith("E2EKS_")]:
        monkeypatch.delenv(name)
    return home
