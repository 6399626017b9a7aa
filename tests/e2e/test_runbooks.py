"""Each runbook, executed: trouble is made, the commands of docs/runbooks are run, the realm is well again."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from realm_processes.people import Authority, connect, new_person, register
from realm_processes.realm import QUICK_RETRIES, RealmProcesses
from runbooks import ROOT, Operator, blocks
from streams.build import Stream
from streams.fake_keyserver import FakeKeyserver
from streams.folder import VerifierFolder

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import HOST, REPLICA
from verifier.errors import Refused
from verifier.lookup import Present

pytestmark = pytest.mark.slow

KEYSERVER, VERIFIER = "e2eks-keyserver", "e2eks-verifier"
FOLDER = ROOT / "docs" / "runbooks"


class OperatedRealm(RealmProcesses):
    """One replica and one verifier, which an operator starts and stops."""

    authority = Authority()
    operator: Operator

    def begin(self, *, skewed: bool = False, storage: str = "") -> None:
        self.set_up()
        toml = self.replica / "keyserver.toml"
        if storage:
            head, _, tail = toml.read_text().partition("[storage]\n")
            toml.write_text(head + storage + tail[tail.index("\n\n") :])
        with (self.verifier("v1") / "verifier.toml").open("a") as file:
            file.write(QUICK_RETRIES)
        variables = {
            "KEYSERVER": str(toml),
            "VERIFIER": str(self.verifier("v1") / "verifier.toml"),
            "DATA": str(self.replica / "data"),
            "REALM": str(self.realm_file),
            "CA": str(self.folder / "ca"),
            "BACKUP": str(self.folder / "r1.e2eks"),
            "HOST": "localhost",
            "VERIFICATION": f"{HOST}:{self.ports.verification}",
        }
        self.operator = Operator(self.folder / "operator", variables)
        self.operator.unit(KEYSERVER, "keyserver", "serve", "-c", str(toml), skewed=skewed)
        self.operator.unit(VERIFIER, "verifier.daemon", "run", "-c", variables["VERIFIER"], skewed=skewed)

    def start(self) -> None:
        self.operator.run(f"systemctl start {KEYSERVER} {VERIFIER}")
        wait_until(self.ratified, "the first ratified epoch")

    def wait_for_a_new_ratified_epoch(self) -> None:
        before = self.epochs()
        wait_until(lambda: self.ratified_epoch() > before, "a new ratified epoch")

    def ratified_epoch(self) -> int:
        verifiers = (self.status().get("head") or {}).get("verifiers", [])
        return int(verifiers[0]["ratified_epoch"]) if verifiers else 0

    def register_somebody(self) -> str:
        client, transport = connect(self.realm())
        with transport:
            return register(client, new_person(self.realm(), self.authority)).user_id


@contextmanager
def operated(folder: Path) -> Iterator[OperatedRealm]:
    realm = OperatedRealm(folder / "realm", ("v1",))
    try:
        yield realm
    finally:
        realm.operator.close()


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[OperatedRealm]:
    with operated(tmp_path) as made:
        made.begin()
        made.start()
        yield made


def test_lost_key_of_a_verifier(realm: OperatedRealm) -> None:
    realm.operator.run(f"systemctl stop {VERIFIER}")
    realm.register_of("v1").unlink()
    realm.operator.run(f"systemctl start {VERIFIER}")
    wait_until(lambda: "must not sign again" in realm.operator.log_of(VERIFIER), "the verifier to refuse")
    before = realm.key_id_of("v1")
    realm.operator.follow("lost-key", "A verifier's key or register")
    assert realm.key_id_of("v1") != before
    realm.wait_for_a_new_ratified_epoch()
    realm.register_somebody()


def test_lost_key_of_tls(realm: OperatedRealm) -> None:
    old = (realm.replica / "tls.pem").read_bytes()
    realm.operator.follow("lost-key", "A replica's TLS key")
    assert (realm.replica / "tls.pem").read_bytes() != old
    wait_until(lambda: "certificates renewed" in realm.operator.log_of(KEYSERVER), "the renewal")
    roots = str(realm.folder / "ca" / "realm-ca.pem")
    address = f"{HOST}:{realm.ports.public}"
    asked = subprocess.run(
        ["openssl", "s_client", "-connect", address, "-verify_hostname", "localhost",
         "-CAfile", roots, "-verify_return_error"],
        input=b"", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    shown = (realm.operator.folder / "tls.pem").read_text().split("-----")[2].strip()
    assert shown.replace("\n", "") in asked.stdout.decode().replace("\n", "")


def test_lost_head_key(realm: OperatedRealm) -> None:
    user_id = realm.register_somebody()
    realm.operator.follow("lost-key", "A replica's head key or register")
    client, transport = connect(realm.realm())
    with transport:
        assert isinstance(client.lookup(user_id), Present)
        with pytest.raises(Refused) as refused:
            register(client, new_person(realm.realm(), realm.authority))
    assert refused.value.reason == "NOT_READY"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at `folder`."""
    folder.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=False
    )
    if done.returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    with operated(tmp_path) as realm:
        realm.begin(storage="[storage]\nmin_free_bytes = 16777216\nballast_bytes = 8388608")
        with small_disk(realm.replica / "data", 96):
            try:
                realm.start()
                user_id = realm.register_somebody()
                filler = realm.replica / "data" / "core.1234"
                free = shutil.disk_usage(filler.parent).free
                with filler.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, free - 8 * 1024 * 1024)
                wait_until(lambda: not realm.status(), "the replica to stop taking updates")
                client, transport = connect(realm.realm())
                with transport:
                    assert isinstance(client.lookup(user_id), Present)
                realm.operator.follow("full-disk")
                realm.wait_for_a_new_ratified_epoch()
                realm.register_somebody()
            finally:
                realm.operator.run(f"systemctl stop {VERIFIER} {KEYSERVER}")


