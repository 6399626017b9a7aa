"""What is installed: a small base, exact and hashed locks, and nothing of the machine that made them."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOUSE = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
LOCKS = ("client", "verifier", "server", "test")
LOCKED = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?: ;[^\\]*)? \\\n(?P<hashes>(?:    --hash=.*\n)+)",
    re.MULTILINE,
)
NOT_FOR_CLIENTS = {
    "anycorn",
    "msgspec",
    "plyvel",
    "prometheus-client",
    "pysyncobj",
    "starlette",
    "structlog",
    "trio",
}
ADDRESS = re.compile(r"://|--(?:index-url|extra-index-url|find-links|trusted-host)|(?<!\w)/\w")
EXTRAS_OF_LOCK: dict[str, tuple[str, ...]] = {
    "client": (),
    "verifier": ("verifier",),
    "server": ("server",),
    "test": ("server", "test"),
}


def lock_text(name: str) -> str:
    return (HOUSE / "requirements" / f"{name}.txt").read_text()


def locked_versions(name: str) -> dict[str, str]:
    return {canonicalize_name(match["name"]): match["version"] for match in LOCKED.finditer(lock_text(name))}


def requirements_of(lock: str) -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS_OF_LOCK[lock] for line in extras[extra])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_an_exact_version_with_hashes(lock: str) -> None:
    text = lock_text(lock)
    pinned = LOCKED.sub("", text)
    rest = [line for line in pinned.splitlines() if line and not line.lstrip().startswith("#")]
    assert rest == []
    assert all(
        re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line)
        for line in re.findall(r"^ +--.*$", text, re.MULTILINE)
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address_and_no_folder(lock: str) -> None:
    assert [line for line in lock_text(lock).splitlines() if ADDRESS.search(line)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_what_the_project_asks_for(lock: str) -> None:
    locked = locked_versions(lock)
    unmet = [
        str(wanted)
        for wanted in requirements_of(lock)
        if not wanted.specifier.contains(locked.get(canonicalize_name(wanted.name), "0"))
    ]
    assert unmet == []


@pytest.mark.parametrize("lock", LOCKS[:-1])
def test_what_is_shipped_is_what_is_tested(lock: str) -> None:
    assert locked_versions(lock).items() <= locked_versions("test").items()


def test_the_base_install_stays_small() -> None:
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert names == {"click", "cryptography", "grpcio", "grpcio-status", "protobuf", "pynacl"}
    assert not NOT_FOR_CLIENTS & locked_versions("client").keys()


def test_the_server_installs_all_that_the_verifier_needs() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras["verifier"]) <= set(extras["server"])


def test_the_runtime_is_never_older_than_the_generator_of_the_messages() -> None:
    generated = [path.read_text() for path in (HOUSE / "proto").rglob("*_pb2.py")]
    made_by = {match for text in generated for match in re.findall(r"Protobuf Python Version: (\S+)", text)}
    assert len(made_by) == 1
    (protobuf,) = (wanted for wanted in requirements_of("client") if wanted.name == "protobuf")
    assert f">={made_by.pop()}" in {str(bound) for bound in protobuf.specifier}


def test_the_environment_of_this_run_is_the_locked_one() -> None:
    locked = locked_versions("test")
    names = [canonicalize_name(wanted.name) for wanted in requirements_of("test")]
    assert {name: version(name) for name in names} == {name: locked[name] for name in names}
