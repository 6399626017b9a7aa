"""Erasure in a real realm: not a byte of the erased on any disk, and everything still verifies, old epochs
too.
"""

from __future__ import annotations

import random
import secrets
import signal
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired

import pytest
from realm_processes.crashes import CrashingRealm
from realm_processes.people import connect
from realm_processes.realm import RealmProcesses

from keyserver.demo.processes import command, run, wait_until
from keyserver.demo.stage import REPLICA
from kv.crash_points import POINTS, VARIABLE
from verifier.client.client import Client
from verifier.client.outcome import Unreachable
from verifier.crypto.signatures import SigningKey
from verifier.lookup import Erased, LookupResult, Present, Revoked

pytestmark = pytest.mark.slow

PIECE_BYTES = 12  # a journal cuts a value in two, compression seldom spares so many
PIECES = 6
POINTS_OF_ERASURE = tuple(name for name, point in POINTS.items() if point.file == "keyserver/erasure.py")


@dataclass
class Somebody:
    """A user whose name and keys occur nowhere else; `secrets` collects what must be forgotten."""

    realm: RealmProcesses
    name: str = field(default_factory=lambda: b64encode(secrets.token_bytes(24), b"+-").decode().lower())
    key: SigningKey = field(default_factory=lambda: SigningKey(secrets.token_bytes(32)))
    secrets: list[bytes] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    @property
    def user_id(self) -> str:
        return f"{self.name}@{self.realm.realm().domains[0]}"

    def publish(self, client: Client, size: int = 300) -> None:
        """Register, or update."""
        publish = client.update if self.epochs else client.register
        key = b64encode(secrets.token_bytes(size))
        result = publish(self.user_id, {"ssh": key}, [self.key])
        assert isinstance(result, Present)
        self.secrets += [self.name.encode(), key, result.proof.profile_nonce]
        self.epochs.append(result.head.head.epoch)

    def at(self, client: Client, epoch: int = 0) -> LookupResult:
        return client.lookup(self.user_id, epoch)

    def check_erased(self, client: Client) -> None:
        """Every epoch still proves the entry, and none shows a key."""
        for epoch in (0, *self.epochs):
            assert isinstance(self.at(client, epoch), Erased)


