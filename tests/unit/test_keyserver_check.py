"""The check of a replica: what is sound is called sound, and nothing that is spoiled is."""

from collections.abc import Callable
from random import Random

import pytest
from kept.plants import blanked, kinds, planted
from kept.replica import Kept, kept_by, scripted, store_of
from workload.cast import User, draft, erasure
from workload.replica import Replica

from keyserver.copies.check import FAULTS_LISTED, LEFT_OUT, LOG, Faults, check
from keyserver.copies.check_register import REGISTER
from keyserver.copies.moment import subject_of
from keyserver.machine import commands
from keyserver.machine.codes import Code
from keyserver.machine.commands import Delimiter
from keyserver.machine.erasure import owed_blankings, without_parts
from keyserver.machine.tables import Tables
from kv.keys import EVERYTHING
from kv.memory import MemoryStore
from kv.testing import Fault as StoreFault
from kv.testing import FaultyStore
from replication.chain import LINK_BYTES
from replication.rows import entry_key

ENTRIES = 60  # the script makes some more: every command, and every table that has rows in this version


@pytest.fixture(scope="module")
def kept() -> Kept:
    return scripted(7, ENTRIES)


@pytest.mark.slow
def test_finds_planted_faults(kept: Kept, rng: Random, count: Callable[[int], int]) -> None:
    assert kept.check().sound
    missed, tables = [], set()
    for spoiled in planted(rng, kept, count(200)):
        report = spoiled.kept.check()
        tables.add(spoiled.table)
        if report.sound:
            missed.append((spoiled.table, spoiled.kind))
        elif spoiled.table not in (LOG, Tables.APPLIED.name):  # a wrong position shows anywhere
            assert spoiled.table in report.faults.counts, (spoiled.kind, report.faults.listed)
    assert missed == []
    assert tables == {table for table, _ in kinds()}


CLEAN: list[tuple[str, Callable[[int], Kept]]] = [
    ("nothing", lambda _: kept_by(Replica())),
    ("one tick", lambda _: kept_by(_after(lambda one: one.tick_all()))),
    ("one epoch", lambda _: kept_by(_after(lambda one: one.close_epoch()))),
    ("users before the first epoch", lambda _: kept_by(_after(_registrations))),
    ("an unsigned head", lambda _: kept_by(_after(_unsigned))),
    ("parked updates", lambda _: kept_by(_after(_unsigned, _registrations))),
    ("erased users", lambda _: kept_by(_after(_registrations, lambda one: one.close_epoch(), _erasures))),
    ("heads without users", lambda _: kept_by(_after(*(lambda one: one.close_epoch(),) * 9))),
    *((f"{entries} entries of {replicas}", lambda seed, n=entries, r=replicas: scripted(seed, n, r))
      for replicas in (1, 3, 5) for entries in (40, 150, 400, 700)),
]  # fmt: skip


def _after(*does: Callable[[Replica], object]) -> Replica:
    replica = Replica()
    for do in does:
        do(replica)
    return replica


def _registrations(replica: Replica) -> None:
    for number in range(5):
        replica.register(User.named(f"early-{replica.state.epoch}-{number}"))


def _erasures(replica: Replica) -> None:
    for number in (1, 3):
        user = User.named(f"early-0-{number}")
        user.accepted(draft(replica.realm, user, endorsers=replica.endorsers).entry)
        assert replica.run(erasure(replica.realm, user)) == (Code.APPLIED,)


def _unsigned(replica: Replica) -> None:
    _registrations(replica)
    replica.clock_ms += 1000
    replica.run(Delimiter(replica.state.epoch + 1, replica.clock_ms))


@pytest.mark.parametrize("shape", [name for name, _ in CLEAN])
def test_raises_no_false_alarm(shape: str, seed: int, count: Callable[[int], int]) -> None:
    for turn in range(count(1)):
        kept = dict(CLEAN)[shape](seed + turn)
        report = kept.check()
        assert report.record()["faults"] == []
        assert report.sound
        assert report.entries == len(kept.log) - 1


def test_a_blanked_log_with_and_without_its_rows_is_sound(kept: Kept, seed: int) -> None:
    payloads = [commands.public_part(row[32:]) for key, row in sorted(kept.log.items()) if key != b"f"]
    halfway = blanked(kept, payloads)
    assert halfway.check().sound  # the log is blanked, the rows not yet
    for key in [key for key in halfway.rows if key.startswith(Tables.PROFILES.prefix)]:
        del halfway.rows[key]
    assert halfway.check().sound


