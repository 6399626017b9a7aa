"""The journal of a member: Raft's rule for appending, one batch a turn, refusal of whatever is not whole."""

import random
from collections.abc import Callable

import pytest

from kv.interface import StorageError
from kv.keys import u64
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from kv.tracing import TracingStore
from replication.chain import FIRST_LINK, next_link
from replication.raft.journal import CACHE_ENTRY_BYTES, Journal, JournalConflict
from replication.raft.messages import APPLICATION, NO_OP, Entry
from replication.raft.rows import RaftTables, entry_key, read_row
from replication.testing import public_half
from replication.types import PAYLOAD_BYTES_MAX, LogEntry, PayloadTooLarge, PublicPartChanged

ALL = 2**40
FIRST: Entry = (NO_OP, 1, 0)


def opened(disk: MemoryDisk | None = None, *, cache_bytes: int = 2**20) -> Journal:
    return Journal(MemoryStore(disk), public_half, cache_bytes=cache_bytes)


def filled(journal: Journal, payloads: list[bytes], term: int = 1) -> Journal:
    """Append a no-op and then the payloads, commit and sync them."""
    journal.set_vote(max(term, journal.term), None)
    journal.append(NO_OP, journal.last + 1, term)
    for payload in payloads:
        journal.append(APPLICATION + payload, journal.last + 1, term)
    journal.set_commit(journal.last)
    journal.sync()
    return journal


def entries(journal: Journal) -> list[Entry]:
    return [journal.entry(index) for index in range(1, journal.last + 1)]


def test_every_log_begins_with_the_same_entry_that_is_committed() -> None:
    journal = opened()
    assert entries(journal) == [FIRST]
    assert (journal.commit, journal.committed_to, journal.term, journal.vote) == (1, 0, 0, None)


def test_nothing_is_durable_before_the_sync_and_everything_after_it() -> None:
    disk = MemoryDisk()
    journal = opened(disk)
    journal.set_vote(3, "b")
    journal.append(NO_OP, 2, 3)
    journal.append(APPLICATION + b"x", 3, 3)
    journal.set_commit(3)
    assert (journal.last, journal.last_application, journal.committed_to) == (3, 0, 0)
    journal.close()
    journal = opened(disk)
    assert (journal.last, journal.term, journal.vote) == (1, 0, None)
    journal.set_vote(3, "b")
    journal.append(NO_OP, 2, 3)
    journal.append(APPLICATION + b"x", 3, 3)
    journal.set_commit(3)
    journal.sync()
    journal.close()
    journal = opened(disk)
    assert (journal.last, journal.term, journal.vote, journal.commit) == (3, 3, "b", 3)
    assert (journal.last_application, journal.committed_to) == (1, 1)
    assert journal.read(1, ALL, ALL) == (LogEntry(1, b"x"),)


def test_a_turn_is_one_batch_and_an_idle_turn_none() -> None:
    store = TracingStore(MemoryStore())
    journal = Journal(store, public_half)
    before = len(store.batches)
    journal.set_vote(1, "a")
    journal.append(NO_OP, 2, 1)
    for index in range(3, 100):
        journal.append(APPLICATION + b"x", index, 1)
    journal.sync()
    journal.set_commit(99)
    journal.sync()
    journal.sync()
    assert len(store.batches) == before + 1
    assert journal.committed_to == 97
    journal.want_commit()
    assert journal.commit_is_due
    journal.stage_commit()
    journal.sync()
    assert len(store.batches) == before + 2
    journal.want_commit()
    assert not journal.commit_is_due


def test_an_entry_that_is_there_is_left_alone_with_all_behind_it() -> None:
    journal = filled(opened(), [b"1", b"2", b"3"])
    before = entries(journal)
    journal.append(NO_OP, 2, 1)
    journal.append(APPLICATION + b"1", 3, 1)
    assert entries(journal) == before
    assert not journal.staged


def test_a_contradiction_removes_what_is_there_from_it_on() -> None:
    journal = opened()
    journal.set_vote(1, None)
    for index, command in enumerate([NO_OP, b"\0one", b"\0two", NO_OP, b"\0three"], 2):
        journal.append(command, index, 1)
    journal.sync()
    journal.set_vote(2, None)
    journal.append(NO_OP, 4, 2)
    journal.append(b"\0other", 5, 2)
    journal.set_commit(5)
    journal.sync()
    assert entries(journal) == [FIRST, (NO_OP, 2, 1), (b"\0one", 3, 1), (NO_OP, 4, 2), (b"\0other", 5, 2)]
    assert journal.read(1, ALL, ALL) == (LogEntry(1, b"one"), LogEntry(2, b"other"))
    journal.verify_chain(1, ALL)


def test_what_is_committed_is_never_removed() -> None:
    journal = filled(opened(), [b"1", b"2"])
    journal.set_vote(2, None)
    with pytest.raises(JournalConflict, match="committed"):
        journal.append(NO_OP, journal.last, 2)


