"""`keyserver check` and `keyserver backup` as operators meet them: what they print, and their exit codes."""

from pathlib import Path

import pytest
from kept.disk import left_behind
from kept.replica import Kept
from operators import Keyserver, keyserver_command, set_up

from keyserver.config import Config
from keyserver.data_directory import DATABASE, LOG, VERSION, open_data
from keyserver.machine.tables import Tables
from kv.leveldb import LevelDBStore
from verifier.realm import realm_json


@pytest.fixture
def keyserver(capsys: pytest.CaptureFixture[str]) -> Keyserver:
    return keyserver_command(capsys)


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Kept, Config]:
    """A stopped replica; whatever configuration is named, it is this one's."""
    kept, config = left_behind(tmp_path / "r1", 7, 60)
    monkeypatch.setattr("keyserver.config.load_config", lambda _: config)
    return kept, config


def spoil(config: Config, key: bytes, value: bytes | None) -> None:
    store = LevelDBStore(config.data / DATABASE)
    store.write({key: value})
    store.close()


def test_a_sound_replica(keyserver: Keyserver, replica: tuple[Kept, Config]) -> None:
    kept, config = replica
    for name in ("check", "verify-db"):
        text = keyserver(name)
        assert text.code == 0
        assert "sound" in text.out
        assert "✓" in text.err
    report = keyserver("check", "-o", "json").json
    assert report["schema"] == "e2eks.check/1"
    assert report["sound"] is True
    assert report["running"] is False
    assert report["faults"] == []
    assert report["index_proofs"] == len(kept.names) > 0
    assert report["log_entries"] == report["applied_index"] == len(kept.log) - 1
    assert report["register_rows"] == len(kept.recorded.rows) > 0
    assert report["realm"] == config.realm.name


def test_a_fault_is_shown_with_table_key_and_reason(
    keyserver: Keyserver, replica: tuple[Kept, Config]
) -> None:
    kept, config = replica
    key = min(key for key in kept.rows if key.startswith(Tables.CURRENT.prefix))
    spoil(config, key, kept.rows[key][:-1])
    ended = keyserver("check")
    assert ended.code == 1
    assert f"✗ current {key.hex()}: the row differs" in ended.out
    assert "1 faults" in ended.err
    (fault,) = keyserver("check", "-o", "json").json["faults"]
    assert (fault["table"], fault["key"]) == ("current", key.hex())


def test_no_name_is_ever_shown(keyserver: Keyserver, replica: tuple[Kept, Config]) -> None:
    kept, config = replica
    for table in (Tables.PROFILES, Tables.VRF_CACHE):
        for key in [key for key in kept.rows if key.startswith(table.prefix)]:
            spoil(config, key, kept.rows[key][:-1])
    ended = keyserver("check")
    assert ended.code == 1
    assert {"profiles", "vrf_cache"} <= {line.split()[1] for line in ended.out.splitlines() if "✗" in line}
    assert not [name for name in kept.names if name in ended.out + ended.err]


def test_what_cannot_be_opened_is_a_fault(keyserver: Keyserver, replica: tuple[Kept, Config]) -> None:
    _, config = replica
    (config.data / DATABASE / "CURRENT").write_bytes(b"nonsense\n")
    ended = keyserver("check", "-o", "json")
    assert ended.code == 1
    assert [fault["table"] for fault in ended.json["faults"]] == ["storage"]
    assert str(config.data / DATABASE) in ended.json["faults"][0]["reason"]


def test_register_and_version_belong_to_it(keyserver: Keyserver, replica: tuple[Kept, Config]) -> None:
    _, config = replica
    config.sign_once_register.unlink()
    (config.data / VERSION).unlink()
    faults = keyserver("check", "-o", "json").json["faults"]
    assert {fault["table"] for fault in faults} == {"sign-once register", "storage"}


def test_a_replica_that_never_ran_is_a_usage_error(keyserver: Keyserver, tmp_path: Path) -> None:
    config = set_up(tmp_path / "realm").configs[0]
    for command in (("check",), ("backup", "create", tmp_path / "b")):
        ended = keyserver(*command, "-c", config)
        assert ended.code == 2
        assert "has not run" in ended.err


def test_a_process_without_a_socket_is_not_checked(
    keyserver: Keyserver, replica: tuple[Kept, Config]
) -> None:
    _, config = replica
    with open_data(config.data):
        ended = keyserver("check")
    assert ended.code == 2
    assert "in use" in ended.err


def test_a_backup_from_end_to_end(keyserver: Keyserver, replica: tuple[Kept, Config], tmp_path: Path) -> None:
    _, config = replica
    target, realm_file = tmp_path / "r1.backup", tmp_path / "realm.json"
    realm_file.write_bytes(realm_json(config.realm))
    made = keyserver("backup", "create", target, "-o", "json")
    assert made.code == 0
    assert made.json["schema"] == "e2eks.backup-created/1"
    verified = keyserver("backup", "verify", target, "--realm-file", realm_file, "-o", "json")
    assert (verified.code, verified.json["sound"]) == (0, True)
    assert keyserver("backup", "restore", target).code == 2
    config.data.rename(tmp_path / "old")
    put_back = keyserver("backup", "restore", target, "-o", "json")
    assert put_back.code == 0
    assert put_back.json["state_digest"] == made.json["state_digest"]
    assert "rekey" in put_back.err
    assert keyserver("check").code == 0


def test_a_damaged_backup_is_refused(
    keyserver: Keyserver, replica: tuple[Kept, Config], tmp_path: Path
) -> None:
    target = tmp_path / "r1.backup"
    keyserver("backup", "create", target)
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    for command in ("verify", "restore"):
        ended = keyserver("backup", command, target)
        assert ended.code in (1, 2)
        assert "backup" in ended.err
    target.write_bytes(b"something else")
    ended = keyserver("backup", "verify", target)
    assert ended.code == 1
    assert "not a backup" in ended.err


def test_a_damaged_replica_is_not_backed_up(
    keyserver: Keyserver, replica: tuple[Kept, Config], tmp_path: Path
) -> None:
    kept, config = replica
    store = LevelDBStore(config.data / LOG)
    key = min(key for key in kept.log if key != b"f")
    store.write({key: bytes(32) + kept.log[key][32:]})
    store.close()
    ended = keyserver("backup", "create", tmp_path / "r1.backup")
    assert ended.code == 1
    assert "entry 1 " in ended.err
    assert not (tmp_path / "r1.backup").exists()
