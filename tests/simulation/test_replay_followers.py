"""What the step emits, verifiers and clients follow: through every change of the replicas in a long log."""

import pytest
from workload.replica import Replica
from workload.script import build

from keyserver.machine import views
from keyserver.verifier_log import encode_page
from kv.memory import MemoryStore
from verifier import encoding, limits, lookup, policy
from verifier import epoch as epoch_law
from verifier.consistency import verify_consistency
from verifier.daemon.state import load_state
from verifier.daemon.step import apply_message
from verifier.lookup import Trust
from verifier.types import ConsistencyProof, SignedHead

ENTRIES = 800
STEPS_A_MESSAGE = 50


@pytest.fixture(params=[1, 3])
def recorded(seed: int, request: pytest.FixtureRequest) -> Replica:
    """A log whose last head has its majority, with several changes of the replicas."""
    replica = build(seed, ENTRIES, request.param)
    replica.sign_all()
    assert len(list(views.policy_heads(replica.store, 1))) > 2
    return replica


def signed(replica: Replica, epoch: int) -> SignedHead:
    return encoding.decode_signed_head(views.signed_head(replica.store, epoch))


def test_a_verifier_replays_it_all(recorded: Replica) -> None:
    store = MemoryStore()
    state = load_state(store, recorded.realm)
    while steps := views.verifier_steps(recorded.store, state.next_index, 1 << 20, STEPS_A_MESSAGE):
        outcome = apply_message(store, recorded.realm, state, encode_page(steps))
        assert outcome.stop is None
        store.write(outcome.writes)
        state = outcome.state
    assert state.chain == recorded.state.chain
    assert state == load_state(store, recorded.realm)


def test_a_client_that_knows_the_realm_file_only_accepts_every_epoch(recorded: Replica) -> None:
    realm, store = recorded.realm, recorded.store
    changes = [encoding.decode_signed_head(raw) for raw in views.policy_heads(store, 1)]
    asked = realm.genesis_policy.quorum
    held: SignedHead | None = None
    for epoch in range(1, recorded.state.signed_epoch + 1):
        policies = epoch_law.policies_until(realm, changes, epoch)
        trust = Trust(realm, policy.succeed(asked, policies), policies[-1])
        head = signed(recorded, epoch)
        lookup.verify_head(trust, head, now_ms=None)
        if held is not None:
            proof = ConsistencyProof(held, head, *views.consistency_parts(store, held.head.epoch, epoch))
            assert verify_consistency(trust, held, proof) == head
        held = head if epoch % 7 == 1 else held
    assert epoch_law.policy_at(realm, changes, limits.MAX_U64) == recorded.state.policy
