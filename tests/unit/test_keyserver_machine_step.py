"""The three outcomes, entry by entry: what is applied, what is rejected, what halts; and the digest of it
all.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256

import pytest
from e2eks.v1 import command_pb2 as pb
from e2eks.v1 import state_pb2, types_pb2
from workload.cast import Key, User, derive, draft
from workload.replica import MIN_INTERVAL_MS, Replica

from keyserver.machine import commands, digest, rows
from keyserver.machine.codes import Code, Halt
from keyserver.machine.commands import Delimiter, Tick
from keyserver.machine.notices import CommandDecided
from keyserver.machine.state import GENESIS_POSITION, Machine, encode_state, load_position, load_state
from keyserver.machine.step import Applied, Reject, apply, step
from keyserver.machine.tables import Tables
from kv.interface import StorageError
from kv.memory import MemoryStore
from kv.overlay import Overlay
from kv.tables import Kind
from kv.testing import Fault, FaultyStore
from verifier import limits
from verifier.crypto.hashing import tagged
from verifier.encoding import canonical


@pytest.fixture
def replica() -> Replica:
    return Replica()


def refused(replica: Replica, payload: bytes) -> Code:
    """The code of an entry that is refused whole, having changed nothing but the position."""
    before, expected = replica.state, dict(replica.store.scan(b"", b"\xff"))
    outcome = replica.commit(payload)
    assert outcome.refused
    assert outcome.notices == ()
    assert replica.state == before
    expected[Tables.APPLIED.key()] = replica.store.get(Tables.APPLIED.key()) or b""
    assert dict(replica.store.scan(b"", b"\xff")) == expected
    (code,) = outcome.verdicts
    return code


# Whole entries


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xff" * 40, b"x" * 3000])
def test_an_undecodable_entry_is_a_reject(replica: Replica, payload: bytes) -> None:
    assert refused(replica, payload) is Code.BAD_ENVELOPE
    assert replica.position.index == 1


def test_an_entry_of_an_unknown_kind_is_a_reject(replica: Replica) -> None:
    known = pb.LogEntry.FromString(replica.entry(Tick()))
    known.envelope += b"\x2a\x00"  # an empty field number 5
    assert refused(replica, canonical(known)) is Code.BAD_ENVELOPE


@pytest.mark.parametrize("rules", [0, limits.RULES + 1, 2**32 - 1])
def test_an_entry_of_another_rules_level_is_a_reject(replica: Replica, rules: int) -> None:
    assert refused(replica, replica.entry(Tick(), rules=rules)) is Code.WRONG_RULES


def test_an_entry_by_a_stranger_is_a_reject(replica: Replica) -> None:
    for key in (Key("stranger"), *replica.verifiers):
        assert refused(replica, replica.entry(Tick(), by=key)) is Code.UNKNOWN_REPLICA


def test_an_entry_with_anothers_signature_is_a_reject() -> None:
    replica = Replica(2)
    entry = pb.LogEntry.FromString(replica.entry(Tick()))
    entry.signature = replica.replicas[1].sign(commands.envelope_message(replica.realm.hash, entry.envelope))
    assert refused(replica, canonical(entry)) is Code.BAD_SIGNATURE


def test_an_entry_of_another_realm_is_a_reject(replica: Replica) -> None:
    entry = pb.LogEntry.FromString(replica.entry(Tick()))
    message = commands.envelope_message(derive("another realm"), entry.envelope)
    entry.signature = replica.replicas[0].sign(message)
    assert refused(replica, canonical(entry)) is Code.BAD_SIGNATURE


def test_a_refused_entry_does_not_move_the_clock(replica: Replica) -> None:
    refused(replica, replica.entry(Tick(), Delimiter(1, 1)))
    assert replica.store.get(Tables.CLOCKS.key(replica.replicas[0].id)) is None


def test_step_gives_values_of_three_kinds(replica: Replica) -> None:
    given = (replica.store, replica.machine, replica.state, replica.position)
    applied = step(*given, replica.entry(Tick()))
    assert isinstance(applied, Applied)
    assert applied.verdicts == (Code.APPLIED,)
    assert step(*given, b"junk") == Reject(Code.BAD_ENVELOPE)


# Commands of one entry


def test_commands_of_one_entry_see_what_the_former_wrote(replica: Replica) -> None:
    alice, bob = User.named("alice"), User.named("bob")
    first = draft(replica.realm, alice, endorsers=replica.endorsers)
    second = draft(replica.realm, alice, endorsers=replica.endorsers, label="second")
    other = draft(replica.realm, bob, endorsers=replica.endorsers)
    codes = replica.run(first.command, second.command, other.command, first.command)
    assert codes == (Code.APPLIED, Code.UPDATE_PENDING, Code.APPLIED, Code.APPLIED)
    assert replica.state.pending_updates == 2


def test_a_refused_command_writes_nothing(replica: Replica) -> None:
    unsigned = draft(replica.realm, User.named("alice"), endorsers=replica.endorsers, signers=[])
    alone = apply(
        replica.store, replica.machine, replica.state, replica.position, replica.entry(unsigned.command)
    )
    assert alone.verdicts == (Code.NOT_AUTHORIZED,)
    assert alone.state == replica.state
    touched = {Tables.table_of(key) for key in alone.writes}
    assert touched == {Tables.STATE, Tables.CLOCKS, Tables.APPLIED}


def test_every_command_of_an_applied_entry_is_announced_by_its_id(replica: Replica) -> None:
    made = draft(replica.realm, User.named("alice"), endorsers=replica.endorsers)
    given = [made.command, Tick(), replace(made.command, endorsements=(), proof_id=derive("p"))]
    outcome = replica.commit(replica.entry(*given))
    decided = [notice for notice in outcome.notices if isinstance(notice, CommandDecided)]
    ids = [commands.command_id(commands.encode_command(command)) for command in given]
    assert [notice.command_id for notice in decided] == ids
    assert [notice.code for notice in decided] == list(outcome.verdicts)


def test_the_public_part_alone_decides(replica: Replica) -> None:
    made = draft(replica.realm, User.named("alice"), endorsers=replica.endorsers)
    full = replica.entry(made.command, parts=(made.part,))
    given = (replica.store, replica.machine, replica.state, replica.position)
    outcomes = [apply(*given, payload) for payload in (full, commands.public_part(full))]
    assert outcomes[0].position == outcomes[1].position
    assert outcomes[0].verdicts == outcomes[1].verdicts
    private = Tables.by_kind(outcomes[0].writes)[Kind.PRIVATE]
    assert private
    assert {**outcomes[1].writes, **private} == outcomes[0].writes


# The digest


def test_the_digest_is_that_of_the_contract() -> None:
    previous, public = derive("before"), b"public bytes"
    writes = {b"b": b"2", b"a": None, b"c": b""}
    encoded = b"\x00a" + b"\x01\x00\x00\x00\x01b2" + b"\x01\x00\x00\x00\x01c"
    expected = tagged(
        "e2eks/1/state",
        previous,
        bytes(7) + b"\x05",
        sha256(public).digest(),
        b"\x00\x04",
        sha256(encoded).digest(),
    )
    assert digest.next_digest(previous, 5, public, b"\x00\x04", digest.encode_writes(writes)) == expected
    assert digest.applied_verdicts([Code.APPLIED, Code.VERSION_MISMATCH]) == b"\x00\x04"
    assert digest.refused_verdict(Code.BAD_ENVELOPE) == b"\xff\x40"
    assert bytes(32) == digest.GENESIS


def test_the_digest_leaves_out_private_and_local_rows(replica: Replica) -> None:
    alice = User.named("alice")
    made = draft(replica.realm, alice, endorsers=replica.endorsers)
    outcome = replica.commit(replica.entry(made.command, parts=(made.part,)))
    public = commands.public_part(replica.log[-1])
    replicated = Tables.by_kind(outcome.writes)[Kind.REPLICATED]
    assert len(replicated) < len(outcome.writes)
    expected = digest.next_digest(digest.GENESIS, 1, public, b"\x00", digest.encode_writes(replicated))
    assert outcome.position.digest == expected


def test_a_refused_entry_moves_the_digest_by_its_code(replica: Replica) -> None:
    outcome = replica.commit(b"junk")
    verdicts = digest.refused_verdict(Code.BAD_ENVELOPE)
    assert outcome.position.digest == digest.next_digest(digest.GENESIS, 1, b"junk", verdicts, b"")
    assert load_position(replica.store) == outcome.position


# Halt


class BrokenReader(MemoryStore):
    """Every read fails."""

    def get(self, key: bytes) -> bytes | None:
        raise StorageError("read failed")

    def scan(self, *_: object, **__: object) -> Iterator[tuple[bytes, bytes]]:
        raise StorageError("read failed")


def test_a_read_error_is_a_halt_and_never_not_found(replica: Replica) -> None:
    entries = [
        replica.entry(draft(replica.realm, User.named("alice"), endorsers=replica.endorsers).command),
        replica.entry(Delimiter(1, replica.clock_ms)),
        replica.entry(replica.ratification(replica.verifiers[0], replica.close_epoch().encoded)),
    ]
    for payload in entries:
        with pytest.raises(Halt):
            apply(BrokenReader(), replica.machine, replica.state, replica.position, payload)
    with pytest.raises(Halt):
        load_state(BrokenReader(), replica.machine)


def test_every_read_of_an_entry_may_fail_and_halts(replica: Replica) -> None:
    for name in ("alice", "bob"):
        replica.register(User.named(name))
        replica.close_epoch()
    replica.register(User.named("carol"))
    replica.clock_ms += MIN_INTERVAL_MS
    payload = replica.entry(Delimiter(3, replica.clock_ms))
    given = (replica.machine, replica.state, replica.position, payload)
    expected = apply(replica.store, *given)
    for after in range(200):
        faulty = FaultyStore(replica.store, Fault.READ_ERROR, after=after)
        try:
            outcome = apply(faulty, *given)
        except Halt:
            continue
        assert not faulty.struck
        assert outcome == expected
        break
    else:
        pytest.fail("the entry reads more than 200 rows")
    assert after > 3


@pytest.mark.parametrize("table", ["CURRENT", "QUOTAS", "CLOCKS", "HEADS", "VERIFIERS"])
def test_a_damaged_row_is_a_halt(table: str) -> None:
    replica = Replica()
    alice = User.named("alice")
    replica.register(alice)
    replica.admit(replica.verifiers[0])
    replica.close_epoch()
    entries = {
        "CURRENT": draft(replica.realm, alice).command,
        "QUOTAS": draft(replica.realm, alice).command,
        "CLOCKS": Tick(),
        "HEADS": replica.signature(replica.replicas[0]),
        "VERIFIERS": replica.ratification(replica.verifiers[0]),
    }
    payload = replica.entry(entries[table])
    ((key, row),) = replica.store.scan(*getattr(Tables, table).span())
    damaged = Overlay(replica.store)
    damaged.put(key, b"\xff" + row)
    with pytest.raises(Halt):
        apply(damaged, replica.machine, replica.state, replica.position, payload)


@pytest.mark.parametrize(
    ("decode", "row"),
    [
        (rows.decode_entry_row, canonical(state_pb2.EntryRow(epoch=1))),
        (rows.decode_ratification, canonical(types_pb2.Ratification(timestamp_ms=1))),
        (rows.decode_own_policy, canonical(types_pb2.AuthorizationPolicy())),
        (rows.decode_own_head, state_pb2.HeadRow(head=b"no head")),
        (rows.decode_u64, b"short"),
    ],
)
def test_a_row_that_decodes_to_nonsense_is_a_halt(decode: Callable[[object], object], row: object) -> None:
    with pytest.raises(Halt):
        decode(row)


def test_pending_rows_that_do_not_match_the_state_halt(replica: Replica) -> None:
    replica.register(User.named("alice"))
    wrong = replace(replica.state, pending_updates=2)
    payload = replica.entry(Delimiter(1, replica.clock_ms))
    with pytest.raises(Halt, match="broken invariant"):
        apply(replica.store, replica.machine, wrong, replica.position, payload)


def test_an_entry_out_of_order_is_a_halt(replica: Replica) -> None:
    given = (replica.store, replica.machine, replica.state, GENESIS_POSITION, replica.entry(Tick()))
    assert apply(*given, index=1).position.index == 1
    for index in (0, 2):
        with pytest.raises(Halt):
            apply(*given, index=index)


# The state between entries


def test_the_state_is_what_its_row_says(replica: Replica) -> None:
    assert load_state(replica.store, replica.machine) == replica.state
    assert load_position(replica.store) == GENESIS_POSITION
    replica.register(User.named("alice"))
    for _ in range(2):
        assert load_state(replica.store, replica.machine) == replica.state
        assert replica.store.get(Tables.STATE.key()) == encode_state(replica.state)
        assert load_position(replica.store) == replica.position
        replica.close_epoch()


def test_the_min_interval_of_a_realm_cannot_change(replica: Replica) -> None:
    other = Machine(replica.realm, MIN_INTERVAL_MS + 1)
    load_state(replica.store, other)
    replica.run(Tick())
    with pytest.raises(Halt, match="cannot become"):
        load_state(replica.store, other)


def test_the_store_of_another_realm_is_refused(replica: Replica) -> None:
    replica.run(Tick())
    other = replace(replica.realm, hash=derive("another realm"))
    with pytest.raises(Halt, match="belongs to this realm"):
        load_state(replica.store, Machine(other, MIN_INTERVAL_MS))


@pytest.mark.parametrize("row", [b"\xff", b"\x08\x01", b"\x20\x05"])
def test_a_damaged_state_row_is_a_halt(replica: Replica, row: bytes) -> None:
    damaged = Overlay(replica.store)
    damaged.put(Tables.STATE.key(), row)
    with pytest.raises(Halt):
        load_state(damaged, replica.machine)
    damaged.put(Tables.APPLIED.key(), row)
    with pytest.raises(Halt):
        load_position(damaged)


def test_tables_are_of_the_kinds_that_the_digest_relies_on() -> None:
    kinds = {kind: {table.name for table in Tables.all() if table.kind is kind} for kind in Kind}
    assert kinds[Kind.PRIVATE] == {"profiles", "vrf_cache"}
    assert kinds[Kind.LOCAL] == {"applied", "tree", "history", "blanking"}
    assert len(Tables.all()) == 22
