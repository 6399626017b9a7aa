"""Backups: what is restored is what was kept; what is not whole, or of another realm, is refused."""

import json
import stat
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from kept.disk import fill, left_behind
from kept.plants import planted
from kept.replica import Kept, scripted, store_of
from workload.cast import make_realm
from workload.replica import Replica

from keyserver.config import Config
from keyserver.copies.backup import MAGIC, BackupDamaged, Copy, Manifest, Origin, Part, copy_stream
from keyserver.copies.backup_create import create_backup
from keyserver.copies.backup_restore import RESTORED, restore, verify_backup, write_backup
from keyserver.copies.check_register import REGISTER
from keyserver.copies.check_replica import check_replica
from keyserver.data_directory import DATABASE, LOG, VERSION
from keyserver.machine import commands
from keyserver.machine.tables import Tables
from keyserver.operator_socket import running_replica
from kv.interface import StorageError
from kv.keys import EVERYTHING
from kv.leveldb import LevelDBStore
from kv.testing import Fault, FaultyStore
from replication.local import LocalLog
from replication.rows import entry_key
from verifier.errors import ConfigError
from verifier.realm import realm_json

NOW_MS = 1_800_000_000_000


@pytest.fixture
def replica(tmp_path: Path) -> tuple[Kept, Config]:
    return left_behind(tmp_path / "r1", 7, 60)


def silent(_: int) -> None:
    """Nobody watches."""


def rows_in(config: Config, folder: str) -> dict[bytes, bytes]:
    store = LevelDBStore(config.data / folder, create=False)
    try:
        return dict(store.scan(*EVERYTHING))
    finally:
        store.close()


def elsewhere(config: Config, folder: Path) -> Config:
    """The same replica with another data directory, which is not there yet."""
    return replace(config, data=folder / "data")


# A file and back


def test_a_round_trip_gives_the_same_rows(replica: tuple[Kept, Config], tmp_path: Path) -> None:
    kept, config = replica
    target = tmp_path / "r1.backup"
    manifest, _ = create_backup(config, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert verify_backup(target, config.realm, silent)[1].sound
    fresh = elsewhere(config, tmp_path)
    assert restore(target, fresh, NOW_MS) == manifest
    assert rows_in(fresh, DATABASE) == kept.rows
    assert rows_in(fresh, LOG) == kept.log
    assert (fresh.data / VERSION).is_file()
    assert check_replica(fresh, silent).report.sound


def test_a_restored_directory_is_marked(replica: tuple[Kept, Config], tmp_path: Path) -> None:
    _, config = replica
    manifest, _ = create_backup(config, tmp_path / "r1.backup")
    fresh = elsewhere(config, tmp_path)
    restore(tmp_path / "r1.backup", fresh, NOW_MS)
    mark = json.loads((fresh.data / RESTORED).read_text())
    assert mark == {
        "schema": "e2eks.restored/1",
        "applied_index": manifest.applied_index,
        "epoch": manifest.epoch,
        "state_digest": manifest.state_digest,
        "restored_ms": NOW_MS,
    }


def test_a_backup_holds_neither_keys_nor_register(replica: tuple[Kept, Config], tmp_path: Path) -> None:
    _, config = replica
    create_backup(config, tmp_path / "r1.backup")
    data = (tmp_path / "r1.backup").read_bytes()
    seed = bytes.fromhex(config.head_key.read_text())
    assert seed not in data
    assert seed.hex().encode() not in data
    assert config.sign_once_register.read_bytes()[:16] not in data


def test_a_backup_ends_with_what_the_database_has_applied(
    replica: tuple[Kept, Config], tmp_path: Path
) -> None:
    kept, config = replica
    ahead = scripted(7, 200)
    fill(config, replace(kept, log=ahead.log))  # committed, not yet applied
    manifest, _ = create_backup(config, tmp_path / "r1.backup")
    assert manifest.applied_index == len(kept.log) - 1 < len(ahead.log) - 1
    assert verify_backup(tmp_path / "r1.backup", None, silent)[1].entries == manifest.applied_index


def test_an_empty_replica_can_be_backed_up(tmp_path: Path) -> None:
    kept, config = left_behind(tmp_path / "r1", 1, 0)
    for folder in (DATABASE, LOG):
        store = LevelDBStore(config.data / folder)
        store.write({key: None for key, _ in store.scan(*EVERYTHING)})
        store.close()
    create_backup(config, tmp_path / "r1.backup")
    manifest, report = verify_backup(tmp_path / "r1.backup", kept.machine.realm, silent)
    assert report.sound
    assert (manifest.applied_index, manifest.epoch) == (0, 0)


# Refusals


def test_a_file_is_never_overwritten(replica: tuple[Kept, Config], tmp_path: Path) -> None:
    target = tmp_path / "r1.backup"
    target.write_bytes(b"another one")
    with pytest.raises(ConfigError, match="is not overwritten"):
        create_backup(replica[1], target)
    assert target.read_bytes() == b"another one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r1", "r1.backup"]


