"""Restored, copied, lagging and register-less replicas and verifiers, as processes: what each of them does is
what the contract names (section 3, sign-once register), and what the operator is told leads out of it.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from realm_processes.copies import (
    DAY_NS,
    CopiedRealm,
    YesterdaysRealm,
    cloned,
    compare_every,
    follow,
    put,
    status_of,
)
from realm_processes.people import connect

from keyserver.demo.processes import free_port, wait_until
from keyserver.demo.stage import HOST, REPLICA
from verifier.signonce import read_rows

VERIFIERS = ("v1", "v2", "v3")
PROVEN, TESTIMONY = 0, 3  # exit codes of `verifier evidence verify`


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CopiedRealm]:
    """One realm for all tests that can put everything back; at the end it still works."""
    stage = CopiedRealm(tmp_path_factory.mktemp("quarantine") / "realm", VERIFIERS)
    try:
        stage.open()
        yield stage
        stage.ensure_replica()
        stage.wait_beyond(stage.epochs())
        for name in list(stage.processes.running):
            assert stage.processes.stop(name) == 0
            assert "Traceback" not in stage.log_of(name)
    finally:
        stage.processes.stop_all()


@pytest.fixture(scope="module")
def past(realm: CopiedRealm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the now stopped replica as it is, `good`, and as it was some epochs ago, `old`."""
    kept = tmp_path_factory.mktemp("past")
    realm.processes.stop(REPLICA)
    shutil.copytree(realm.replica, kept / "old")
    realm.start_replica()
    realm.wait_beyond(realm.wait_beyond(realm.epochs()))
    for name in VERIFIERS:
        realm.wait_ratified_by(name, realm.newest_in_register(REPLICA, kept / "old"))
    realm.processes.stop(REPLICA)
    shutil.copytree(realm.replica, kept / "good")
    return kept


@pytest.fixture
def replica(realm: CopiedRealm, past: Path) -> Iterator[Path]:
    """The folder of the stopped replica, to be spoiled."""
    if REPLICA in realm.processes.running:
        assert realm.processes.stop(REPLICA) == 0
        put(realm.replica, past / "good")
    yield realm.replica
    if REPLICA in realm.processes.running:
        assert realm.processes.stop(REPLICA) == 0
    put(past / "good", realm.replica)


# Replicas


def lose_register(old: Path, folder: Path) -> None:
    (folder / "sign-once.register").unlink()


def old_register(old: Path, folder: Path) -> None:
    put(old / "sign-once.register", folder / "sign-once.register")


def old_image(old: Path, folder: Path) -> None:
    put(old, folder)


IN_QUARANTINE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "register lost": (lose_register, "is missing"),
    "register older than the database": (old_register, "missing or old"),
    "an old copy of everything": (old_image, "of which the register knows nothing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", IN_QUARANTINE)
def test_a_replica_in_doubt_answers_and_signs_nothing_until_it_has_a_new_key(
    what: str, realm: CopiedRealm, replica: Path, past: Path
) -> None:
    spoil, words = IN_QUARANTINE[what]
    newest = realm.newest_in_register(REPLICA)
    spoil(past / "old", replica)
    register = replica / "sign-once.register"
    before = register.read_bytes() if register.exists() else b""
    check_quarantine(realm, words)
    assert "keyserver keys rekey" in realm.log_of(REPLICA)
    assert (register.read_bytes() if register.exists() else b"") == before
    evidence = list((replica / "evidence").glob("*.json")) if what == "an old copy of everything" else []
    if evidence:  # nobody answers this time: what was found stays found
        check_quarantine(realm, "evidence that this key was used elsewhere")
    done = realm.ok("keyserver", "keys", "rekey", "-c", replica / "keyserver.toml")
    assert done["floor"] >= newest
    assert done["key_id"] == realm.key_id_of(REPLICA).hex()
    check_quarantine(realm, "A realm of one replica cannot take it in")
    assert read_rows(register, key_id=realm.key_id_of(REPLICA)) == (done["floor"], {})


def check_quarantine(realm: CopiedRealm, words: str) -> None:
    """Started, the replica says why it only reads, answers lookups, and composes and signs nothing."""
    realm.spawn_replica()
    wait_until(lambda: status_of(realm.ports.http).get("quarantined", "") != "", "the quarantine")
    wait_until(realm.is_ratified, "an answer")
    said = status_of(realm.ports.http)
    assert words in said["quarantined"]
    assert said["ready"] is False
    assert said["reason"].startswith("in quarantine, this replica only reads")
    applied = said["applied_index"]
    shown = realm.run("keyserver", "status", "-c", str(realm.replica / "keyserver.toml"), "-o", "json")
    assert shown.returncode == 5
    assert json.loads(shown.stdout)["applied_index"] == applied
    assert realm.processes.stop(REPLICA) == 0