def pieces(secret: bytes) -> Iterator[bytes]:
    """Some, from all over the secret: what holds it holds most of them."""
    starts = range(0, len(secret) - PIECE_BYTES + 1, PIECE_BYTES)
    for start in starts[:: len(starts) // PIECES + 1]:
        yield secret[start : start + PIECE_BYTES]


def traces(folder: Path, secrets: Sequence[bytes]) -> set[str]:
    """Files below the folder that hold a piece of a secret."""
    wanted = {piece for secret in secrets for piece in pieces(secret)}
    found = set()
    for path in folder.rglob("*"):
        if path.name == "ballast":  # 64 MiB of nothing
            continue
        with suppress(OSError):  # a folder, a socket, or a file that LevelDB has tidied away
            data = path.read_bytes()
            if any(piece in data for piece in wanted):
                found.add(str(path.relative_to(folder)))
    return found


def wait_forgotten(realm: RealmProcesses, secrets: Sequence[bytes]) -> None:
    wait_until(lambda: not traces(realm.folder, secrets), "no trace of the erased")


@contextmanager
def talking_to(realm: RealmProcesses) -> Iterator[Client]:
    client, transport = connect(realm.realm())
    with transport:
        yield client


def check_replica(realm: RealmProcesses) -> None:
    """The operator's own check of a stopped replica."""
    done = run(
        command("keyserver", "check", "-c", str(realm.replica / "keyserver.toml")), realm.environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wait_ready(realm: RealmProcesses) -> None:
    wait_until(realm.replica_ready, REPLICA, realm.processes.running[REPLICA])


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[RealmProcesses]:
    stage = RealmProcesses(tmp_path / "realm", ("v1", "v2"))
    try:
        stage.open()
        yield stage
    finally:
        stage.processes.stop_all()


def test_not_a_byte_of_the_erased_is_left_and_everything_verifies(realm: RealmProcesses) -> None:
    alice, bob, carol = (Somebody(realm) for _ in range(3))
    with talking_to(realm) as client:
        for somebody in (alice, bob, carol, alice, bob, alice):
            somebody.publish(client)
        saved = alice.at(client).proof.encoded
        client.revoke(carol.user_id, [carol.key])
        for somebody in (alice, bob, carol):
            assert all(traces(realm.folder, [secret]) for secret in somebody.secrets)

        assert isinstance(client.erase(alice.user_id, [alice.key]), Erased)
        alice.check_erased(client)
        assert isinstance(client.erase(carol.user_id, [carol.key]), Revoked)
        wait_forgotten(realm, alice.secrets + carol.secrets)
        assert traces(realm.folder, bob.secrets)

        alice.check_erased(client)  # and looking for the erased leaves no trace either
        assert all(isinstance(bob.at(client, epoch), Present) for epoch in (0, *bob.epochs))
        assert isinstance(client.verify_saved(saved).result, Present)
        assert isinstance(client.erase(alice.user_id, [alice.key]), Erased)
        bob.publish(client)
        wait_forgotten(realm, alice.secrets + carol.secrets)

    assert realm.processes.stop(REPLICA) == 0
    assert traces(realm.folder, alice.secrets + carol.secrets) == set()
    check_replica(realm)
    realm.start_replica()
    with talking_to(realm) as client:
        alice.check_erased(client)
        alice.publish(client)
        assert isinstance(alice.at(client), Present)
        assert all(isinstance(alice.at(client, epoch), Erased) for epoch in alice.epochs[:-1])
        assert isinstance(carol.at(client), Revoked)
    realm.check_alive()
    assert "Traceback" not in realm.log_of(REPLICA)


def nothing_is_owed(realm: RealmProcesses) -> bool:
    return b"e2eks_blanking_entries 0.0" in (realm.http("/metrics") or b"")


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[CrashingRealm]:
    stage = CrashingRealm(tmp_path / "realm", ("v1",))
    try:
        stage.open()
        yield stage
    finally:
        stage.processes.stop_all()


def test_dead_at_a_crash_point_of_the_blanker_it_is_forgotten_at_the_next_start(
    crashing: CrashingRealm, rng: random.Random, count: Callable[[int], int]
) -> None:
    kept, gone = Somebody(crashing), list[Somebody]()
    with talking_to(crashing) as client:
        kept.publish(client)
    for _ in range(count(1)):
        for point in rng.sample(POINTS_OF_ERASURE, len(POINTS_OF_ERASURE)):
            print(f"{point}: {POINTS[point].what}")
            crashing.kill(REPLICA)
            crashing.spawn(REPLICA, {VARIABLE: point})
            wait_ready(crashing)
            alice = Somebody(crashing)
            with talking_to(crashing) as client:
                for _ in range(2):
                    alice.publish(client)
                with suppress(Unreachable):  # the answer is under way when the process ends
                    client.erase(alice.user_id, [alice.key])
            assert crashing.wait_end(REPLICA) == -signal.SIGKILL
            everything_is_purged = point == POINTS_OF_ERASURE[-1]
            assert everything_is_purged != bool(traces(crashing.folder, alice.secrets))
            gone.append(alice)
            crashing.spawn(REPLICA)
            wait_ready(crashing)
            wait_forgotten(crashing, alice.secrets)
            wait_until(lambda: nothing_is_owed(crashing), "the end of the duty")
    with talking_to(crashing) as client:
        for alice in gone:
            alice.check_erased(client)
        assert isinstance(kept.at(client), Present)
    assert crashing.processes.stop(REPLICA) == 0
    check_replica(crashing)


def test_killed_in_the_middle_it_is_forgotten_all_the_same(
    realm: RealmProcesses, rng: random.Random, count: Callable[[int], int]
) -> None:
    kept = Somebody(realm)
    with talking_to(realm) as client:
        kept.publish(client)
    gone: list[Somebody] = []
    for _ in range(count(5)):
        alice = Somebody(realm)
        with talking_to(realm) as client:
            for _ in range(2):
                alice.publish(client, rng.choice((300, 20_000)))
            client.erase(alice.user_id, [alice.key])
        gone.append(alice)
        for _ in range(rng.randint(1, 3)):
            with suppress(TimeoutExpired):
                realm.processes.running[REPLICA].wait(rng.uniform(0, 0.4))
            realm.kill(REPLICA)
            realm.spawn_replica()
            if rng.random() < 0.7:
                wait_ready(realm)
        wait_ready(realm)
    secrets = [secret for alice in gone for secret in alice.secrets]
    wait_forgotten(realm, secrets)
    with talking_to(realm) as client:
        wait_until(realm.is_ratified, "an epoch after the kills")
        for alice in gone:
            alice.check_erased(client)
        assert isinstance(kept.at(client), Present)
        kept.publish(client)
    assert realm.processes.stop(REPLICA) == 0
    assert traces(realm.folder, secrets) == set()
    check_replica(realm)
