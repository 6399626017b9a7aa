"""Replaying: a valid stream is followed, and each way to falsify one is refused with its reason."""

import pytest
from streams.build import Stream, make_step, steps_message
from streams.falsified import CASES, Case, majority_of, three_and_a_half_epochs
from streams.realms import make_realm, party

from kv.memory import MemoryStore
from verifier.daemon import evidence as evidences
from verifier.daemon.evidence import Evidence, Kind, Standing
from verifier.daemon.state import current_at, head_at, load_state, owed_epochs
from verifier.daemon.step import Outcome, Upgrade, apply_message
from verifier.types import Realm


def replay(realm: Realm, *messages: bytes) -> tuple[MemoryStore, Outcome]:
    """Apply messages one by one, each batch written before the next; the last outcome."""
    store = MemoryStore()
    outcome = Outcome(load_state(store, realm), {})
    for message in messages:
        outcome = apply_message(store, realm, outcome.state, message)
        store.write(outcome.writes)
        assert load_state(store, realm) == outcome.state
    return store, outcome


def lived_in() -> Stream:
    """Registrations, updates, a revocation and its successor, an empty epoch, a change of replicas."""
    stream = Stream().grow(2)
    stream.revoke("alice")
    stream.close_epoch()
    revoked = stream.entries["alice"]
    back = stream.next_entry("alice", version=revoked.version + 1, previous_entry_hash=revoked.hash)
    stream.append_update(stream.sign_update(back, stream.user("alice")), "alice")
    stream.close_epoch()
    stream.close_epoch()
    new = [*stream.replicas[:2], party(1, "replica-new")]
    stream.close_epoch(*stream.replicas, new[2], next_epoch_policy=majority_of(new))
    stream.replicas = new
    return stream.grow(2)


def test_a_valid_stream_is_followed_to_its_end() -> None:
    stream = lived_in()
    store, outcome = replay(stream.realm, stream.message())
    assert outcome.stop is None
    assert outcome.owed == tuple(range(1, 9))
    assert outcome.state.chain == stream.chain
    assert outcome.state.next_index == len(stream.steps) + 1
    for name, entry in stream.entries.items():
        current = current_at(store, stream.index(name))
        assert current is not None
        assert current.update.entry == entry
    newest = head_at(store, 8)
    assert newest is not None
    assert newest.head.encoded == stream.heads[-1]


def test_cutting_the_stream_differently_changes_nothing() -> None:
    stream = lived_in()
    whole, _ = replay(stream.realm, stream.message())
    singly, _ = replay(stream.realm, *(steps_message(step) for step in stream.steps))
    assert dict(whole.scan(b"", b"\xff")) == dict(singly.scan(b"", b"\xff"))


def test_newest_owed_ratification_comes_first_then_the_oldest() -> None:
    stream = Stream().grow(5)
    store, _ = replay(stream.realm, stream.message())
    assert owed_epochs(store, 10) == (5, 1, 2, 3, 4)
    assert owed_epochs(store, 3) == (5, 1, 2)


@pytest.mark.parametrize("bad", CASES, ids=lambda c: c.name)
def test_a_falsified_stream_is_refused_with_its_reason(bad: Case) -> None:
    stream = three_and_a_half_epochs()
    good = stream.message()
    steps = bad.falsify(stream)
    _, outcome = replay(stream.realm, good, steps_message(*steps))
    assert isinstance(outcome.stop, Evidence)
    assert outcome.stop.kind == bad.kind, outcome.stop.what
    assert outcome.stop.exit_code == (8 if bad.kind in (Kind.FORK, Kind.CHAIN, Kind.HISTORY) else 3)
    document = evidences.from_document(evidences.to_document(stream.realm, outcome.stop, 1))
    verdict = evidences.judge(stream.realm, document)
    assert verdict.standing is bad.standing, verdict.statement
    if bad.standing is Standing.PROVEN:
        assert len(verdict.culprits) >= 2


