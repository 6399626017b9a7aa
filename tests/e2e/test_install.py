"""What is shipped works by itself: the wheel in fresh environments, with the locked packages and no others,
outside the checkout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verifier.realm import fingerprint, parse_realm_json

pytestmark = pytest.mark.slow

HOUSE = Path(__file__).resolve().parents[2]
DEADLINE_S = 600  # packages come over the network
SERVER_ONLY = ("plyvel", "starlette", "pysyncobj", "trio", "anycorn", "structlog", "prometheus_client")


def run(*command: str | Path, cwd: Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in `cwd`; with `home`, in an empty environment but for the path."""
    environment = dict(os.environ)
    if home is not None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "E2EKS_HOME": str(home)}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def must(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(folder: Path, wheel: Path, lock: str) -> Path:
    """A fresh environment with the packages of a lock, and the wheel; its interpreter."""
    must(run(sys.executable, "-m", "venv", folder, cwd=folder.parent))
    python = folder / "bin" / "python"
    pip: tuple[str | Path, ...] = (
        python,
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    )
    requirements = HOUSE / "requirements" / f"{lock}.txt"
    # pysyncobj is published as source alone: pure Python, which pip makes a wheel of.
    built = ("--only-binary", ":all:", "--no-binary", "pysyncobj")
    must(run(*pip, "--require-hashes", *built, "-r", requirements, cwd=folder.parent))
    must(run(*pip, "--no-deps", wheel, cwd=folder.parent))
    must(run(python, "-I", "-m", "pip", "check", cwd=folder.parent))
    return python


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The interpreters of an installed server and of an installed client."""
    folder = tmp_path_factory.mktemp("install")
    build = ("-m", "hatchling", "build", "--target", "wheel", "--directory", folder)
    must(run(sys.executable, *build, cwd=HOUSE))
    (wheel,) = folder.glob("*.whl")
    with ThreadPoolExecutor() as pool:
        server = pool.submit(install, folder / "server", wheel, "server")
        client = pool.submit(install, folder / "client", wheel, "client")
        return server.result(), client.result()


@pytest.fixture(scope="module")
def served(pythons: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a demo that the installed server plays and goes on serving."""
    outside = tmp_path_factory.mktemp("outside")
    log = outside / "stderr"
    command = [str(pythons[0]), "-I", "-m", "keyserver", "demo", "--script", "--serve"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(outside)}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--keep", str(outside / "kept")],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=outside,
            env=environment,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        result = json.loads(line)
        assert result["ok"] is True, result
        yield outside / "kept"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_installed_server_plays_the_demo_outside_the_checkout(
    pythons: tuple[Path, Path], served: Path
) -> None:
    code = (
        "import keyserver, verifier, kv, replication, e2eks.v1; print(keyserver.__file__, e2eks.v1.__file__)"
    )
    for place in must(run(pythons[0], "-I", "-c", code, cwd=served)).split():
        assert Path(place).is_relative_to(pythons[0].parents[1])
    assert (served / "proofs" / "alice.bin").exists()


def test_the_installed_client_looks_up_and_verifies_without_the_servers_packages(
    pythons: tuple[Path, Path], served: Path, tmp_path: Path
) -> None:
    e2eks = pythons[1].parent / "e2eks"
    realm_file = served / "realm.json"
    told = fingerprint(parse_realm_json(realm_file.read_bytes()))
    must(run(e2eks, "context", "add", realm_file, "--fingerprint", told, cwd=tmp_path, home=tmp_path))
    found = must(run(e2eks, "lookup", "bob@example.test", "-o", "json", cwd=tmp_path, home=tmp_path))
    assert json.loads(found)["schema"] == "e2eks.lookup/1"
    absent = run(e2eks, "lookup", "nobody@example.test", cwd=tmp_path, home=tmp_path)
    assert absent.returncode == 4
    for name in SERVER_ONLY:
        missing = run(pythons[1], "-I", "-c", f"import {name}", cwd=tmp_path, home=tmp_path)
        assert "ModuleNotFoundError" in missing.stderr, name


def test_every_command_is_installed_and_says_how_to_use_it(
    pythons: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("keyserver", "verifier", "e2eks"):
        assert "Usage:" in must(run(pythons[0].parent / name, "--help", cwd=tmp_path, home=tmp_path))