@pytest.mark.parametrize(("index", "term"), [(5, 1), (6, 1), (4, 2)])
def test_an_entry_follows_the_last_one_and_no_term_to_come(index: int, term: int) -> None:
    journal = filled(opened(), [b"1"])
    with pytest.raises(JournalConflict, match="cannot follow"):
        journal.append(NO_OP, index, term)


def test_a_vote_is_given_once_and_terms_only_rise() -> None:
    journal = opened()
    journal.set_vote(2, None)
    journal.set_vote(2, "b")
    journal.set_vote(2, "b")
    for term, vote in ((2, "c"), (2, None), (1, "b")):
        with pytest.raises(JournalConflict, match="vote"):
            journal.set_vote(term, vote)
    journal.set_vote(3, "c")


@pytest.mark.parametrize("index", [1, 5])
def test_commits_go_forward_and_not_beyond_the_log(index: int) -> None:
    journal = filled(opened(), [b"1", b"2"])
    with pytest.raises(JournalConflict, match="committed"):
        journal.set_commit(index)


def test_the_chain_is_that_of_every_engine_whatever_no_ops_are_between() -> None:
    journal = filled(filled(opened(), [b"a|x", b"b|"]), [b"c"], term=7)
    link = FIRST_LINK
    for index, public in enumerate([b"a", b"b", b"c"], 1):
        link = next_link(link, index, public)
    assert journal._link == link


def test_reading_starts_anywhere_and_stops_at_the_limits() -> None:
    journal = opened(cache_bytes=3 * CACHE_ENTRY_BYTES)
    payloads = [bytes([number]) * 10 for number in range(9)]
    for term in range(1, 4):
        filled(journal, payloads[3 * term - 3 : 3 * term], term)
    expected = tuple(LogEntry(index, payload) for index, payload in enumerate(payloads, 1))
    for lo in range(1, 12):
        for hi in range(1, 12):
            assert journal.read(lo, hi, ALL) == expected[lo - 1 : max(lo - 1, hi - 1)]
    assert journal.read(2, ALL, 25) == expected[1:3]
    assert journal.read(2, ALL, 0) == expected[1:2]
    with pytest.raises(ValueError, match="first index"):
        journal.read(0, 2, 1)


def test_batches_for_followers_have_their_limits_too() -> None:
    journal = filled(opened(cache_bytes=500), [b"x" * 100] * 20)
    assert [entry[1] for entry in journal.batch(2, 5, ALL)] == [2, 3, 4, 5, 6]
    assert [entry[1] for entry in journal.batch(3, 99, 250)] == [3, 4]
    assert [entry[1] for entry in journal.batch(3, 99, 1)] == [3]
    assert journal.batch(journal.last + 1, 5, ALL) == ()


def test_a_batch_may_begin_on_the_disk_and_end_with_what_is_not_there_yet() -> None:
    disk = MemoryDisk()
    filled(opened(disk), [b"1", b"2"]).close()
    journal = opened(disk)
    journal.set_vote(2, None)
    journal.append(NO_OP, 5, 2)
    assert [entry[1] for entry in journal.batch(2, 99, ALL)] == [2, 3, 4, 5]


def test_memory_stays_bounded_however_long_the_log() -> None:
    journal = opened(cache_bytes=100_000)
    for _ in range(50):
        filled(journal, [b"x" * 100] * 100)
    assert journal._cached_bytes <= 100_000
    assert len(journal._cache) <= 100_000 / (100 + CACHE_ENTRY_BYTES)
    assert len(journal.read(1, ALL, ALL)) == 5000


def test_a_private_part_is_replaced_and_the_chain_holds() -> None:
    disk = MemoryDisk()
    journal = filled(filled(opened(disk), [b"a|secret", b"b|x"]), [b"c|y"], term=2)
    journal.rewrite_private(1, b"a|")
    journal.rewrite_private(3, b"c|")
    expected = (LogEntry(1, b"a|"), LogEntry(2, b"b|x"), LogEntry(3, b"c|"))
    assert journal.read(1, ALL, ALL) == expected
    journal.close()
    journal = opened(disk)
    assert journal.read(1, ALL, ALL) == expected
    journal.verify_chain(1, ALL)
    with pytest.raises(PublicPartChanged):
        journal.rewrite_private(1, b"z|")
    with pytest.raises(PayloadTooLarge):
        journal.rewrite_private(1, b"a|" + bytes(PAYLOAD_BYTES_MAX))
    for index in (0, 4):
        with pytest.raises(ValueError, match="no entry"):
            journal.rewrite_private(index, b"a|")
    assert journal.compact([1, 3])


def damage(disk: MemoryDisk, key: bytes, value: bytes | None) -> None:
    store = MemoryStore(disk)
    store.write({key: value})
    store.close()