def test_corrupt_database(realm: OperatedRealm) -> None:
    user_id = realm.register_somebody()
    realm.operator.run('keyserver backup create -c "$KEYSERVER" "$BACKUP"')
    realm.operator.run(f"systemctl stop {KEYSERVER}")
    spoil(realm.replica / "data" / "db")
    realm.operator.run(f"systemctl start {KEYSERVER}")
    said = realm.operator.follow("corrupt-database")
    assert re.search(r"^sound +no$", said, re.MULTILINE)
    client, transport = connect(realm.realm())
    with transport:
        assert isinstance(client.lookup(user_id), Present)


def spoil(database: Path) -> None:
    """Flip a bit in the middle of every table and journal of a LevelDB database."""
    spoiled = [file for file in database.iterdir() if file.suffix in (".ldb", ".log") and file.stat().st_size]
    assert spoiled
    for file in spoiled:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def test_clock_error(tmp_path: Path) -> None:
    with operated(tmp_path) as realm:
        realm.begin(skewed=True)
        realm.start()
        realm.operator.run(f"systemctl stop {KEYSERVER} {VERIFIER}")
        realm.operator.offset.write_text("-600")
        realm.operator.run(f"systemctl start {KEYSERVER} {VERIFIER}")
        wait_until(lambda: bool(realm.status()), "the replica")
        stalled = realm.epochs()
        realm.operator.follow("clock-error")
        wait_until(lambda: realm.epochs() > stalled, "a new epoch")
        realm.wait_for_a_new_ratified_epoch()


def test_clock_error_of_a_verifier(tmp_path: Path) -> None:
    with operated(tmp_path) as realm:
        realm.begin(skewed=True)
        toml = realm.replica / "keyserver.toml"
        realm.operator.unit(KEYSERVER, "keyserver", "serve", "-c", str(toml))
        realm.operator.offset.write_text("-600")
        realm.operator.run(f"systemctl start {KEYSERVER} {VERIFIER}")
        wait_until(lambda: _says(realm, "head is issued ahead of this clock"), "the verifier to wait")
        assert realm.ratified_epoch() == 0
        realm.operator.follow("clock-error")
        realm.wait_for_a_new_ratified_epoch()


def _says(realm: OperatedRealm, words: str) -> bool:
    return (realm.operator.units / "logs").is_dir() and words in realm.operator.log_of(VERIFIER)


def test_verifier_dispute(tmp_path: Path) -> None:
    stream = Stream().grow(2)
    folder = VerifierFolder.make(tmp_path / "v1", stream.realm)
    operator = Operator(tmp_path / "operator", {"VERIFIER": str(folder.config_file)})
    operator.unit(VERIFIER, "verifier.daemon", "run", "-c", str(folder.config_file))
    honest = len(stream.steps)
    try:
        with FakeKeyserver(stream, folder.certificate) as keyserver:
            folder.connect(keyserver.verification, keyserver.push, keyserver.certificate)
            operator.variables["VERIFICATION"] = keyserver.verification
            operator.run(f"systemctl start {VERIFIER}")
            keyserver.wait_until(lambda: keyserver.ratified_epochs() == {1, 2})
            keyserver.grow(lambda s: s.append(epoch=s.sign_head(s.compose(root_hash=bytes(31) + b"x"))))
            wait_until(lambda: any((folder.path / "evidence").glob("*.json")), "evidence")
            wait_until(lambda: "Nothing more is ratified" in operator.log_of(VERIFIER), "the end")
            said = operator.follow("verifier-dispute", "What it says", "What it proves")
            assert "testimony" in said
            assert "not lawful" in said
            keyserver.grow(lambda s: s.steps.__delitem__(slice(honest, None)))  # the replica had been mended
            operator.follow("verifier-dispute", "Go on")
            assert list((operator.folder / "kept-evidence").glob("*.json"))
    finally:
        operator.close()


def test_every_runbook_is_tested_and_every_section_with_commands_is_run() -> None:
    names = {file.stem for file in FOLDER.glob("*.md")} - {"README"}
    one_replica = {"lost-key", "full-disk", "corrupt-database", "clock-error", "verifier-dispute"}
    assert names == one_replica | {"no-majority"}  # the last by test_runbooks_cluster.py
    for name in names:
        assert f"({name}.md)" in (FOLDER / "README.md").read_text()
        assert blocks(name)
    tested = {"A verifier's key or register", "A replica's TLS key", "A replica's head key or register"}
    text = (FOLDER / "lost-key.md").read_text()
    with_commands = {part.partition("\n")[0] for part in text.split("\n## ")[1:] if "```sh" in part}
    assert with_commands == tested
    assert REPLICA == "r1"  # the name in the runbooks' certificates
