"""Lookups through the client: each rule of client acceptance, on the accepting and on the refusing side."""

from collections.abc import Callable

import pytest
from e2eks.v1 import client_pb2
from samples import REALM, REPLICAS, START_MS, VERIFIERS, key, make_realm, sign_head
from simulated_realm import ADDRESSES, ANSWER_DELAY_MS, SimulatedRealm, one_of_each
from simulated_realm.asking import KEYS, LIMIT_MS, NOBODY, OTHER, USER, altered, client_of, three_epochs

from verifier import encoding, limits
from verifier.client.client import Client
from verifier.client.historian import BadAnswer
from verifier.client.outcome import Exit, Unreachable, exit_of_error, exit_of_result
from verifier.client.pins import MemoryPins
from verifier.errors import ConfigError, Malformed, NotRatified, Reason, Refused
from verifier.lookup import Absent, Erased, Present, Revoked


@pytest.fixture
def world() -> SimulatedRealm:
    return three_epochs()


# Results


def test_a_present_user_has_the_keys_of_the_latest_epoch(world: SimulatedRealm) -> None:
    answer = client_of(world).ask(USER)
    assert isinstance(answer.result, Present)
    assert dict(answer.result.profile.keys) == KEYS
    assert (answer.newest_epoch, answer.seen_epoch, answer.address) == (3, 0, ADDRESSES[0])
    assert exit_of_result(answer.result) is Exit.DONE


def test_absence_erasure_and_revocation_are_results_of_their_own(world: SimulatedRealm) -> None:
    world.erase(OTHER)
    world.revoke(USER)
    world.close()
    client = client_of(world)
    results = [client.lookup(user) for user in (NOBODY, OTHER, USER)]
    assert [type(result) for result in results] == [Absent, Erased, Revoked]
    assert [exit_of_result(result) for result in results] == [Exit.ABSENT, Exit.GONE, Exit.GONE]


@pytest.mark.parametrize("user_id", ["Alice@example.test", "alice", "a b@example.test", "a@" + "b" * 300, ""])
def test_a_user_id_that_is_none_is_refused_before_any_question(world: SimulatedRealm, user_id: str) -> None:
    with pytest.raises(Malformed) as refused:
        client_of(world).lookup(user_id)
    assert exit_of_error(refused.value) is Exit.USAGE
    assert world.calls == []


def test_a_domain_that_the_realm_does_not_serve_is_refused_before_any_question(world: SimulatedRealm) -> None:
    with pytest.raises(Refused) as refused:
        client_of(world).lookup("alice@example.org")
    assert refused.value.reason is Reason.DOMAIN_NOT_SERVED
    assert world.calls == []


# What does not verify (exit 3)


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def wrong_realm_hash(proof: client_pb2.LookupProof) -> None:
    other = SimulatedRealm(make_realm(verifiers=VERIFIERS, replicas=(key("r-other"),)))
    other.put(USER, KEYS)
    other.close()
    proof.head.head = other.head(1).head.encoded


def entry_of_another(proof: client_pb2.LookupProof) -> None:
    world = SimulatedRealm()
    world.put(OTHER, KEYS)
    world.close()
    proof.entry = client_pb2.LookupProof.FromString(world.lookup(OTHER, 1)).entry