def other_payload(disk: MemoryDisk) -> bytes:
    store = MemoryStore(disk)
    value = store.get(entry_key(3))
    store.close()
    assert value is not None
    return value[:-1] + b"z"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (RaftTables.FORMAT.key(), b"e2eks local log 1", "another format"),
        (entry_key(1), None, "lost its Raft entry 1"),
        (entry_key(3), None, "lost its Raft entry 3"),
        (entry_key(3), b"short", "damaged"),
        (entry_key(3), b"", "damaged"),
        (RaftTables.ENTRIES.key(b"odd"), b"", "none of its own"),
        (RaftTables.VOTE.key(), None, "lost its vote"),
        (RaftTables.VOTE.key(), b"1", "vote is damaged"),
        (RaftTables.VOTE.key(), u64(0), "a lost end"),
        (RaftTables.COMMIT.key(), u64(9), "a lost end"),
        (RaftTables.NO_OPS.key(u64(2)), None, "places of its no-ops"),
        (RaftTables.NO_OPS.key(u64(9)), b"", "places of its no-ops"),
        (RaftTables.NO_OPS.key(u64(1)), None, "places of its no-ops"),
    ],
)
def test_a_log_that_is_not_whole_is_refused(key: bytes, value: bytes | None, reason: str) -> None:
    disk = MemoryDisk()
    filled(opened(disk), [b"1", b"2"]).close()
    damage(disk, key, value)
    with pytest.raises(StorageError, match=reason):
        opened(disk)


def test_an_entry_with_another_public_part_breaks_the_chain() -> None:
    disk = MemoryDisk()
    filled(opened(disk), [b"1", b"2"]).close()
    damage(disk, entry_key(3), other_payload(disk))
    with pytest.raises(StorageError, match="does not continue"):
        opened(disk)


def test_damage_far_from_the_end_is_found_by_whoever_looks() -> None:
    disk = MemoryDisk()
    filled(opened(disk), [b"%d" % number for number in range(600)]).close()
    damage(disk, entry_key(3), other_payload(disk))
    journal = opened(disk)
    journal.verify_chain(300, ALL)
    with pytest.raises(StorageError, match="Raft entry 3"):
        journal.verify_chain(1, ALL)


@pytest.mark.parametrize("fault", [Fault.WRITE_ERROR_AND_APPLIED, Fault.WRITE_ERROR_AND_NOT_APPLIED])
def test_a_failed_sync_publishes_nothing(fault: Fault) -> None:
    journal = Journal(FaultyStore(MemoryStore(), fault, after=1), public_half)
    with pytest.raises(StorageError):
        filled(journal, [b"1"])
    assert (journal.last_application, journal.committed_to) == (0, 0)


class Model:
    """A journal as two lists: what is on the disk, and what would be after a sync."""

    def __init__(self) -> None:
        self.disk: tuple[list[Entry], int, str | None] = ([FIRST], 0, None)
        self.reopen()

    def reopen(self) -> None:
        entries, self.term, self.vote = self.disk
        self.entries = list(entries)

    def append(self, entry: Entry) -> None:
        place = entry[1] - 1
        if place < len(self.entries) and self.entries[place][2] != entry[2]:
            del self.entries[place:]
        if place == len(self.entries):
            self.entries.append(entry)

    def sync(self) -> None:
        self.disk = (list(self.entries), self.term, self.vote)


def test_a_journal_does_what_two_lists_do(rng: random.Random, count: Callable[[int], int]) -> None:
    for _ in range(count(30)):
        disk, model = MemoryDisk(), Model()
        journal = opened(disk, cache_bytes=rng.choice([0, 1000, 10**6]))
        commit = 1
        for number in range(150):
            action = rng.random()
            if action < 0.1:
                journal.close()
                journal = opened(disk, cache_bytes=rng.choice([0, 1000, 10**6]))
                model.reopen()
                commit = journal.commit
            elif action < 0.2:
                model.term, model.vote = model.term + rng.randint(1, 2), rng.choice([None, "a", "b"])
                journal.set_vote(model.term, model.vote)
            elif action < 0.4:
                journal.sync()
                model.sync()
            elif action < 0.5:
                commit = rng.randint(commit, len(model.entries))
                journal.set_commit(commit)
            else:
                place = rng.randint(min(commit + 1, len(model.entries)), len(model.entries) + 1)
                before = model.entries[place - 2][2] if place > 1 else 0
                same = model.entries[place - 1] if place <= len(model.entries) else None
                fresh = (rng.choice([NO_OP, b"\0%d|private" % number]), place, model.term)
                entry = same if same is not None and (place <= commit or rng.random() < 0.5) else fresh
                if entry[2] >= before:
                    journal.append(*entry)
                    model.append(entry)
            assert entries(journal) == model.entries
            assert (journal.term, journal.vote) == (model.term, model.vote)
            durable = [command[1:] for command, _, _ in model.disk[0] if command != NO_OP]
            seen = [entry.payload for entry in journal.read(1, ALL, ALL)]
            assert seen == durable[: len(seen)]
            assert journal.last_application <= len(durable)
        journal.close()
        store = MemoryStore(disk)
        rows = [(index, read_row(store, index)) for index in range(1, len(model.disk[0]) + 1)]
        assert [(row.command, index, row.term) for index, row in rows] == model.disk[0]
