"""A backup put back into every member of a Raft cluster, and a member's copy checked without its engine."""

from dataclasses import replace
from pathlib import Path

import pytest
from kept.disk import left_behind
from kept.replica import Kept

from keyserver.cluster import RAFT
from keyserver.config import Config
from keyserver.copies.backup_create import create_backup
from keyserver.copies.backup_restore import restore
from keyserver.copies.check import LOG
from keyserver.copies.check_replica import check_replica
from keyserver.machine import commands
from kv.leveldb import LevelDBStore
from replication.raft.journal import Journal
from replication.raft.rows import entry_key
from replication.rows import LINK_BYTES
from replication.rows import entry_key as local_key

NOW_MS = 1_800_000_000_000


@pytest.fixture
def member(tmp_path: Path) -> tuple[Kept, Config]:
    """A member whose data folder was filled from the backup of a lone replica."""
    kept, config = left_behind(tmp_path / "r1", 7, 60)
    create_backup(config, tmp_path / "r1.backup")
    restored = replace(config, data=tmp_path / "data", replication=RAFT)
    restore(tmp_path / "r1.backup", restored, NOW_MS)
    return kept, restored


def log_faults(config: Config) -> list[tuple[str, str]]:
    report = check_replica(config, lambda _: None).report
    return [(fault.key, fault.reason) for fault in report.faults.listed if fault.table == LOG]


def test_a_member_has_the_whole_log_committed(member: tuple[Kept, Config]) -> None:
    kept, config = member
    journal = Journal(LevelDBStore(config.data / "raft", create=False), commands.public_part)
    count = journal.committed_to
    expected = [kept.log[local_key(index)][LINK_BYTES:] for index in range(1, count + 1)]
    assert local_key(count + 1) not in kept.log
    assert [entry.payload for entry in journal.read(1, count + 1, 2**40)] == expected
    journal.verify_chain(1, count + 1)
    journal.close()
    assert not (config.data / "log").exists()


def test_a_members_copy_is_checked(member: tuple[Kept, Config]) -> None:
    _, config = member
    assert log_faults(config) == []


def test_a_fault_in_a_members_log_is_found(member: tuple[Kept, Config]) -> None:
    _, config = member
    store = LevelDBStore(config.data / "raft", create=False)
    value = store.get(entry_key(6))
    assert value is not None
    store.write({entry_key(6): value[:-1] + bytes((value[-1] ^ 1,))})
    store.close()
    assert [key for key, _ in log_faults(config)] == ["5"]