ALTERATIONS: dict[str, tuple[str, Callable[[client_pb2.LookupProof], None]]] = {
    "another user id": ("user-id", lambda proof: setattr(proof, "user_id", OTHER)),
    "realm": ("realm", wrong_realm_hash),
    "index": ("vrf", lambda proof: setattr(proof, "index", flipped(proof.index))),
    "index proof": ("vrf", lambda proof: setattr(proof, "index_proof", flipped(proof.index_proof, 40))),
    "neighbour": (
        "tree",
        lambda proof: proof.tree_proof.neighbors.__setitem__(
            0, flipped(proof.tree_proof.neighbors[0] or bytes(32))
        ),
    ),
    "entry": ("tree", entry_of_another),
    "profile": (
        "commitment",
        lambda proof: setattr(proof, "profile", encoding.encode_profile({"ssh": b"evil"})),
    ),
    "nonce": ("commitment", lambda proof: setattr(proof, "profile_nonce", flipped(proof.profile_nonce))),
    "entry withheld": (
        "tree",
        lambda proof: [proof.ClearField(f) for f in ("entry", "profile", "profile_nonce")],
    ),  # type: ignore[func-returns-value]
    "signatures": (
        "signature",
        lambda proof: [
            setattr(signature, "signature", flipped(signature.signature))
            for ratification in proof.head.ratifications
            for signature in ratification.signatures
        ],  # type: ignore[func-returns-value]
    ),
    "not canonical": ("encoding", lambda proof: proof.tree_proof.neighbors.append(bytes(32))),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_answer_is_refused_by_the_check_that_it_breaks(world: SimulatedRealm, name: str) -> None:
    check, change = ALTERATIONS[name]
    pins = MemoryPins()
    world.tampering["Lookup"] = altered(change)
    with pytest.raises(BadAnswer) as refused:
        client_of(world, pins).lookup(USER)
    assert refused.value.check == check
    assert exit_of_error(refused.value) is Exit.NOT_VERIFIED
    assert pins.load().heads == ()


def test_an_answer_that_does_not_verify_is_not_asked_for_elsewhere(world: SimulatedRealm) -> None:
    world.tampering["Lookup"] = lambda raw: raw[:-1]
    with pytest.raises(BadAnswer):
        client_of(world).lookup(USER)
    assert world.calls == [(ADDRESSES[0], "Lookup")]


def test_a_historic_answer_of_another_epoch_is_refused(world: SimulatedRealm) -> None:
    world.tampering["Lookup"] = lambda _: world.lookup(USER, 2)
    with pytest.raises(BadAnswer) as refused:
        client_of(world).lookup(USER, 1)
    assert refused.value.check == "head"


# Ratifications (exit 7)


def with_signatures(
    world: SimulatedRealm, replicas: int, verifiers: int, **times: int
) -> Callable[[bytes], bytes]:
    head = world.directory.heads[-1]
    signed = sign_head(head, REPLICAS[:replicas], VERIFIERS[:verifiers], **times)
    return altered(lambda proof: proof.head.ParseFromString(signed.encoded))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("replicas", "verifiers"), [(2, 2), (3, 2), (2, 3), (3, 3)])
def test_majorities_of_replicas_and_of_verifiers_suffice(
    world: SimulatedRealm, replicas: int, verifiers: int
) -> None:
    world.tampering["Lookup"] = with_signatures(world, replicas, verifiers)
    assert isinstance(client_of(world).lookup(USER), Present)


@pytest.mark.parametrize(("replicas", "verifiers"), [(1, 3), (3, 1), (0, 3), (3, 0), (1, 1)])
def test_a_minority_of_either_does_not_suffice(world: SimulatedRealm, replicas: int, verifiers: int) -> None:
    world.tampering["Lookup"] = with_signatures(world, replicas, verifiers)
    with pytest.raises(NotRatified) as refused:
        client_of(world).lookup(USER)
    assert refused.value.cause == "quorum"
    assert exit_of_error(refused.value) is Exit.NOT_RATIFIED
    assert [address for address, method in world.calls if method == "Lookup"] == list(ADDRESSES)


def test_the_users_own_quorum_replaces_the_realms(world: SimulatedRealm) -> None:
    world.tampering["Lookup"] = with_signatures(world, 1, 1)
    client = client_of(world, quorum=one_of_each())
    assert isinstance(client.lookup(USER), Present)
    assert isinstance(client.lookup(USER), Present)


def test_an_answer_is_fresh_until_the_ttl_of_its_head(world: SimulatedRealm) -> None:
    client = client_of(world)
    world.late_ms = LIMIT_MS
    assert isinstance(client.lookup(USER), Present)
    world.late_ms = LIMIT_MS + 1
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER)
    assert refused.value.cause == "stale"


def test_a_head_from_the_future_is_accepted_within_the_skew_only(world: SimulatedRealm) -> None:
    client = client_of(world)
    world.tampering["Lookup"] = with_signatures(
        world, 3, 3, verifier_time_ms=world.head(3).head.issue_time_ms
    )
    world.late_ms = -ANSWER_DELAY_MS - limits.SKEW_MS
    assert isinstance(client.lookup(USER), Present)
    world.late_ms -= 1
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER)
    assert refused.value.cause == "future"


@pytest.mark.parametrize(
    ("offset_ms", "late_ms", "accepted"),
    [
        (-limits.SKEW_MS, 0, True),
        (-limits.SKEW_MS - 1, 0, False),
        (ANSWER_DELAY_MS + limits.SKEW_MS, 0, True),
        (ANSWER_DELAY_MS + limits.SKEW_MS + 1, 0, False),
        (-1000, LIMIT_MS - 1000, True),
        (-1000, LIMIT_MS - 999, False),
    ],
)
def test_a_verifiers_time_counts_within_skew_and_ttl(
    world: SimulatedRealm, offset_ms: int, late_ms: int, accepted: bool
) -> None:
    issued = world.head(3).head.issue_time_ms
    world.late_ms = late_ms
    world.tampering["Lookup"] = with_signatures(world, 3, 3, verifier_time_ms=issued + offset_ms)
    if accepted:
        assert isinstance(client_of(world).lookup(USER), Present)
        return
    with pytest.raises(NotRatified) as refused:
        client_of(world).lookup(USER)
    assert refused.value.cause == "stale"


