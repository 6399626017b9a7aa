"""No committed bytes can make a step raise: whatever a replica, a client or a verifier slips into the log."""

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from replayer.replay import Replayer
from workload.cast import User
from workload.mutations import Mutator, readable
from workload.replica import MIN_INTERVAL_MS, Replica
from workload.script import build

from keyserver.machine import commands
from keyserver.machine.codes import Code
from keyserver.machine.state import encode_state
from keyserver.machine.step import Outcome, apply
from keyserver.machine.tables import Tables
from verifier.realm import realm_message

MUTATIONS = 50_000
DECODED_SHARE_MIN = 0.3


@pytest.fixture
def replica(seed: int) -> Replica:
    """In the middle of its life, with pending, parked and unsigned things about."""
    built = build(seed, 400)
    built.settle()
    assert built.register(User.named("in the tree")) is Code.APPLIED
    assert built.delimit() is Code.APPLIED
    assert built.register(User.named("parked")) is Code.APPLIED
    assert built.run(built.signature(built.replicas[0])) == (Code.APPLIED,)
    return built


def check(replica: Replica, payload: bytes) -> Outcome:
    """Apply a payload without writing it; what must hold whatever it was."""
    outcome = apply(replica.store, replica.machine, replica.state, replica.position, payload)
    assert outcome.position.index == replica.position.index + 1
    assert outcome.verdicts
    if outcome.refused:
        assert outcome.state == replica.state
        others = [key for key in outcome.writes if key != Tables.APPLIED.key()]
        assert all(Tables.table_of(key) is Tables.BLANKING for key in others)  # parts of no use to anybody
        assert not others or payload != commands.public_part(payload)
    else:
        assert outcome.writes[Tables.STATE.key()] == encode_state(outcome.state)
    return outcome


@pytest.mark.slow
def test_mutated_entries_give_values_and_never_an_exception(
    replica: Replica, rng: Random, count: Callable[[int], int]
) -> None:
    mutator = Mutator(replica, rng)
    originals = readable(replica.log)
    wanted = count(MUTATIONS)
    seen: Counter[Code] = Counter()
    for _ in range(wanted):
        seen.update(set(check(replica, mutator.spoil(rng.choice(originals))).verdicts))
    decoded = wanted - seen[Code.BAD_ENVELOPE]
    assert decoded >= DECODED_SHARE_MIN * wanted, seen
    assert len(seen) > 15, seen


def test_arbitrary_bytes_are_a_reject(replica: Replica, rng: Random, count: Callable[[int], int]) -> None:
    for _ in range(count(5000)):
        assert check(replica, rng.randbytes(rng.randint(0, 200))).verdicts == (Code.BAD_ENVELOPE,)


def test_a_log_of_mutated_entries_is_replayed_alike_by_the_naive_replayer(
    rng: Random, count: Callable[[int], int], seed: int
) -> None:
    """Each mutated entry is committed: what it changed is the ground for the next one."""
    replica = build(seed, 400)
    mutator = Mutator(replica, rng)
    originals = readable(replica.log)
    for _ in range(count(3000)):
        replica.commit(mutator.spoil(rng.choice(originals)))
    naive = Replayer(realm_message(replica.realm), MIN_INTERVAL_MS)
    for payload, outcome in zip(replica.log, replica.outcomes, strict=True):
        verdicts = naive.replay(payload)
        assert verdicts == b"\xff" * outcome.refused + bytes(outcome.verdicts), payload.hex()
        assert naive.digest == outcome.position.digest
