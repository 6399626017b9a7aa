"""What the wheel holds, and what its metadata asks for."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

HOUSE = Path(__file__).resolve().parents[2]
SHIPPED = {"keyserver", "replication", "kv", "verifier", "e2eks"}
NOT_IN_THE_BASE = {"plyvel", "starlette", "pysyncobj", "trio", "structlog", "anycorn"}
BASE_ONLY = "import sys; sys.modules |= dict.fromkeys(('msgspec', 'plyvel', 'structlog', 'trio')); "


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=HOUSE, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def member(wheel: zipfile.ZipFile, name: str) -> str:
    (found,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(found).decode()


def test_the_wheel_holds_the_rooms_and_the_messages_only(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == SHIPPED


def test_every_package_of_the_checkout_is_shipped_with_its_marker_of_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = {room: HOUSE / room for room in SHIPPED - {"e2eks"}} | {"e2eks": HOUSE / "proto" / "e2eks"}
    for room, folder in sources.items():
        modules = {f"{room}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert modules - names == set()
        assert f"{room}/py.typed" in names


def test_generated_messages_are_importable_by_their_path(wheel: zipfile.ZipFile) -> None:
    assert {"e2eks/v1/types_pb2.py", "e2eks/v1/types_pb2.pyi"} <= set(wheel.namelist())


def test_the_base_asks_for_no_server_packages(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(member(wheel, "METADATA"))
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    base = {requirement.name for requirement in wanted if requirement.marker is None}
    assert "grpcio" in base
    assert not base & NOT_IN_THE_BASE
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"server", "test", "verifier"}


def test_the_commands(wheel: zipfile.ZipFile) -> None:
    lines = member(wheel, "entry_points.txt").split()
    assert lines[0] == "[console_scripts]"
    commands = (
        "e2eks=verifier.client.cli:main",
        "keyserver=keyserver.cli.commands:main",
        "verifier=verifier.daemon.cli:main",
    )
    assert "".join(lines[1:]) == "".join(commands)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("keyserver.cli.commands", ("init", "realm", "--realm", "a.example"), "server"),
        ("keyserver.cli.commands", ("serve",), "server"),
        ("verifier.daemon.cli", ("status",), "verifier"),
        ("verifier.daemon.cli", ("run",), "verifier"),
    ],
    ids=["keyserver init", "keyserver serve", "verifier status", "verifier run"],
)
def test_a_command_of_an_extra_that_is_not_installed_says_so(
    tmp_path: Path, module: str, arguments: tuple[str, ...], extra: str
) -> None:
    start = f"from {module} import main; main()"
    command = [sys.executable, "-I", "-c", BASE_ONLY + start, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"its extra `{extra}`" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