def test_a_directory_with_anything_in_it_is_not_restored_into(
    replica: tuple[Kept, Config], tmp_path: Path
) -> None:
    _, config = replica
    create_backup(config, tmp_path / "r1.backup")
    with pytest.raises(ConfigError, match="is not empty"):
        restore(tmp_path / "r1.backup", config, NOW_MS)
    empty = elsewhere(config, tmp_path)
    empty.data.mkdir()
    restore(tmp_path / "r1.backup", empty, NOW_MS)


def test_another_realm_is_refused(replica: tuple[Kept, Config], tmp_path: Path) -> None:
    _, config = replica
    create_backup(config, tmp_path / "r1.backup")
    other = make_realm(Replica(name="other").replicas, ())
    with pytest.raises(ConfigError, match="with hash"):
        verify_backup(tmp_path / "r1.backup", other, silent)
    fresh = replace(elsewhere(config, tmp_path), realm=other)
    with pytest.raises(ConfigError, match="with hash"):
        restore(tmp_path / "r1.backup", fresh, NOW_MS)
    assert not fresh.data.exists()


def test_every_change_of_the_file_is_refused(
    replica: tuple[Kept, Config], tmp_path: Path, rng: Random, count: Callable[[int], int]
) -> None:
    _, config = replica
    create_backup(config, tmp_path / "whole")
    whole, spoiled = (tmp_path / "whole").read_bytes(), tmp_path / "spoiled"
    fresh = elsewhere(config, tmp_path)
    for turn in range(count(60)):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        match turn % 4:
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + rng.randint(1, 100)]
            case _:
                data[at:at] = rng.randbytes(rng.randint(1, 10))
        spoiled.write_bytes(data)
        with pytest.raises(BackupDamaged):
            verify_backup(spoiled, config.realm, silent)
        with pytest.raises(BackupDamaged):
            restore(spoiled, fresh, NOW_MS)
        assert not fresh.data.exists()


def stream_of(kept: Kept, log: Kept | None = None) -> bytes:
    """The copy of these rows, and of another one's log."""
    realm = kept.machine.realm
    origin = Origin(kept.machine, realm_json(realm), "r1", NOW_MS)
    local = LocalLog(store_of((log or kept).log), commands.public_part)
    return b"".join(copy_stream(origin, store_of(kept.rows), local))


def test_what_is_rightly_sealed_is_still_replayed(rng: Random, tmp_path: Path) -> None:
    """Whoever changes a backup can seal it again. The replay finds what the seal cannot."""
    kept = scripted(7, 60)
    for number, spoiled in enumerate(planted(rng, kept, 40)):
        if spoiled.table in (LOG, REGISTER, Tables.APPLIED.name):
            continue
        write_backup(tmp_path / str(number), [stream_of(spoiled.kept)])
        report = verify_backup(tmp_path / str(number), None, silent)[1]
        assert spoiled.table in report.faults.counts, spoiled.kind


def test_another_log_of_the_same_realm_does_not_fit(tmp_path: Path) -> None:
    kept, other = scripted(7, 60), scripted(8, 200)
    write_backup(tmp_path / "mixed", [stream_of(kept, other)])
    assert not verify_backup(tmp_path / "mixed", None, silent)[1].sound