@pytest.mark.slow
def test_a_replica_whose_rows_end_before_its_register_is_refused(
    realm: CopiedRealm, replica: Path, past: Path
) -> None:
    for part in ("data", "data/log", "data/db"):
        put(past / "good", replica)
        put(past / "old" / part, replica / part)
        realm.spawn_replica()
        assert realm.end_of(REPLICA) == 1
        log = realm.log_of(REPLICA)
        assert log.splitlines()[-1].startswith("keyserver: error: the ")
        assert "its newest rows are lost" in log.splitlines()[-1]
        assert realm.newest_in_register(REPLICA) == realm.newest_in_register(REPLICA, past / "good")


@pytest.mark.slow
def test_a_restored_backup_is_quarantine_until_a_new_key(
    realm: CopiedRealm, replica: Path, tmp_path: Path
) -> None:
    config = replica / "keyserver.toml"
    realm.ok("keyserver", "backup", "create", tmp_path / "backup", "-c", config)
    shutil.rmtree(replica / "data")
    realm.ok("keyserver", "backup", "restore", tmp_path / "backup", "-c", config)
    check_quarantine(realm, "restored from a backup")
    done = realm.ok("keyserver", "keys", "rekey", "-c", config)
    assert done["verifiers"].keys() == set(VERIFIERS)
    assert done["floor"] >= max(done["verifiers"].values())
    assert not (replica / "data" / "restored.json").exists()


@pytest.mark.slow
def test_a_copy_beside_the_running_original_stops_before_it_signs(
    realm: CopiedRealm, replica: Path, past: Path
) -> None:
    copy, ports = cloned(realm, replica)
    realm.start_replica()
    before = realm.newest_in_register(REPLICA, copy)
    for name in VERIFIERS:
        realm.wait_ratified_by(name, before)
    realm.spawn_clone(copy)
    wait_until(lambda: status_of(ports["http"]).get("quarantined", "") != "", "the copy's quarantine")
    assert "of which the register knows nothing" in status_of(ports["http"])["quarantined"]
    assert list((copy / "evidence").glob("own-key-*.json"))
    assert realm.newest_in_register(REPLICA, copy) == before
    realm.wait_beyond(realm.epochs())  # the original goes on
    assert realm.status()["quarantined"] == ""
    assert realm.processes.stop("clone") == 0
    assert realm.processes.stop(REPLICA) == 0
    put(replica, past / "good")
    shutil.rmtree(copy)


# Verifiers


@pytest.fixture
def victim(realm: CopiedRealm) -> str:
    """A stopped verifier, to be spoiled, and to be left stopped in order."""
    realm.ensure_replica()
    if "v3" not in realm.processes.running:
        realm.start_verifier("v3")
    realm.wait_ratified_by("v3", realm.epochs())
    assert realm.processes.stop("v3") == 0
    return "v3"


@pytest.mark.slow
def test_a_restored_verifier_is_told_what_it_signed_and_does_not_sign_again(
    realm: CopiedRealm, victim: str, tmp_path: Path
) -> None:
    folder = realm.verifier(victim)
    image = shutil.copytree(folder, tmp_path / "image")
    realm.start_verifier(victim)
    realm.wait_ratified_by(victim, realm.newest_in_register(victim) + 1)
    assert realm.processes.stop(victim) == 0
    good = shutil.copytree(folder, tmp_path / "good")
    put(image, folder)
    before = realm.register_of(victim).read_bytes()
    for _ in range(2):  # what was found stays found
        realm.start_verifier(victim)
        assert realm.end_of(victim) == 2
        assert realm.register_of(victim).read_bytes() == before
    assert list((folder / "evidence").glob("own-key-*.json"))
    assert "forgotten what it signed" in realm.log_of(victim)
    put(good, folder)


