"""A replica's own copy: entries and position are one, whatever happens to the disk."""

import random
from collections.abc import Callable

import pytest

from kv.interface import StorageError
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from replication.chain import FIRST_LINK
from replication.etcd.copy import Arrival, CopyTables, LogCopy
from replication.etcd.keyspace import Base, Keyspace, Report, decode_batch, encode_batch
from replication.rows import entry_key
from replication.testing import NO_LIMIT, numbered, public_half
from replication.types import PublicPartChanged


def arrival(revision: int, *payloads: bytes) -> Arrival:
    return Arrival(b"key %d" % revision, revision, payloads)


def fresh(disk: MemoryDisk) -> LogCopy:
    copy = LogCopy(MemoryStore(disk), public_half)
    copy.begin(0, 0, 7)
    return copy


def left(*arrivals: Arrival) -> MemoryDisk:
    """What a copy leaves behind."""
    disk = MemoryDisk()
    copy = fresh(disk)
    copy.extend(arrivals)
    copy.store.close()
    return disk


def test_what_arrives_is_numbered_and_read_again() -> None:
    disk = MemoryDisk()
    copy = fresh(disk)
    assert copy.extend([arrival(5, b"a|1", b"b|2"), arrival(9, b"c|3")]) == tuple(
        numbered([b"a|1", b"b|2", b"c|3"])
    )
    copy.store.close()
    again = LogCopy(MemoryStore(disk), public_half)
    assert again.cursor == copy.cursor
    assert (again.last, again.cursor.index, again.cursor.revision, again.cluster_id) == (3, 3, 9, 7)
    assert list(again.read(1, 9, NO_LIMIT)) == numbered([b"a|1", b"b|2", b"c|3"])
    again.verify_chain(1, 9)
    assert again.extend([arrival(12, b"d|")]) == tuple(numbered([b"d|"], 4))


def test_keys_in_etcd_are_known_until_they_are_trimmed() -> None:
    copy = fresh(MemoryDisk())
    assert copy.key_of(1) is None
    copy.extend([arrival(5, b"a", b"b", b"c"), arrival(6), arrival(9, b"d")])
    assert [copy.key_of(index) for index in (1, 3, 4, 5)] == [
        (b"key 5", 0),
        (b"key 5", 2),
        (b"key 9", 0),
        None,
    ]
    copy.forget_keys(3)
    assert [copy.key_of(index) for index in (1, 3, 4)] == [None, None, (b"key 9", 0)]


@pytest.mark.parametrize("fault", [Fault.WRITE_ERROR_AND_APPLIED, Fault.WRITE_ERROR_AND_NOT_APPLIED])
def test_a_failed_write_leaves_all_of_a_run_or_nothing(
    fault: Fault, rng: random.Random, count: Callable[[int], int]
) -> None:
    for _ in range(count(30)):
        disk = MemoryDisk()
        copy = fresh(disk)
        copy.extend([arrival(3, b"a")])
        copy.store.close()
        runs = [
            [
                arrival(10 * run + step, *[b"%d" % rng.randrange(99)] * rng.randrange(1, 4))
                for step in range(3)
            ]
            for run in range(1, 4)
        ]
        faulty = LogCopy(FaultyStore(MemoryStore(disk), fault, after=rng.randrange(3)), public_half)
        stored = 0
        with pytest.raises(StorageError):
            for run in runs:
                faulty.extend(run)
                stored += 1
        faulty.store.close()
        stored += fault is Fault.WRITE_ERROR_AND_APPLIED
        after = LogCopy(MemoryStore(disk), public_half)
        payloads = [b"a", *(payload for run in runs[:stored] for one in run for payload in one.payloads)]
        assert list(after.read(1, 99, NO_LIMIT)) == numbered(payloads)
        assert after.cursor.index == after.last == len(payloads)
        assert after.cursor.revision == (runs[stored - 1][-1].revision if stored else 3)


def test_a_lost_end_is_noticed() -> None:
    disk = left(arrival(5, b"a", b"b"))
    disk.view = disk.view.changed({entry_key(2): None})
    with pytest.raises(StorageError, match="a lost end"):
        LogCopy(MemoryStore(disk), public_half)


@pytest.mark.parametrize("row", [b"\xff", b"\x08"])
def test_a_damaged_position_is_noticed(row: bytes) -> None:
    disk = left(arrival(5, b"a", b"b"))
    disk.view = disk.view.changed({CopyTables.POSITION.key(): row})
    with pytest.raises(StorageError, match="position"):
        LogCopy(MemoryStore(disk), public_half)


def test_what_is_here_already_is_compared_and_not_handed_out_again() -> None:
    disk = left(arrival(5, b"a|1", b"b|2"))
    disk.view = disk.view.changed({CopyTables.POSITION.key(): None})
    copy = fresh(disk)
    assert (copy.last, copy.cursor) == (2, Report(0, FIRST_LINK, 0))
    assert copy.extend([arrival(5, b"a|", b"b|2"), arrival(6, b"c|3")]) == tuple(numbered([b"c|3"], 3))
    assert list(copy.read(1, 9, NO_LIMIT)) == numbered([b"a|1", b"b|2", b"c|3"])
    copy.store.close()
    disk.view = disk.view.changed({CopyTables.POSITION.key(): None})
    with pytest.raises(StorageError, match="entry 2 here is not that of etcd"):
        fresh(disk).extend([arrival(5, b"a|1", b"x|2")])


def test_only_private_parts_are_rewritten() -> None:
    copy = fresh(MemoryDisk())
    copy.extend([arrival(5, b"a|1", b"b|2")])
    copy.rewrite(2, b"b|")
    with pytest.raises(PublicPartChanged):
        copy.rewrite(2, b"c|")
    assert list(copy.read(1, 9, NO_LIMIT)) == numbered([b"a|1", b"b|"])
    copy.verify_chain(1, 3)
    assert copy.compact([2])


def test_there_is_no_entry_0() -> None:
    copy = fresh(MemoryDisk())
    for call in (lambda: copy.read(0, 1, 1), lambda: copy.verify_chain(0, 1)):
        with pytest.raises(ValueError, match="first index"):
            call()


def test_rows_in_etcd_are_what_they_were(rng: random.Random) -> None:
    link = rng.randbytes(32)
    base = Base(rng.randrange(2**60), link, rng.randrange(2**60), ("r1", "r2"))
    assert Base.decode(base.encode()) == base
    report = Report(rng.randrange(2**60), link, rng.randrange(2**60))
    assert Report.decode(report.encode()) == report
    payloads = tuple(rng.randbytes(rng.randrange(40)) for _ in range(9))
    assert decode_batch(encode_batch(payloads)) == payloads
    short = Report(1, link[:31], 1).encode()
    for decode, value in ((Base.decode, b"\x08"), (Report.decode, short), (decode_batch, b"\x08\x01\xff")):
        with pytest.raises(StorageError):
            decode(value)


def test_keys_lie_below_the_prefix_of_their_log() -> None:
    keys = Keyspace("/a/realm")
    assert Keyspace("/a/realm/").base == keys.base == b"/a/realm/base"
    assert keys.entry("r1.s", 3) == b"/a/realm/entries/r1.s.3"
    assert keys.member_of(keys.report("r1")) == "r1"
    for empty in ("", "/"):
        with pytest.raises(ValueError, match="not empty"):
            Keyspace(empty)
