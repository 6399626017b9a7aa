"""What a client remembers: one history, historic answers, saved proofs, the chain of policies."""

import pytest
from e2eks.v1 import client_pb2
from samples import BOB, EVE, REALM, REPLICAS, VERIFIERS, key
from simulated_realm import ADDRESSES, SimulatedRealm, one_of_each
from simulated_realm.asking import KEYS, LIMIT_MS, OTHER, USER, altered, client_of, three_epochs

from verifier import encoding, proof_encoding
from verifier.client.client import Client
from verifier.client.historian import BadAnswer, BrokenHistory
from verifier.client.outcome import Exit, exit_of_error
from verifier.client.pins import MemoryPins
from verifier.errors import HistoryConflict, NotRatified, Reason, Refused
from verifier.lookup import Present


@pytest.fixture
def world() -> SimulatedRealm:
    return three_epochs()


# One history (exit 8)


def test_a_newer_answer_is_accepted_once_it_is_proven_to_continue_the_pin(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    for _ in range(4):
        world.close()
        answer = client.ask(USER)
        assert (answer.seen_epoch, answer.newest_epoch) == (world.epoch - 1, world.epoch)
    assert [method for _, method in world.calls] == ["Lookup"] + ["Lookup", "Consistency"] * 4
    calls = len(world.calls)
    client.lookup(USER)
    assert len(world.calls) == calls + 1


def forked(world: SimulatedRealm) -> SimulatedRealm:
    """The same realm with another third epoch, signed by the same keys."""
    other = world.without_last()
    other.put(USER, {"ssh": b"ssh-ed25519 EVIL"}, EVE)
    other.close()
    return other


def test_another_validly_signed_head_of_a_pinned_epoch_is_a_fork(world: SimulatedRealm) -> None:
    pins = MemoryPins()
    client_of(world, pins).lookup(USER)
    with pytest.raises(HistoryConflict) as refused:
        client_of(forked(world), pins).lookup(USER)
    conflict = refused.value
    assert exit_of_error(conflict) is Exit.CONFLICT
    first, second = map(encoding.decode_signed_head, (conflict.first, conflict.second))
    assert first.head.epoch == second.head.epoch == 3
    assert first.head.hash != second.head.hash
    assert pins.load().newest == world.head(3)


def spoil_signatures(proof: client_pb2.LookupProof) -> None:
    for ratification in proof.head.ratifications:
        for made in ratification.signatures:
            made.signature = bytes(64)


def test_another_head_without_valid_signatures_is_no_fork_but_a_bad_proof(world: SimulatedRealm) -> None:
    pins = MemoryPins()
    client_of(world, pins).lookup(USER)
    other = forked(world)
    other.tampering["Lookup"] = altered(spoil_signatures)
    with pytest.raises(BadAnswer):
        client_of(other, pins).lookup(USER)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_a_newer_head_of_another_history_is_a_conflict(world: SimulatedRealm, ahead: int) -> None:
    pins = MemoryPins()
    client_of(world, pins).lookup(USER)
    other = forked(world)
    for _ in range(ahead):
        other.close()
    with pytest.raises(HistoryConflict):
        client_of(other, pins).lookup(USER)
    assert pins.load().newest == world.head(3)


def test_paths_that_do_not_join_two_heads_are_a_conflict_with_the_paths_kept(world: SimulatedRealm) -> None:
    pins = MemoryPins()
    client_of(world, pins).lookup(USER)
    other = forked(world)
    other.close()
    other.close()

    def hide_the_other_head(raw: bytes) -> bytes:
        proof = proof_encoding.decode_consistency_proof(raw)
        return proof_encoding.encode_consistency_proof(
            old_head=world.head(3).encoded,
            new_head=proof.new_head.encoded,
            inclusion=proof.inclusion,
            consistency=proof.consistency,
        )

    other.tampering["Consistency"] = hide_the_other_head
    with pytest.raises(BrokenHistory) as refused:
        client_of(other, pins).lookup(USER)
    assert refused.value.inclusion
    assert refused.value.first == pins.load().heads[0].signed.encoded


def test_a_fork_is_reported_though_its_head_is_stale_too(world: SimulatedRealm) -> None:
    pins = MemoryPins()
    client_of(world, pins).lookup(USER)
    other = forked(world)
    other.late_ms = LIMIT_MS + 1
    with pytest.raises(HistoryConflict):
        client_of(other, pins).lookup(USER)
    other.close()
    with pytest.raises(HistoryConflict):
        client_of(other, pins).lookup(USER)


def test_no_consistency_proof_no_answer(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    world.close()
    world.refusals["Consistency"] = Refused(Reason.RATE_LIMITED, "said the test")
    with pytest.raises(Refused):
        client.lookup(USER)
    del world.refusals["Consistency"]
    world.tampering["Consistency"] = lambda raw: raw + b"\0"
    with pytest.raises(BadAnswer) as refused:
        client.lookup(USER)
    assert refused.value.method == "Consistency"


# Historic lookups


def test_a_historic_answer_is_placed_in_the_newest_history(world: SimulatedRealm) -> None:
    world.put(USER, {"ssh": b"new"})
    world.close()
    answer = client_of(world).ask(USER, 1)
    assert isinstance(answer.result, Present)
    assert answer.result.profile.keys["ssh"] == KEYS["ssh"]
    assert (answer.result.head.head.epoch, answer.newest_epoch) == (1, 4)


def test_a_historic_answer_needs_no_freshness_but_a_quorum(world: SimulatedRealm) -> None:
    world.late_ms = 10 * LIMIT_MS
    assert isinstance(client_of(world).lookup(USER, 2), Present)
    world.verifiers = VERIFIERS[:1]
    with pytest.raises(NotRatified) as refused:
        client_of(world).lookup(USER, 2)
    assert refused.value.cause == "quorum"


def test_a_historic_answer_under_the_users_own_quorum(world: SimulatedRealm) -> None:
    world.verifiers = VERIFIERS[:1]
    client = client_of(world, quorum=one_of_each())
    answer = client.ask(USER, 1)
    assert (answer.result.head.head.epoch, answer.newest_epoch) == (1, 3)


def test_a_historic_head_outside_the_newest_history_is_a_conflict(world: SimulatedRealm) -> None:
    other = forked(world)
    for realm in (world, other):
        realm.close()
        realm.close()
    world.tampering["Lookup"] = lambda _: other.lookup(USER, 3)
    with pytest.raises(HistoryConflict):
        client_of(world).lookup(USER, 3)


def test_a_newest_head_older_than_accepted_before_is_a_rollback(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    world.behind = dict.fromkeys(ADDRESSES, 2)
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER, 1)
    assert refused.value.cause == "rollback"


def test_an_epoch_that_does_not_exist_is_the_servers_refusal(world: SimulatedRealm) -> None:
    with pytest.raises(Refused) as refused:
        client_of(world).lookup(USER, 99)
    assert refused.value.reason is Reason.NO_SUCH_EPOCH
    assert exit_of_error(refused.value) is Exit.REFUSED


# Saved proofs


def test_a_saved_proof_is_judged_at_its_time_and_may_be_older_than_the_pin(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    issued = world.head(1).head.issue_time_ms
    answer = client.verify_saved(world.lookup(USER, 1), at_ms=issued + 5)
    assert isinstance(answer.result, Present)
    assert (answer.newest_epoch, answer.seen_epoch) == (1, 3)
    with pytest.raises(NotRatified) as refused:
        client.verify_saved(world.lookup(USER, 1), at_ms=issued + REALM.epoch_ttl_ms + 2000)
    assert refused.value.cause == "stale"


def test_a_saved_proof_is_for_the_user_it_names_or_the_one_asked_for(world: SimulatedRealm) -> None:
    client = client_of(world)
    proof = world.lookup(USER, 3)
    assert client.verify_saved(proof).result.user_id == USER
    assert client.verify_saved(proof, user_id=USER).result.user_id == USER
    with pytest.raises(BadAnswer) as refused:
        client.verify_saved(proof, user_id=OTHER)
    assert refused.value.check == "user-id"


@pytest.mark.parametrize("user_id", ["alice@elsewhere.test", "Alice@example.test", "alice"])
def test_a_saved_proof_of_a_name_that_is_none_here_does_not_verify(
    world: SimulatedRealm, user_id: str
) -> None:
    """No server has refused anything: exit 3, not 6."""
    proof = altered(lambda proof: setattr(proof, "user_id", user_id))(world.lookup(USER, 3))
    for named in (None, user_id):
        with pytest.raises(BadAnswer) as refused:
            client_of(world).verify_saved(proof, user_id=named)
        assert exit_of_error(refused.value) is Exit.NOT_VERIFIED


def test_saved_proofs_of_one_epoch_show_a_fork_in_any_order(world: SimulatedRealm) -> None:
    other = forked(world)
    world.close()
    proofs = [world.lookup(USER, 3), world.lookup(OTHER, 4), other.lookup(USER, 3)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        client = client_of(world)
        for which in order[:2]:
            client.verify_saved(proofs[which])
        with pytest.raises(HistoryConflict):
            client.verify_saved(proofs[order[2]])


def test_the_next_answer_must_continue_the_heads_of_saved_proofs(world: SimulatedRealm) -> None:
    other = forked(world)
    other.close()
    world.close()
    world.close()
    pins = MemoryPins()
    client_of(world, pins).verify_saved(world.lookup(USER, 3))
    assert [held.linked for held in pins.load().heads] == [False]
    with pytest.raises(HistoryConflict):
        client_of(other, pins).lookup(USER)
    assert client_of(world, pins).ask(USER).newest_epoch == 5
    assert [held.linked for held in pins.load().heads] == [True, True]


# The policy chain


def rotated(world: SimulatedRealm) -> tuple[SimulatedRealm, Client, MemoryPins]:
    """Replicas changed in epoch 4; the client's own quorum asks for one of the new ones and a verifier."""
    fresh = tuple(key(f"new-replica-{n}") for n in range(3))
    world.close(next_replicas=fresh)
    world.close()
    sides = (fresh, VERIFIERS)
    candidates = tuple(encoding.QuorumExpr(1, tuple(k.id for k in keys)) for keys in sides)
    pins = MemoryPins()
    return world, client_of(world, pins, quorum=encoding.QuorumExpr(2, (), candidates)), pins


def test_a_change_of_replicas_is_followed_by_the_chain_from_genesis(world: SimulatedRealm) -> None:
    world, client, pins = rotated(world)
    assert isinstance(client.lookup(USER), Present)
    assert [change.head.epoch for change in pins.load().changes] == [4]
    assert [held.linked for held in pins.load().heads] == [True, True]
    asked = [method for _, method in world.calls]
    assert asked == ["Lookup", "PolicyHeads", "Consistency"]
    client.lookup(USER)
    assert [method for _, method in world.calls].count("PolicyHeads") == 1


def rolled(world: SimulatedRealm) -> SimulatedRealm:
    """Every replica has got a new key, one after the other; the realm file names the former ones."""
    keys = list(REPLICAS)
    for number in range(len(keys)):
        keys[number] = key(f"rolled-{number}")
        world.close(next_replicas=tuple(keys))
    world.close()
    return world


def test_a_client_pinned_before_every_key_was_rolled_accepts_after(world: SimulatedRealm) -> None:
    pins = MemoryPins()
    client = client_of(world, pins)
    client.lookup(USER)
    rolled(world)
    assert isinstance(client.lookup(USER), Present)
    assert client.ask(USER).newest_epoch == world.epoch
    assert len(pins.load().changes) == len(REPLICAS)


def test_a_client_of_the_first_day_starts_after_every_key_was_rolled(world: SimulatedRealm) -> None:
    assert isinstance(client_of(rolled(world), MemoryPins()).lookup(USER), Present)


def test_an_epoch_of_the_former_replicas_is_placed_in_the_history_of_the_new(world: SimulatedRealm) -> None:
    client = client_of(rolled(world), MemoryPins())
    answer = client.ask(USER, epoch=2)
    assert (answer.result.head.head.epoch, answer.newest_epoch) == (2, world.epoch)


def test_former_replicas_sign_nothing_any_more(world: SimulatedRealm) -> None:
    client = client_of(rolled(world), MemoryPins())
    client.lookup(USER)
    world.close()
    world.replicas[-1] = REPLICAS
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER)
    assert refused.value.cause == "quorum"


def test_without_the_chain_new_replicas_count_for_nothing(world: SimulatedRealm) -> None:
    world, client, _ = rotated(world)
    world.refusals["PolicyHeads"] = Refused(Reason.NOT_READY, "said the test")
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER)
    assert refused.value.cause == "quorum"


def test_a_chain_that_its_replicas_did_not_sign_is_refused(world: SimulatedRealm) -> None:
    world, client, pins = rotated(world)
    world.tampering["PolicyHeads"] = lambda raw: encoding.encode_signed_head(
        encoding.decode_signed_head(raw).head.encoded, []
    )
    with pytest.raises(BadAnswer) as refused:
        client.lookup(USER)
    assert refused.value.method == "PolicyHeads"
    assert pins.load().changes == ()


def test_a_chain_that_contradicts_the_known_one_is_a_conflict(world: SimulatedRealm) -> None:
    other = world.fork()
    world, client, pins = rotated(world)
    client.lookup(USER)
    other.close(next_replicas=(EVE, BOB, key("third")))
    other.close()
    with pytest.raises(HistoryConflict):
        Client(other.realm, other, pins, clock=other.now_ms, quorum=client.quorum).lookup(USER)