@pytest.mark.slow
def test_of_two_verifiers_with_one_key_the_second_stops(
    realm: CopiedRealm, victim: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(realm.verifier(victim), realm.verifier("copy"))
    config = copy / "verifier.toml"
    listen = f'listen = "{HOST}:{free_port()}"'
    config.write_text(re.sub(r'^listen = ".*?"', listen, config.read_text(), flags=re.MULTILINE))
    realm.start_verifier(victim)
    realm.start_verifier("copy")
    both = {name: realm.processes.running[name] for name in (victim, "copy")}
    wait_until(lambda: any(p.poll() is not None for p in both.values()), "one of them to stop")
    stopped = next(name for name, process in both.items() if process.poll() is not None)
    other = next(name for name in both if name != stopped)
    assert realm.end_of(stopped) == 2
    assert list((realm.verifier(stopped) / "evidence").glob("own-key-*.json"))
    assert both[other].poll() is None
    assert realm.processes.stop(other) == 0
    shutil.rmtree(realm.verifier(stopped) / "evidence")
    if other == "copy":
        for part in ("data", "sign-once.register"):
            put(copy / part, realm.verifier(victim) / part)
    shutil.rmtree(copy)


@pytest.mark.slow
def test_a_verifier_without_its_register_does_not_start_and_a_new_key_takes_its_place(
    realm: CopiedRealm, victim: str
) -> None:
    realm.register_of(victim).unlink()
    realm.start_verifier(victim)
    assert realm.end_of(victim) == 2
    assert "verifier rekey" in realm.log_of(victim)
    assert not realm.register_of(victim).exists()
    info = rekeyed(realm, victim)
    config = realm.replica / "keyserver.toml"
    changed = realm.ok("keyserver", "realm", "add-verifier", "-c", config, "--replace", victim, info)
    assert changed["verifiers"] == list(VERIFIERS)
    for process in list(realm.processes.running):
        assert realm.processes.stop(process) == 0
    for name in VERIFIERS:
        shutil.copyfile(realm.realm_file, realm.verifier(name) / "realm.json")
    realm.start_replica()
    for name in VERIFIERS:
        realm.start_verifier(name)
    realm.wait_ratified_by(victim, realm.epochs())
    client, transport = connect(realm.realm())

    def signed() -> bool:
        return realm.signers_of(client.lookup("nobody@example.test").head) >= {REPLICA, victim}

    with transport:
        wait_until(signed, "a proof that v3 signed with its new key")


def rekeyed(realm: CopiedRealm, name: str) -> Path:
    """The info file of a verifier after `verifier rekey`."""
    file = realm.verifier(name) / "verifier-info.json"
    before = json.loads(file.read_text())
    done = realm.run("verifier.daemon", "rekey", "-c", str(realm.verifier(name) / "verifier.toml"))
    assert done.returncode == 0, done.stderr
    assert f"--replace {name}" in done.stderr
    after = json.loads(file.read_text())
    assert after == json.loads(done.stdout)
    assert {key for key in before if before[key] != after[key]} == {"public_key", "tls_certificate_pem"}
    return file


# A realm of its own: it does not survive


def judge_evidence(realm: CopiedRealm, folder: Path) -> int:
    """Exit code of the command that judges the one file of evidence which a replica keeps."""
    (kept,) = (folder / "evidence").iterdir()
    arguments = ("evidence", "verify", str(kept), "--realm-file", str(realm.realm_file))
    return realm.run("verifier.daemon", *arguments).returncode


@pytest.mark.slow
def test_two_replicas_with_one_key_are_found_out_by_each_other_and_by_the_verifiers(tmp_path: Path) -> None:
    realm = CopiedRealm(tmp_path / "realm", ("v1", "v2"))
    try:
        realm.open()
        for name in (REPLICA, "v1", "v2"):
            realm.processes.stop(name)
        copy, ports = cloned(realm, realm.replica)
        follow(realm, "v2", ports)
        for name in ("v1", "v2"):
            compare_every(realm, name, 600_000)
        signed = realm.newest_in_register(REPLICA)
        realm.start_replica()  # nobody is there to ask
        realm.spawn_clone(copy)
        for port in (realm.ports.http, ports["http"]):
            wait_until(lambda port=port: status_of(port).get("signed_epoch", 0) > signed, "two histories")  # type: ignore[misc]
        for name in ("v1", "v2"):
            realm.start_verifier(name)
        for port in (realm.ports.http, ports["http"]):
            wait_until(lambda port=port: status_of(port).get("quarantined", "") != "", "quarantine")  # type: ignore[misc]
            assert "used elsewhere" in status_of(port)["quarantined"]
        judged = [judge_evidence(realm, folder) for folder in (realm.replica, copy)]
        assert PROVEN in judged  # of two, one has come to where it saw the other; who is behind only saw it
        assert set(judged) <= {PROVEN, TESTIMONY}
        for name in ("v1", "v2"):
            realm.processes.stop(name)
            compare_every(realm, name, 200)
        for name in ("v1", "v2"):
            realm.start_verifier(name)
        both = {name: realm.processes.running[name] for name in ("v1", "v2")}
        wait_until(lambda: any(p.poll() is not None for p in both.values()), "a verifier to find the fork")
        assert realm.end_of(next(name for name, p in both.items() if p.poll() is not None)) == 8
    finally:
        realm.processes.stop_all()


# Time


@pytest.mark.slow
def test_after_a_day_without_power_everybody_goes_on_where_they_stood(tmp_path: Path) -> None:
    realm = YesterdaysRealm(tmp_path / "realm", ("v1", "v2"))
    try:
        realm.open()
        before = realm.wait_beyond(realm.epochs())
        for name in (REPLICA, "v1", "v2"):
            assert realm.processes.stop(name) == 0
        signed = {name: realm.signed_by(name) for name in (REPLICA, "v1", "v2")}
        realm.yesterday = False
        realm.start_replica()
        for name in ("v1", "v2"):
            realm.start_verifier(name)
        wait_until(realm.is_ratified, "a fresh epoch")
        client, transport = connect(realm.realm())
        with transport:
            found = client.lookup("nobody@example.test")
        assert found.head.head.epoch > before
        last = max(signed[REPLICA], key=lambda row: row.epoch)
        assert found.head.head.issue_time_ms - last.timestamp_ms > 0.99 * DAY_NS / 10**6
        for name in (REPLICA, "v1", "v2"):
            assert realm.processes.stop(name) == 0
            assert realm.signed_by(name)[: len(signed[name])] == signed[name]
    finally:
        realm.processes.stop_all()