def test_erasures_are_sound_owed_and_paid() -> None:
    replica = Replica()
    users = [User.named(name) for name in ("ann", "ben", "cay")]
    for user in users:
        replica.register(user)
    replica.close_epoch()
    for user in users[:2]:
        replica.update(user)
        replica.run(erasure(replica.realm, user))
    erased = kept_by(replica)
    assert erased.check().sound  # the duties are owed
    log = [row[LINK_BYTES:] for key, row in sorted(erased.log.items()) if key != b"f"]
    for owed in owed_blankings(replica.store, 100):
        log[owed.log_index - 1] = without_parts(log[owed.log_index - 1], owed.parts)
    paid = blanked(erased, log)
    assert paid.log != erased.log
    assert paid.check().sound
    for key in [key for key in paid.rows if key.startswith(Tables.BLANKING.prefix)]:
        del paid.rows[key]
    assert paid.check().sound
    assert len([key for key in paid.rows if key.startswith(Tables.PROFILES.prefix)]) == 1


def test_a_spoiled_private_part_in_the_log_is_found() -> None:
    replica = Replica()
    made = draft(replica.realm, User.named("ann"), endorsers=replica.endorsers)
    replica.submit(made)
    kept = kept_by(replica)
    part = made.part[:-1] + bytes((made.part[-1] ^ 1,))
    entry = commands.decode_log_entry(replica.log[0])
    payload = commands.encode_log_entry(entry.envelope.encoded, entry.signature, [part])
    report = blanked(kept, [payload]).check()
    assert [fault.table for fault in report.faults.listed] == [Tables.PROFILES.name]
    assert "private part" in report.faults.listed[0].reason


def test_a_private_row_of_a_blanked_entry_must_match_its_commitment() -> None:
    replica = Replica()
    for name in ("ann", "ben"):
        replica.register(User.named(name))
    kept = blanked(kept_by(replica), [commands.public_part(payload) for payload in replica.log])
    ann, ben = sorted(key for key in kept.rows if key.startswith(Tables.PROFILES.prefix))
    kept.rows[ann] = kept.rows[ben]
    assert [fault.key for fault in kept.check().faults.listed] == [ann.hex()]


def test_entries_that_are_not_applied_yet_are_no_fault(kept: Kept) -> None:
    ahead = scripted(7, 3 * ENTRIES)
    both = kept.copy()
    assert len(ahead.log) > len(both.log)
    both.log = ahead.log
    assert both.check().sound


def test_a_log_behind_its_database_is_told_and_nothing_else(kept: Kept) -> None:
    behind = kept.copy()
    last = len(behind.log) - 1
    del behind.log[entry_key(last)]
    (fault,) = behind.check().faults.listed
    assert (fault.table, fault.key) == (LOG, str(last - 1))
    assert f"stands at entry {last}" in fault.reason


def test_a_database_behind_its_register_has_lost_its_tail() -> None:
    early, late = (_after(*(lambda one: one.close_epoch(),) * epochs) for epochs in (2, 4))
    kept = kept_by(early)
    kept.recorded = kept_by(late).recorded
    found = kept.check().faults.listed
    assert [(fault.table, fault.key) for fault in found] == [(REGISTER, "3"), (REGISTER, "4")]
    assert "tail is lost" in found[0].reason


def test_a_failing_disk_is_a_fault_of_the_disk(kept: Kept) -> None:
    faulty = FaultyStore(store_of(kept.rows), StoreFault.READ_ERROR, after=2)
    report = check(kept.machine, subject_of(faulty, store_of(kept.log), Faults()), MemoryStore())
    assert {fault.table for fault in report.faults.listed} == {"storage"}


def test_lists_some_faults_and_counts_all() -> None:
    kept = scripted(3, 600)
    for key in kept.rows:
        if key.startswith(Tables.VERIFIER_LOG.prefix):
            kept.rows[key] += b"!"
    report = kept.check()
    assert report.faults.counts[Tables.VERIFIER_LOG.name] >= FAULTS_LISTED
    assert len(report.record()["faults"]) == FAULTS_LISTED
    assert report.record()["faults_found"] == report.faults.counts.total()


def test_keeps_no_private_row_in_the_scratch_store(kept: Kept) -> None:
    scratch = MemoryStore()
    assert check(kept.machine, kept.subject(), scratch).sound
    held = b"".join(value for _, value in scratch.scan(*EVERYTHING))
    assert all(name.encode() not in held for name in kept.names)
    assert list(scratch.scan(*Tables.VRF_CACHE.span())) == []


def test_what_is_left_out_is_no_table_of_the_digest() -> None:
    for table in Tables.all():
        assert table not in LEFT_OUT or table.kind.value != "replicated"
