"""What the commands say when they cannot do what is asked: what happened, what was compared, what to do.

`E2EKS_REWRITE=1 make test ARGS=tests/golden` writes what is so now; the diff is then read by a person.
"""

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from keyserver.demo.processes import command, free_port, run
from keyserver.installation import setup
from kv.leveldb import LevelDBStore
from verifier.crypto.hashing import key_id
from verifier.crypto.signatures import public_key
from verifier.files import read_secret
from verifier.signonce import SignOnceRegister

GOLDEN = Path(__file__).parent / "failures.txt"
AT_ONCE = 4
KEYSERVER, VERIFIER, CLIENT = "keyserver", "verifier.daemon", "verifier.client"

Damage = Callable[[Path], Any]  # what it returns, if it is a context, lasts while the command runs


@dataclass(frozen=True)
class Case:
    name: str
    module: str
    arguments: str  # DIR stands for the folder of the case
    damage: Damage = lambda _: None


def removed(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def changed(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def readable(name: str) -> Damage:
    return lambda folder: (folder / name).chmod(0o644)


def swapped(name: str, other: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / other).read_bytes())


def occupied(file: str, setting: str) -> Damage:
    """The port of a listener is somebody else's."""

    def damage(folder: Path) -> socket.socket:
        found = re.search(rf'^{setting} = "127\.0\.0\.1:(\d+)"', (folder / file).read_text(), re.MULTILINE)
        assert found
        return socket.create_server(("127.0.0.1", int(found[1])))

    return damage


@contextmanager
def database_in_use(folder: Path) -> Iterator[None]:
    place = folder / "replicas/r1/data/db"
    place.parent.mkdir(exist_ok=True)
    store = LevelDBStore(place)
    try:
        yield
    finally:
        store.close()


@contextmanager
def register_in_use(folder: Path) -> Iterator[None]:
    place = folder / "replicas/r1"
    own = key_id(public_key(read_secret(place / "head.key")))
    register = SignOnceRegister.open(place / "sign-once.register", key_id=own)
    try:
        yield
    finally:
        register.close()


def data_of_another_version(folder: Path) -> None:
    (folder / "replicas/r1/data").mkdir()
    (folder / "replicas/r1/data/VERSION").write_text("99\n")


def evidence_kept(folder: Path) -> None:
    (folder / "v1/evidence").mkdir(exist_ok=True)
    (folder / "v1/evidence/one.json").write_text("{}")


R, V = "replicas/r1", "v1"
SERVE = f"serve --allow-split-view -c DIR/{R}/keyserver.toml"
RUN = f"run -c DIR/{V}/verifier.toml"
CASES = (
    Case("no configuration", KEYSERVER, "serve -c DIR/none.toml"),
    Case("no TOML", KEYSERVER, SERVE, written(f"{R}/keyserver.toml", "schema =")),
    Case("another schema", KEYSERVER, SERVE, changed(f"{R}/keyserver.toml", "schema = 1", "schema = 2")),
    Case("unknown key", KEYSERVER, SERVE, changed(f"{R}/keyserver.toml", "replication", "replicaton")),
    Case(
        "address without port", KEYSERVER, SERVE, changed(f"{R}/keyserver.toml", "127.0.0.1:", "127.0.0.1.")
    ),
    Case("no head key", KEYSERVER, SERVE, removed(f"{R}/head.key")),
    Case("head key readable by others", KEYSERVER, SERVE, readable(f"{R}/head.key")),
    Case("head key of another", KEYSERVER, SERVE, swapped(f"{R}/head.key", f"{V}/verifier.key")),
    Case("head key is no key", KEYSERVER, SERVE, written(f"{R}/head.key", "secret")),
    Case("VRF key of another", KEYSERVER, SERVE, swapped(f"{R}/vrf.key", f"{V}/verifier.key")),
    Case("no realm file", KEYSERVER, SERVE, removed("realm.json")),
    Case("realm file is none", KEYSERVER, SERVE, written("realm.json", "{}")),
    Case("no certificate", KEYSERVER, SERVE, removed(f"{R}/tls.pem")),
    Case("certificate of another", KEYSERVER, SERVE, swapped(f"{R}/tls.pem", f"{V}/tls.pem")),
    Case("TLS key readable by others", KEYSERVER, SERVE, readable(f"{R}/tls.key")),
    Case("no list of verifiers", KEYSERVER, SERVE, removed(f"{R}/verifiers.json")),
    Case("list of verifiers is none", KEYSERVER, SERVE, written(f"{R}/verifiers.json", "{}")),
    Case("no register, checked", KEYSERVER, f"{SERVE} --check", removed(f"{R}/sign-once.register")),
    Case("split view", KEYSERVER, f"serve -c DIR/{R}/keyserver.toml"),
    Case("public port in use", KEYSERVER, SERVE, occupied(f"{R}/keyserver.toml", "public")),
    Case("http port in use", KEYSERVER, SERVE, occupied(f"{R}/keyserver.toml", "http")),
    Case("database in use", KEYSERVER, SERVE, database_in_use),
    Case("register in use", KEYSERVER, SERVE, register_in_use),
    Case("data of another version", KEYSERVER, SERVE, data_of_another_version),
    Case("nobody answers", KEYSERVER, f"status -c DIR/{R}/keyserver.toml"),
    Case("no http address", KEYSERVER, "status --url gopher://x"),
    Case("no log", KEYSERVER, f"log-dump -c DIR/{R}/keyserver.toml"),
    Case("no data to check", KEYSERVER, f"check -c DIR/{R}/keyserver.toml"),
    Case("backup is none", KEYSERVER, "backup verify DIR/realm.json"),
    Case("info file is none", KEYSERVER, f"realm add-verifier DIR/realm.json -c DIR/{R}/keyserver.toml"),
    Case("folder in use", KEYSERVER, "init DIR --realm example.org"),
    Case("no configuration", VERIFIER, "run -c DIR/none.toml"),
    Case("unknown key", VERIFIER, RUN, changed(f"{V}/verifier.toml", "listen", "lisen")),
    Case("key readable by others", VERIFIER, RUN, readable(f"{V}/verifier.key")),
    Case("no key", VERIFIER, RUN, removed(f"{V}/verifier.key")),
    Case("no register", VERIFIER, RUN, removed(f"{V}/sign-once.register")),
    Case("no register, checked", VERIFIER, f"{RUN} --check", removed(f"{V}/sign-once.register")),
    Case("realm file is none", VERIFIER, RUN, written(f"{V}/realm.json", "[]")),
    Case("certificate of another", VERIFIER, RUN, swapped(f"{V}/tls.pem", f"{R}/tls.pem")),
    Case("evidence is kept", VERIFIER, RUN, evidence_kept),
    Case("port in use", VERIFIER, RUN, occupied(f"{V}/verifier.toml", "listen")),
    Case("it never ran", VERIFIER, f"status -c DIR/{V}/verifier.toml"),
    Case("nobody answers", VERIFIER, f"audit -c DIR/{V}/verifier.toml"),
    Case("evidence is none", VERIFIER, "evidence verify DIR/realm.json --realm-file DIR/realm.json"),
    Case("no realm is known", CLIENT, "lookup somebody@example.org"),
    Case(
        "realm file is none",
        CLIENT,
        "context add DIR/wrong.json",
        written("wrong.json", "{}"),
    ),
    Case(
        "proof is none", CLIENT, "verify DIR/wrong.bin --realm-file DIR/realm.json", written("wrong.bin", "x")
    ),
    Case("no such file", CLIENT, "verify DIR/none.bin --realm-file DIR/realm.json"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replica and a verifier with nothing wrong."""
    folder = tmp_path_factory.mktemp("failures") / "whole"
    ports = setup.Ports(*(free_port() for _ in range(4)))
    plan = setup.Plan("example.org", ports=ports, insecure_skip_registration_proof=True)
    made = setup.init(folder, plan, datetime.now(UTC))
    done = run(
        command(VERIFIER, "init", str(folder / V), "--realm-file", str(made.realm_file), "--name", "v1",
                "--address", f"127.0.0.1:{free_port()}",
                "--verification-address", f"127.0.0.1:{ports.verification}",
                "--push-address", f"127.0.0.1:{ports.push}"),
        {},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def said(case: Case, whole: Path, number: int) -> str:
    """What a command says, without what differs from run to run."""
    folder = whole.parent / f"case-{number}"
    shutil.copytree(whole, folder)
    for file in (folder / R / "keyserver.toml", folder / V / "verifier.toml"):
        text = re.sub(r"127\.0\.0\.1:\d+", lambda _: f"127.0.0.1:{free_port()}", file.read_text())
        file.write_text(text)  # cases run at the same time
    made = case.damage(folder)
    arguments = case.arguments.replace("DIR", str(folder)).split()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    with made if hasattr(made, "__exit__") else nullcontext():
        done = run(command(case.module, *arguments), environment)
    lines = [line for line in done.stderr.splitlines() if not re.match(r"{|[EIW][0-9]{4} ", line)]  # logs
    text = re.sub(
        r"(127\.0\.0\.1|localhost)[:.]\d+", r"\1:PORT", "\n".join(lines).replace(str(folder), "DIR")
    )
    text = re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{16})\b", "HEX", text)
    assert "Traceback" not in text
    name = {KEYSERVER: "keyserver", VERIFIER: "verifier", CLIENT: "e2eks"}[case.module]
    return f"{name}: {case.name}: exit {done.returncode}\n{text}\n"


@pytest.mark.slow
def test_every_failure_says_what_happened_and_what_to_do(whole: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = "\n".join(pool.map(lambda item: said(item[1], whole, item[0]), enumerate(CASES)))
    if os.environ.get("E2EKS_REWRITE") == "1":
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()
    assert "a bug" not in found
