"""The client and its command over real gRPC with TLS: the transport, and `e2eks` as a process of its own."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from samples import BOB, REALM
from simulated_realm import SimulatedRealm
from simulated_realm.server import Certificates, make_certificates, serving

from verifier import realm as realms
from verifier.client.client import Client, now_ms
from verifier.client.outcome import Unreachable
from verifier.client.pins import MemoryPins
from verifier.client.transport import GrpcTransport, fetch_realm_json, with_port
from verifier.errors import Reason, Refused
from verifier.lookup import Absent, Present

ALICE_ID, BOB_ID, NOBODY = "alice@example.test", "bob@example.test", "nobody@example.test"
PATIENCE_S = 60.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return make_certificates()


@pytest.fixture
def world(certificates: Certificates) -> Iterator[SimulatedRealm]:
    """A served realm in its second epoch; `world.addresses` is where."""
    world = SimulatedRealm(clock=now_ms)
    world.put(BOB_ID, {"ssh": b"ssh-ed25519 AAAA bob\n", "bin": b"\0\1"}, BOB)
    world.close()
    world.close()
    with serving(world, certificates) as address:
        pem = certificates.root.decode()
        world.realm = replace(REALM, addresses=(address,), tls_roots_pem=(pem,))
        world.addresses = (address,)
        yield world


def transport_of(world: SimulatedRealm, *addresses: str, timeout_s: float = PATIENCE_S) -> GrpcTransport:
    return GrpcTransport(
        addresses or world.addresses, tls_roots_pem=world.realm.tls_roots_pem, timeout_s=timeout_s
    )


def refusing_port() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# The transport


def test_a_client_asks_over_tls_and_a_dead_address_is_passed_over(world: SimulatedRealm) -> None:
    with transport_of(world, refusing_port(), *world.addresses) as transport:
        client = Client(world.realm, transport, MemoryPins())
        assert isinstance(client.lookup(BOB_ID), Present)
        assert isinstance(client.lookup(NOBODY), Absent)
        assert transport.addresses[0] == world.addresses[0]
        world.close()
        assert client.ask(BOB_ID).newest_epoch == 3
        assert client.ask(BOB_ID, 1).newest_epoch == 3


def test_a_stopped_server_is_left_before_the_call_is_overdue(world: SimulatedRealm) -> None:
    """Its system goes on taking connections; an update would wait a minute before the next address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        given_up = pytest.raises(Unreachable, match="UNAVAILABLE")
        with transport_of(world, address, timeout_s=15.0) as transport, given_up:  # gRPC alone: after 20 s
            transport.call(address, "Lookup", b"")


def test_a_refusal_comes_with_its_reason(world: SimulatedRealm) -> None:
    with transport_of(world) as transport, pytest.raises(Refused) as refused:
        Client(world.realm, transport, MemoryPins()).lookup(BOB_ID, 77)
    assert refused.value.reason is Reason.NO_SUCH_EPOCH


def test_a_streamed_answer_arrives_whole(world: SimulatedRealm) -> None:
    with transport_of(world) as transport:
        assert transport.stream(world.addresses[0], "PolicyHeads", b"\x08\x01") == []


def test_an_error_without_our_reason_is_unreachable(world: SimulatedRealm) -> None:
    world.down = set(world.addresses)
    with transport_of(world) as transport:
        with pytest.raises(Unreachable, match="UNAVAILABLE"):
            transport.call(world.addresses[0], "Lookup", b"")
        with pytest.raises(Unreachable, match="UNIMPLEMENTED"):
            transport.call(world.addresses[0], "History", b"")


def test_a_call_ends_at_its_timeout(world: SimulatedRealm) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with transport_of(world, address, timeout_s=0.2) as transport, pytest.raises(Unreachable):
            transport.call(address, "Lookup", b"")


def test_a_server_with_another_certificate_is_unreachable(world: SimulatedRealm) -> None:
    stranger = make_certificates().root
    transport = GrpcTransport(world.addresses, tls_roots_pem=[stranger.decode()], timeout_s=PATIENCE_S)
    with transport, pytest.raises(Unreachable):
        transport.call(world.addresses[0], "Lookup", b"")
    assert world.calls == []