def test_there_are_at_least_forty_ways_to_falsify_a_stream() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("bad", CASES, ids=lambda c: c.name)
def test_nothing_of_a_refused_step_is_kept(bad: Case) -> None:
    stream = three_and_a_half_epochs()
    good = stream.message()
    lawful_only, kept = replay(stream.realm, good)
    steps = bad.falsify(stream)
    store, outcome = replay(stream.realm, good, *(steps_message(step) for step in steps[-1:]))
    if len(steps) == 1:
        assert dict(store.scan(b"", b"\xff")) == dict(lawful_only.scan(b"", b"\xff"))
        assert outcome.state == kept.state


def test_lawful_steps_before_a_bad_one_in_the_same_message_are_kept() -> None:
    stream = Stream().grow(2)
    good = len(stream.steps)
    bad = make_step(good + 1, epoch=stream.sign_head(stream.compose(root_hash=bytes(31) + b"x")))
    _, outcome = replay(stream.realm, steps_message(*stream.steps, bad))
    assert isinstance(outcome.stop, Evidence)
    assert outcome.owed == (1, 2)
    assert outcome.state.next_index == good + 1


def test_first_head_must_start_from_the_realm_hash() -> None:
    stream = Stream()
    step = make_step(1, epoch=stream.sign_head(stream.compose(previous_head_hash=bytes(32))))
    _, outcome = replay(stream.realm, steps_message(step))
    assert isinstance(outcome.stop, Evidence)
    assert outcome.stop.kind == Kind.CHAIN
    document = evidences.from_document(evidences.to_document(stream.realm, outcome.stop, 1))
    assert evidences.judge(stream.realm, document).standing is Standing.PROVEN


def test_first_head_must_claim_no_history() -> None:
    stream = Stream()
    step = make_step(1, epoch=stream.sign_head(stream.compose(history_root=bytes(32))))
    _, outcome = replay(stream.realm, steps_message(step))
    assert isinstance(outcome.stop, Evidence)
    document = evidences.from_document(evidences.to_document(stream.realm, outcome.stop, 1))
    assert evidences.judge(stream.realm, document).standing is Standing.PROVEN


def test_a_stream_of_another_realm_is_refused() -> None:
    stream = Stream().grow(1)
    others = make_realm(stream.replicas, name="example.net")
    _, outcome = replay(others, stream.message())
    assert isinstance(outcome.stop, Evidence)
    assert outcome.stop.kind == Kind.UPDATE


@pytest.mark.parametrize(
    "message",
    [b"\xff", b"\x0a\x00", b"\x0a\x02\x08\x01", b"\x12\x00", b"\x08\x01"],
    ids=["garbage", "empty step", "step without content", "unknown field", "wrong type"],
)
def test_a_message_that_is_no_steps_is_refused_whole(message: bytes) -> None:
    _, outcome = replay(Stream().realm, message)
    assert isinstance(outcome.stop, Evidence)
    assert outcome.stop.kind == Kind.MALFORMED
    assert outcome.stop.received == message
    assert not outcome.writes


def test_an_unknown_rules_level_says_upgrade_and_accuses_nobody() -> None:
    stream = Stream().grow(1)
    step = make_step(len(stream.steps) + 1, epoch=stream.sign_head(stream.compose(rules=2)))
    _, outcome = replay(stream.realm, stream.message(), steps_message(step))
    assert outcome.stop == Upgrade(2)


def test_an_unknown_rules_level_with_unknown_fields_says_upgrade() -> None:
    stream = Stream().grow(1)
    head = stream.compose(rules=2) + b"\xa0\x06\x01"
    step = make_step(len(stream.steps) + 1, epoch=stream.sign_head(head))
    _, outcome = replay(stream.realm, stream.message(), steps_message(step))
    assert outcome.stop == Upgrade(2)


def test_an_unknown_rules_level_without_signatures_is_no_reason_to_upgrade() -> None:
    stream = Stream().grow(1)
    head = stream.sign_head(stream.compose(rules=2), stream.replicas[0])
    _, outcome = replay(stream.realm, stream.message(), steps_message(make_step(4, epoch=head)))
    assert isinstance(outcome.stop, Evidence)
    assert outcome.stop.kind == Kind.SIGNATURE
