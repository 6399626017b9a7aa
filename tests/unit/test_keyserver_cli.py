"""The command `keyserver`: data on stdout, exit codes of contract section 4, errors that say what to do."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
import trio
from e2eks.v1 import command_pb2
from operators import Keyserver, keyserver_command, set_up, verifier_file
from realm_processes.people import Authority

from keyserver.config import load_config
from keyserver.installation.setup import add_verifiers
from keyserver.machine import commands, private_parts
from keyserver.verifier_list import read_verifier_info
from replication.local import open_local_log
from verifier.realm import parse_realm_json


@pytest.fixture
def keyserver(capsys: pytest.CaptureFixture[str], empty_home: Path) -> Keyserver:
    return keyserver_command(capsys)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A realm with two verifiers, ready to serve."""
    made = set_up(tmp_path / "realm")
    infos = [read_verifier_info(verifier_file(tmp_path, name).path) for name in ("eff", "umich")]
    add_verifiers(load_config(made.configs[0]), infos)
    return made.configs[0]


# init and realm


def test_init_prints_the_fingerprint_and_where_things_are(keyserver: Keyserver, tmp_path: Path) -> None:
    ended = keyserver("init", tmp_path / "r", "--realm", "example.org", "--port-base", "9000", "-o", "json")
    assert ended.code == 0
    assert ended.json["schema"] == "e2eks.init/1"
    realm = parse_realm_json(Path(ended.json["realm_file"]).read_bytes())
    assert realm.addresses == ("localhost:9000",)
    shown = keyserver("realm", "fingerprint", "--realm-file", ended.json["realm_file"])
    assert shown.out.strip() == ended.json["fingerprint"]
    [config] = ended.json["configs"]
    checked = keyserver("serve", "--check", "--allow-split-view", "-c", config, "-o", "json")
    assert [checked.json["listen"][name][-4:] for name in ("public", "verification", "push", "http")] == [
        "9000",
        "9001",
        "9003",
        "9004",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--realm", "Example"),
        ("--realm", "r", "--replica", "r1"),
        ("--realm", "r", "--replica", "r1=a", "--replica", "r2=b"),
        ("--realm", "r", "--port-base", "0"),
        ("--realm", "r", "--registration-ca", "missing.pem"),
    ],
)
def test_a_wrong_init_ends_with_2(keyserver: Keyserver, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = keyserver("init", tmp_path / "r", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "rror" in ended.err


def test_realm_show_lists_replicas_and_verifiers(keyserver: Keyserver, config: Path) -> None:
    ended = keyserver("realm", "show", "-c", config, "-o", "json")
    assert ended.json["schema"] == "e2eks.realm/1"
    assert [verifier["name"] for verifier in ended.json["verifiers"]] == ["eff", "umich"]
    assert len(ended.json["replicas"]) == 1
    table = keyserver("realm", "show", "-c", config)
    assert "verifiers.2.name" in table.out


def test_add_verifier_prints_the_new_fingerprint(keyserver: Keyserver, config: Path, tmp_path: Path) -> None:
    info = verifier_file(tmp_path, "third").path
    before = keyserver("realm", "fingerprint", "-c", config).out.strip()
    ended = keyserver("realm", "add-verifier", "-c", config, info, "-o", "jsonl")
    assert ended.json["verifiers"] == ["eff", "umich", "third"]
    assert ended.json["fingerprint"] == keyserver("realm", "fingerprint", "-c", config).out.strip() != before


# serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Configurations a replica was started with, instead of starting one."""
    started: list[Any] = []

    def serve(config: Any, *, leave_diagnostic: bool) -> None:
        assert not leave_diagnostic
        started.append(config)

    monkeypatch.setitem(sys.modules, "keyserver.run", SimpleNamespace(serve=serve))
    return started


def test_serve_starts_the_replica_it_was_given(keyserver: Keyserver, config: Path, served: list[Any]) -> None:
    assert keyserver("serve", "-c", config).code == 0
    [one] = served
    assert (one.path, one.allow_split_view) == (config, False)


def test_serve_refuses_quorums_that_need_not_share_a_verifier_unless_allowed(
    keyserver: Keyserver, tmp_path: Path, served: list[Any]
) -> None:
    alone = set_up(tmp_path / "alone").configs[0]
    ended = keyserver("serve", "-c", alone)
    assert ended.code == 2
    for words in ("two clients", "different keys", "add-verifier", "--allow-split-view"):
        assert words in ended.err
    assert served == []
    assert keyserver("serve", "-c", alone, "--allow-split-view").code == 0
    assert served[0].allow_split_view


def test_check_starts_nothing_and_marks_defaults(
    keyserver: Keyserver, config: Path, served: list[Any]
) -> None:
    ended = keyserver("serve", "-c", config, "--check")
    assert (ended.code, served) == (0, [])
    lines = {line.split()[0]: line for line in ended.out.splitlines()}
    assert not lines["listen.public"].endswith("(default)")
    assert lines["update_timeout_ms"].endswith("(default)")
    assert [name for name in lines if name.startswith("certificates") and "(default)" in lines[name]] == []
    secret = (config.parent / "head.key").read_text().strip()
    assert secret not in ended.out + ended.err


def test_check_marks_no_default_in_tables_and_lists_of_the_file(keyserver: Keyserver, tmp_path: Path) -> None:
    people = tmp_path / "people.pem"
    people.write_bytes(Authority().pem)
    hosts = [word for name in ("r1", "r2", "r3") for word in ("--replica", f"{name}={name}.example.org")]
    made = keyserver(
        "init", tmp_path / "realm", "--realm", "r.example", "--registration-ca", people, *hosts, "-o", "json"
    )
    config = Path(made.json["configs"][0])
    with config.open("a") as text:
        text.write("[limits]\npeer_updates = { per_second = 1, at_once = 2 }\n")
    lines = keyserver("serve", "-c", config, "--check", "--allow-split-view").out.splitlines()
    given = {line.split()[0] for line in lines if not line.endswith("(default)")}
    assert given >= {
        "cluster.members.r3.peers",
        "limits.peer_updates.at_once",
        "realm_file",
        "registration.client_certificate.1.domains",
    }
    assert not given & {"cluster.timing.heartbeat_ms", "limits.peer_calls.at_once", "stop_grace_ms"}


@pytest.mark.parametrize("name", ["head.key", "vrf.key", "tls.pem", "verifiers.json", "sign-once.register"])
def test_check_names_a_file_that_is_missing(keyserver: Keyserver, config: Path, name: str) -> None:
    (config.parent / name).unlink()
    ended = keyserver("serve", "-c", config, "--check")
    assert ended.code == 2
    assert name in ended.err


def test_a_missing_configuration_ends_with_2(keyserver: Keyserver, tmp_path: Path) -> None:
    ended = keyserver("serve", "-c", tmp_path / "none.toml")
    assert (ended.code, ended.out) == (2, "")
    assert "none.toml cannot be read" in ended.err


# status and head


@pytest.fixture
def replica() -> Iterator[tuple[str, dict[str, Any]]]:
    """A listener, and what it answers: `status` (HTTP) and `body`."""
    answer: dict[str, Any] = {"status": 200, "body": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/status"
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answer
    server.shutdown()
    thread.join()
    server.server_close()


HEAD = {"epoch": 7, "root_hash": "ab", "verifiers": [{"name": "eff", "ratified_epoch": 6}]}
STATUS = {"schema": "e2eks.status/1", "ready": True, "epoch": 7, "head": HEAD}


def test_status_and_head_show_what_the_replica_says(
    keyserver: Keyserver, replica: tuple[str, dict[str, Any]]
) -> None:
    url, answer = replica
    answer["body"] = json.dumps(STATUS).encode()
    assert keyserver("status", "--url", url, "-o", "json").json == STATUS
    table = keyserver("status", "--url", url)
    assert table.code == 0
    assert "head.verifiers.1.ratified_epoch" in table.out
    assert keyserver("head", "--url", url, "-o", "json").json == {"schema": "e2eks.head/1", **HEAD}


def test_a_replica_that_is_not_ready_ends_with_5_and_says_why(
    keyserver: Keyserver, replica: tuple[str, dict[str, Any]]
) -> None:
    url, answer = replica
    record = {"schema": "e2eks.status/1", "ready": False, "reason": "replaying", "head": None}
    answer.update(status=503, body=json.dumps(record).encode())
    ended = keyserver("status", "--url", url)
    assert ended.code == 5
    assert "replaying" in ended.out
    ended = keyserver("head", "--url", url)
    assert ended.code == 6
    assert "shows no head: replaying" in ended.err
    assert "NOT_READY" in ended.err


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b"{}", b'{"schema": "e2eks.status/9"}', b"\xff"])
def test_what_is_no_replica_ends_with_5(
    keyserver: Keyserver, replica: tuple[str, dict[str, Any]], body: bytes
) -> None:
    url, answer = replica
    answer["body"] = body
    ended = keyserver("status", "--url", url)
    assert (ended.code, ended.out) == (5, "")


def test_nobody_there_ends_with_5(keyserver: Keyserver, config: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("127.0.0.1:25519", "127.0.0.1:1"))
    ended = keyserver("status", "-c", config)
    assert ended.code == 5
    assert "Is it running?" in ended.err


@pytest.mark.parametrize("address", ["", "127.0.0.1:0"])
def test_a_listener_without_a_known_port_ends_with_2(
    keyserver: Keyserver, config: Path, address: str
) -> None:
    config.write_text(config.read_text().replace("127.0.0.1:25519", address))
    ended = keyserver("status", "-c", config)
    assert ended.code == 2
    assert "--url" in ended.err


# log-dump


def fill_log(folder: Path, payloads: list[bytes]) -> None:
    async def fill() -> None:
        log = open_local_log(folder, commands.public_part)
        await log.start(1)
        for payload in payloads:
            await log.propose(payload)
        await log.stop()

    folder.mkdir(parents=True)
    trio.run(fill)


def entry(*wanted: commands.Command, private_parts: tuple[bytes, ...] = ()) -> bytes:
    encoded = [commands.encode_command(command) for command in wanted]
    envelope = commands.encode_envelope(replica=b"r" * 32, time_ms=5, commands=encoded)
    return commands.encode_log_entry(envelope, b"s" * 64, private_parts)


def test_the_log_is_printed_without_its_private_parts(keyserver: Keyserver, config: Path) -> None:
    contents = private_parts.encode_private_contents("alice@example.org", b"profile", b"n" * 32)
    private = private_parts.encode_private_part(b"t" * 32, contents)
    assert command_pb2.PrivatePart.FromString(private).contents == contents
    payloads = [
        entry(commands.Tick(), commands.AdmitVerifier(samples.EVE.public)),
        entry(commands.Delimiter(1, 9)),
        b"no entry",
        entry(commands.Tick(), private_parts=(private,)),
    ]
    fill_log(config.parent / "data" / "log", payloads)
    ended = keyserver("log-dump", "-c", config, "-o", "json")
    assert ended.code == 0
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert [record["index"] for record in records] == [1, 2, 3, 4]
    assert {record["schema"] for record in records} == {"e2eks.log-entry/1"}
    assert [command["command"] for command in records[0]["commands"]] == ["Tick", "AdmitVerifier"]
    assert records[1]["commands"] == [
        {"command": "Delimiter", "epoch": 1, "time_ms": 9, "private_part": "none"}
    ]
    assert "malformed" in records[2]
    assert records[3]["commands"][0]["private_part"] == "kept"
    table = keyserver("log-dump", "-c", config, "--from", "2", "--limit", "2")
    assert [line.split()[0] for line in table.out.splitlines()] == ["2", "3"]
    assert table.out.splitlines()[0].endswith("Delimiter epoch=1 time_ms=9")
    for text in (ended.out, table.out, keyserver("log-dump", "-c", config).out):
        assert "alice" not in text
        assert "profile" not in text


def test_there_is_nothing_to_dump_before_the_first_start(keyserver: Keyserver, config: Path) -> None:
    ended = keyserver("log-dump", "-c", config)
    assert (ended.code, ended.out) == (2, "")
    assert not (config.parent / "data").exists()


def test_the_log_of_a_running_replica_is_in_use(keyserver: Keyserver, config: Path) -> None:
    folder = config.parent / "data" / "log"
    fill_log(folder, [entry(commands.Tick())])
    log = open_local_log(folder, commands.public_part)
    ended = keyserver("log-dump", "-c", config)
    trio.run(log.stop)
    assert ended.code == 2
    assert "in use" in ended.err