def test_a_manifest_that_says_otherwise_is_told(tmp_path: Path) -> None:
    stream = bytearray(stream_of(scripted(7, 60)))
    at = stream.index(b'"state_digest": "') + len(b'"state_digest": "')
    stream[at] = ord("0") if stream[at] != ord("0") else ord("1")
    (tmp_path / "resealed").write_bytes(resealed(bytes(stream)))
    report = verify_backup(tmp_path / "resealed", None, silent)[1]
    assert [fault.table for fault in report.faults.listed] == ["manifest"]


@pytest.mark.parametrize("name", [field.name for field in fields(Manifest)])
def test_a_manifest_with_a_field_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    whole = stream_of(scripted(7, 60))
    begin = len(MAGIC) + 1
    length = int.from_bytes(whole[begin : begin + 4], "big")
    manifest = json.loads(whole[begin + 4 : begin + 4 + length])
    manifest[name] = 7 if isinstance(manifest[name], str) else "7"
    changed = framed(json.dumps(manifest).encode())
    stream = resealed(whole[:begin] + changed + whole[begin + 4 + length :])
    (tmp_path / "resealed").write_bytes(stream)
    with pytest.raises(BackupDamaged, match=name):
        verify_backup(tmp_path / "resealed", None, silent)


def test_json_as_deep_as_a_manifest_is_long_is_none(tmp_path: Path) -> None:
    deep = MAGIC + bytes((Part.MANIFEST,)) + framed(b"[" * 200_000)
    (tmp_path / "deep").write_bytes(deep)
    with pytest.raises(BackupDamaged, match="manifest"):
        verify_backup(tmp_path / "deep", None, silent)


def resealed(stream: bytes) -> bytes:
    """The stream with the seal that its contents should have."""
    at = stream.rindex(b'{"records"')
    seal = json.loads(stream[at:])
    seal["sha256"] = sha256(stream[: at - 5]).hexdigest()  # u8 END and the length come after what is sealed
    return stream[:at] + json.dumps(seal).encode()


# A copy that cannot be read


def test_a_failing_disk_ends_the_copy_and_says_so(tmp_path: Path) -> None:
    kept = scripted(7, 60)
    origin = Origin(kept.machine, realm_json(kept.machine.realm), "r1", NOW_MS)
    log = LocalLog(store_of(kept.log), commands.public_part)
    for after in range(4):
        faulty = FaultyStore(store_of(kept.rows), Fault.READ_ERROR, after=after)
        with pytest.raises(StorageError, match="raises"):
            write_backup(tmp_path / "r1.backup", copy_stream(origin, faulty, log))
        assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_is_not_backed_up(replica: tuple[Kept, Config], tmp_path: Path) -> None:
    kept, config = replica
    store = LevelDBStore(config.data / LOG)
    store.write({entry_key(5): kept.log[entry_key(5)][:-1] + b"!"})
    store.close()
    with pytest.raises(StorageError, match="entry 5"):
        create_backup(config, tmp_path / "r1.backup")
    assert not (tmp_path / "r1.backup").exists()


def test_records_out_of_order_are_refused() -> None:
    whole = stream_of(scripted(7, 60))
    copy = Copy(BytesIO(whole).read)
    records = list(copy.records())
    assert [part for part, _ in records] == sorted(part for part, _ in records)
    assert {part for part, _ in records} == {Part.INDEX_PROOFS, Part.LOG, Part.ROWS}
    frames = [b"".join((bytes((part,)), framed(key), framed(value))) for part, (key, value) in records]
    head = whole[: whole.index(frames[0])]
    swapped = head + b"".join([frames[1], frames[0], *frames[2:]]) + b"\0" + framed(b"{}")
    with pytest.raises(BackupDamaged, match="out of order"):
        list(Copy(BytesIO(swapped).read).records())


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def test_nobody_answers_where_no_replica_runs(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with running_replica(folder) as read:
            assert read is None