# Rollback and failover


def test_the_pinned_epoch_is_sent_and_an_older_answer_is_looked_for_elsewhere(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    world.behind = {ADDRESSES[0]: 2}
    answer = client.ask(USER)
    assert (answer.newest_epoch, answer.address) == (3, ADDRESSES[1])


def test_only_older_answers_are_a_rollback(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    world.behind = dict.fromkeys(ADDRESSES, 2)
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER)
    assert refused.value.cause == "rollback"


def test_a_server_that_ignores_the_pinned_epoch_is_a_rollback(world: SimulatedRealm) -> None:
    client = client_of(world)
    client.lookup(USER)
    world.tampering["Lookup"] = lambda _: world.lookup(USER, 2)
    with pytest.raises(NotRatified) as refused:
        client.lookup(USER)
    assert refused.value.cause == "rollback"
    assert [address for address, method in world.calls[1:] if method == "Lookup"] == list(ADDRESSES)


def test_epochs_are_pinned_per_quorum(world: SimulatedRealm) -> None:
    pins = MemoryPins()
    client_of(world, pins).lookup(USER)
    world.behind = dict.fromkeys(ADDRESSES, 2)
    own = client_of(world, pins, quorum=one_of_each())
    with pytest.raises(NotRatified) as refused:
        own.lookup(USER)  # not a rollback of this quorum, but no proof that epoch 2 leads to the pinned head
    assert refused.value.cause == "rollback"
    world.behind = {}
    world.tampering["Lookup"] = lambda _: world.lookup(USER, 2)
    assert own.ask(USER).newest_epoch == 2
    assert pins.load().newest_epoch == 3


def test_addresses_are_tried_in_turn_until_one_answers(world: SimulatedRealm) -> None:
    world.down = set(ADDRESSES[:2])
    assert client_of(world).ask(USER).address == ADDRESSES[2]
    world.down = set(ADDRESSES)
    with pytest.raises(Unreachable) as refused:
        client_of(world).lookup(USER)
    assert exit_of_error(refused.value) is Exit.UNREACHABLE


@pytest.mark.parametrize(
    ("reason", "tries", "exit_code"),
    [
        (Reason.NOT_READY, 3, Exit.REFUSED),
        (Reason.NO_SUCH_EPOCH, 3, Exit.REFUSED),
        (Reason.EPOCH_PENDING, 3, Exit.NOT_RATIFIED),
        (Reason.NOT_RATIFIED_IN_TIME, 3, Exit.NOT_RATIFIED),
        (Reason.RATE_LIMITED, 1, Exit.REFUSED),
        (Reason.QUORUM_UNSATISFIABLE, 1, Exit.REFUSED),
    ],
)
def test_refusals_that_others_may_not_share_are_tried_elsewhere(
    world: SimulatedRealm, reason: Reason, tries: int, exit_code: Exit
) -> None:
    world.refusals["Lookup"] = Refused(reason, "said the test")
    with pytest.raises(Refused) as refused:
        client_of(world).lookup(USER)
    assert refused.value.reason is reason
    assert exit_of_error(refused.value) is exit_code
    assert len(world.calls) == tries


def test_a_missing_ratification_is_reported_before_a_refusal_and_that_before_silence(
    world: SimulatedRealm,
) -> None:
    client = client_of(world)
    client.lookup(USER)
    world.down, world.behind = {ADDRESSES[0]}, {ADDRESSES[1]: 1}
    world.addresses = ADDRESSES[:2]
    with pytest.raises(NotRatified):
        client.lookup(USER)


def test_a_realm_without_addresses_is_a_matter_of_settings(world: SimulatedRealm) -> None:
    world.addresses = ()
    with pytest.raises(ConfigError):
        client_of(world).lookup(USER)


def test_the_published_realm_is_fetched_only_if_it_is_the_one_trusted(world: SimulatedRealm) -> None:
    assert client_of(world).fetch_realm() == REALM
    stranger = SimulatedRealm(make_realm(replicas=(key("r-other"),)))
    client = Client(REALM, stranger, MemoryPins(), clock=lambda: START_MS)
    with pytest.raises(BadAnswer) as refused:
        client.fetch_realm()
    assert refused.value.check == "realm"
