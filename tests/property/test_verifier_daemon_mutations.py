"""Any bytes in place of a streamed message: an outcome, never an exception, and never another directory."""

from collections.abc import Callable
from random import Random

from streams.build import Stream
from streams.falsified import majority_of
from streams.realms import party

from kv.memory import MemoryStore
from verifier.daemon import evidence as evidences
from verifier.daemon.evidence import Evidence
from verifier.daemon.state import State, load_state
from verifier.daemon.step import Outcome, apply_message
from verifier.daemon.tables import VerifierTables as Tables

# A signature the majority does not need may be broken, and the head is then kept as it came.
AS_RECEIVED = {Tables.HEADS.prefix, Tables.POLICY_HEADS.prefix}


def flip(data: bytearray, rng: Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 40)]


def repeat(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 40)]


def overwrite(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    piece = rng.randbytes(min(rng.randrange(1, 33), len(data) - start))
    data[start : start + len(piece)] = piece


def move(data: bytearray, rng: Random) -> None:
    """Swap two stretches of 32 bytes: hashes and keys change places, lengths stay right."""
    size = min(32, len(data) // 2)
    a, b = (rng.randrange(len(data) - size + 1) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


MUTATIONS = (flip, flip, flip, cut, repeat, overwrite, move)


def directory(outcome: Outcome) -> dict[bytes, bytes | None]:
    return {key: value for key, value in outcome.writes.items() if key[:1] not in AS_RECEIVED}


def message_with_everything() -> tuple[Stream, MemoryStore, State, bytes]:
    """A store after two epochs; a message with a registration, updates, a revocation, a policy change."""
    stream = Stream().grow(2)
    store = MemoryStore()
    first = apply_message(store, stream.realm, load_state(store, stream.realm), stream.message())
    store.write(first.writes)
    start = first.state.next_index
    stream.put("carol")
    stream.revoke("alice")
    stream.put("bob")
    new = [*stream.replicas[:2], party(1, "replica-new")]
    stream.close_epoch(*stream.replicas, new[2], next_epoch_policy=majority_of(new))
    stream.replicas = new
    stream.grow(1)
    return stream, store, first.state, stream.message(start)


def test_mutated_messages_change_nothing_unseen(rng: Random, count: Callable[[int], int]) -> None:
    stream, store, state, message = message_with_everything()
    honest = apply_message(store, stream.realm, state, message)
    assert honest.stop is None
    accepted = 0
    for _ in range(count(4_000)):
        data = bytearray(message)
        rng.choice(MUTATIONS)(data, rng)
        outcome = apply_message(store, stream.realm, state, bytes(data))
        if outcome.stop is None:
            assert outcome.state == honest.state
            assert directory(outcome) == directory(honest)
            accepted += 1
        elif isinstance(outcome.stop, Evidence):
            document = evidences.from_document(evidences.to_document(stream.realm, outcome.stop, 1))
            verdict = evidences.judge(stream.realm, document)
            assert verdict.standing is not evidences.Standing.PROVEN, "a damaged message accuses the replicas"
    assert accepted > 0, "no mutation fell into a signature that was not needed"


def test_random_bytes_are_no_steps(rng: Random, count: Callable[[int], int]) -> None:
    stream, store, state, _ = message_with_everything()
    for _ in range(count(2_000)):
        outcome = apply_message(store, stream.realm, state, rng.randbytes(rng.randrange(1, 200)))
        assert outcome.stop is not None
        assert not outcome.writes
