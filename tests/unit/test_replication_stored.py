"""Logs on disks, read without their engine, and made from what a backup holds."""

import random

import pytest
from raft_members import Cluster

from kv.interface import StorageError
from kv.memory import MemoryDisk, MemoryStore
from replication.raft.journal import Journal
from replication.raft.messages import APPLICATION, NO_OP
from replication.raft.rows import entry_key
from replication.rows import entry_key as local_key
from replication.rows import open_tail
from replication.stored import EntryDamaged, restored_rows, stored_entries
from replication.testing import public_half

PAYLOADS = [b"%d|private" % number for number in range(20)]
NUMBERED = list(enumerate(PAYLOADS, 1))


def restored(*, raft_member: bool) -> MemoryDisk:
    disk = MemoryDisk()
    store = MemoryStore(disk)
    store.write(dict(restored_rows(PAYLOADS, public_half, raft_member=raft_member)))
    store.close()
    return disk


def read(disk: MemoryDisk) -> list[tuple[int, bytes]]:
    store = MemoryStore(disk)
    try:
        return list(stored_entries(store, public_half))
    finally:
        store.close()


@pytest.mark.parametrize("raft_member", [False, True])
def test_what_is_restored_is_read_again(raft_member: bool) -> None:
    assert read(restored(raft_member=raft_member)) == NUMBERED


@pytest.mark.parametrize("raft_member", [False, True])
def test_a_log_may_be_empty(raft_member: bool) -> None:
    disk = MemoryDisk()
    store = MemoryStore(disk)
    store.write(dict(restored_rows([], public_half, raft_member=raft_member)))
    assert list(stored_entries(store, public_half)) == []
    store.close()
    if raft_member:
        assert Journal(MemoryStore(disk), public_half).last == 1


def test_a_restored_local_log_opens() -> None:
    assert open_tail(MemoryStore(restored(raft_member=False)), public_half)[0] == len(PAYLOADS)


def test_a_restored_cluster_goes_on_where_the_backup_ends(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    for name in cluster.names:
        cluster.kill(name)
        cluster.disks[name] = restored(raft_member=True)
        assert cluster.start(name).journal.committed_to == len(PAYLOADS)
    leader = cluster.elect()
    cluster.propose(leader, b"next")
    assert cluster.agree() == [*PAYLOADS, b"next"]


def test_the_log_of_a_member_is_read_without_its_no_ops(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    written: list[bytes] = []
    for number in range(3):
        leader = cluster.elect(among=list(cluster.nodes))
        written += [b"%d a" % number, b"%d b" % number]
        cluster.propose(leader, *written[-2:])
        cluster.agree()
        cluster.kill(leader)
        cluster.start(leader)
    name = cluster.names[0]
    cluster.kill(name)
    assert [payload for _, payload in read(cluster.disks[name])] == written


@pytest.mark.parametrize("raft_member", [False, True])
def test_the_first_entry_that_does_not_fit_is_named(raft_member: bool) -> None:
    key = entry_key(6) if raft_member else local_key(5)
    for change in (None, b"short", b"other"):
        disk = restored(raft_member=raft_member)
        store = MemoryStore(disk)
        value = store.get(key)
        assert value is not None
        store.write({key: value.replace(b"4|", b"x|") if change == b"other" else change})
        found: list[int] = []
        with pytest.raises(EntryDamaged) as caught:
            found.extend(index for index, _ in stored_entries(store, public_half))
        assert caught.value.index == 5
        store.close()


def test_an_entry_in_place_of_a_no_op_is_found() -> None:
    disk = restored(raft_member=True)
    store = MemoryStore(disk)
    value = store.get(entry_key(1))
    assert value is not None
    store.write({entry_key(1): value.removesuffix(NO_OP) + APPLICATION})
    with pytest.raises(EntryDamaged, match="entry 1"):
        list(stored_entries(store, public_half))


def test_how_far_entries_are_committed_is_kept_when_a_member_ends_in_order(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.propose(leader, b"x", b"y")
    cluster.agree()
    for name in cluster.names:
        cluster.stop(name)
        assert Journal(MemoryStore(cluster.disks[name]), public_half).committed_to == 2


def test_a_failed_store_is_closed_all_the_same() -> None:
    journal = Journal(MemoryStore(), public_half)
    journal.set_vote(1, None)
    journal.append(NO_OP, 2, 1)
    journal.sync()
    journal.set_commit(2)
    journal._store.close()
    journal.close()
    journal.close()
    with pytest.raises(StorageError):
        journal.read(1, 2, 1) or journal._store.get(b"")