def test_a_realm_is_fetched_from_an_address_whatever_its_certificate(world: SimulatedRealm) -> None:
    fetched = realms.parse_realm_json(fetch_realm_json(world.addresses[0], PATIENCE_S))
    assert realms.fingerprint(fetched) == realms.fingerprint(REALM)
    with pytest.raises(Unreachable):
        fetch_realm_json(refusing_port(), PATIENCE_S)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("ks.example.test", "ks.example.test:4625"),
        ("ks.example.test:99", "ks.example.test:99"),
        ("192.0.2.1", "192.0.2.1:4625"),
        ("2001:db8::1", "[2001:db8::1]:4625"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_an_address_without_port_gets_the_default_one(address: str, target: str) -> None:
    assert with_port(address) == target


# The command


def e2eks(home: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "verifier.client", *arguments],
        env={**ENVIRONMENT, "E2EKS_HOME": str(home)},
        input=stdin,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )


def test_a_newcomers_first_minutes(world: SimulatedRealm, empty_home: Path, tmp_path: Path) -> None:
    home, key = tmp_path / "e2eks", tmp_path / "id.pub"
    key.write_bytes(b"ssh-ed25519 AAAA alice\n")
    fingerprint = realms.fingerprint(REALM)
    added = e2eks(home, "context", "add", world.addresses[0], "--fingerprint", fingerprint)
    assert added.returncode == 0, added.stderr
    registered = e2eks(home, "register", ALICE_ID, "--key", f"ssh={key}")
    assert registered.returncode == 0, registered.stderr
    raw = e2eks(home, "lookup", ALICE_ID, "--app", "ssh", "--raw")
    assert raw.stdout == key.read_bytes()
    proof = tmp_path / "alice.bin"
    looked_up = e2eks(home, "lookup", ALICE_ID, "-o", "json", "--save", str(proof))
    assert json.loads(looked_up.stdout)["keys"] == {"ssh": "ssh-ed25519 AAAA alice\n"}
    assert looked_up.stderr.decode().count("✓") == 5
    realm_file = tmp_path / "realm.json"
    realm_file.write_bytes(realms.realm_json(world.realm))
    judged = e2eks(tmp_path / "other", "verify", str(proof), "--realm-file", str(realm_file))
    assert judged.returncode == 0, judged.stderr
    assert e2eks(home, "lookup", NOBODY).returncode == 4
    keys = e2eks(home, "ssh-authorized-keys", BOB_ID)
    assert (keys.returncode, keys.stdout) == (0, b"ssh-ed25519 AAAA bob\n")


def run(code: str) -> subprocess.CompletedProcess[bytes]:
    arguments = [sys.executable, "-c", code]
    return subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, check=False, timeout=PATIENCE_S)


def processor_s() -> float:
    """What the processes that this one started, and has waited for, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_imports_click_and_little_else() -> None:
    code = (
        "import sys\n"
        "from verifier.client.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'grpc', 'nacl', 'google', 'cryptography', 'ssl', 'json', 'asyncio'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    finished = run(code)
    assert finished.returncode == 0, finished.stderr
    assert b"Exit codes" in finished.stdout


def test_help_takes_hardly_longer_than_importing_click() -> None:
    """Half again is the bound, of processor time, in turns, and for the best of several runs: what else a
    machine does decides nothing.
    """
    codes = ("import click", "from verifier.client.cli import main; main(['--help'])")
    spent: dict[str, list[float]] = {code: [] for code in codes}
    for _ in range(7):
        for code in codes:
            before = processor_s()
            assert run(code).returncode == 0
            spent[code].append(processor_s() - before)
    bare, helped = (min(spent[code]) for code in codes)
    assert helped <= 1.5 * bare


def test_the_client_needs_nothing_that_only_servers_have() -> None:
    code = (
        "import sys\n"
        "import verifier.client.admission, verifier.client.client, verifier.client.transport\n"
        "from verifier.client.cli import load_commands\n"
        "load_commands()\n"
        "others = {'plyvel', 'trio', 'starlette', 'msgspec', 'keyserver', 'replication', 'verifier.daemon'}\n"
        "sys.exit(' '.join(others & set(sys.modules)) or 0)"
    )
    finished = run(code)
    assert finished.returncode == 0, finished.stderr
