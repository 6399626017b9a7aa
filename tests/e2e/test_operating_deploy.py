"""What deploy/ holds works with this version: rules, units, sample configurations, the image's sources."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from realm_processes.people import Authority

from keyserver import metrics
from keyserver.demo.processes import command, run
from keyserver.installation import setup
from verifier.daemon import metrics as verifier_metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
EXPOSURE_MAX = 20  # tenths: what systemd calls OK; 15 of them are what a server on a network costs


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def answer(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


def test_every_alert_fires_when_it_should_and_is_silent_otherwise() -> None:
    done = answer(tool("promtool"), "test", "rules", "alerts_test.yml", cwd=DEPLOY)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_tested() -> None:
    named = set(re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text()))
    tested = set(re.findall(r'alertname[=:] ?"?(\w+)', (DEPLOY / "alerts_test.yml").read_text()))
    assert named == tested


def test_every_metric_of_a_rule_is_one_that_is_served() -> None:
    used = set(re.findall(r"\be2eks_\w+", (DEPLOY / "alerts.yml").read_text()))
    served = re.findall(rb"^(e2eks_\w+)", verifier_metrics.text({"peers": {}}), re.MULTILINE)
    known = {row[0] for row in metrics.GAUGES.values()} | {name.decode() for name in served}
    known |= {f"{row[0]}_total" for row in metrics.COUNTERS.values()}
    assert used <= known


def settings(unit: Path) -> dict[str, list[str]]:
    """Every setting of a unit, by section and name."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(f"{section}.{name}", []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_hardened_reload_by_sighup_and_start_commands_that_exist(unit: Path) -> None:
    found = settings(unit)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [start] = found["Service.ExecStart"]
    program, *arguments = start.split()
    assert Path(program).name in scripts
    assert found["Service.ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert found["Service.User"] != ["root"]
    for hardening in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces"):
        assert found[f"Service.{hardening}"] == ["yes"]
    assert "2" in found["Service.RestartPreventExitStatus"][0].split()
    module = {"keyserver": "keyserver", "verifier": "verifier.daemon"}[Path(program).name]
    helped = run(command(module, arguments[0], "--help"), {})
    assert helped.returncode == 0
    assert "SIGHUP" in helped.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_nothing_wrong_with_a_unit_and_little_exposed(unit: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    installed = tmp_path / unit.name
    installed.write_text(re.sub(r"/opt/e2eks/bin/\w+", "/bin/true", unit.read_text()))
    verified = answer(analyze, "verify", "--man=no", str(installed))
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    exposed = answer(analyze, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(installed))
    assert exposed.returncode == 0, exposed.stdout


def checked_keyserver(folder: Path) -> subprocess.CompletedProcess[str]:
    authority = folder / "people.pem"
    authority.write_bytes(Authority().pem)
    plan = setup.Plan("example.org", registration_ca=authority)
    made = setup.init(folder / "realm", plan, datetime.now(UTC))
    place = made.configs[0].parent
    shutil.copy(made.realm_file, place / "realm.json")
    sample = (DEPLOY / "keyserver.toml").read_text().replace("/var/lib/e2eks", str(place))
    (place / "sample.toml").write_text(sample)
    checking = command(
        "keyserver", "serve", "--check", "--allow-split-view", "-c", str(place / "sample.toml")
    )
    return run(checking, {"PATH": "/usr/bin:/bin"})


def checked_verifier(folder: Path) -> subprocess.CompletedProcess[str]:
    made = setup.init(folder / "realm", setup.Plan("example.org"), datetime.now(UTC))
    place = folder / "v1"
    arguments = ("--realm-file", str(made.realm_file), "--name", "v1")
    assert (
        run(command("verifier.daemon", "init", str(place), *arguments), {"PATH": "/usr/bin"}).returncode == 0
    )
    sample = (DEPLOY / "verifier.toml").read_text().replace("/var/lib/e2eks-verifier", str(place))
    (place / "sample.toml").write_text(sample)
    return run(command("verifier.daemon", "run", "--check", "-c", str(place / "sample.toml")), {})


@pytest.mark.parametrize("checked", [checked_keyserver, checked_verifier], ids=lambda check: check.__name__)
def test_sample_configurations_pass_the_check(
    checked: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = checked(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "✓ the configuration is usable"


def test_the_image_is_made_of_what_is_there() -> None:
    lines = (DEPLOY / "Containerfile").read_text()
    [sources] = re.findall(r"^COPY (?!--from)(.*) \S+$", lines, re.MULTILINE)
    assert [name for name in sources.split() if not name.startswith("dist/")] == ["requirements/server.txt"]
    assert (ROOT / "requirements" / "server.txt").is_file()
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert supported.startswith(">=3.11")
    assert set(re.findall(r"^FROM python:(\S+)-slim", lines, re.MULTILINE)) == {"3.11"}
    assert sys.version_info >= (3, 11)
