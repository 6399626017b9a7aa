"""The view that lookups see: which epoch answers which quorum, against a dumb twin, and what a new
signature changes.
"""

import random
from pathlib import Path

import pytest

from keyserver import published
from keyserver.machine import views
from keyserver.machine.rows import encode_ratification
from keyserver.machine.tables import Tables
from keyserver.published import Published
from keyserver.run import Parts, now_ms
from keyserver.testing import Disk, Person, running, small_realm
from kv.keys import u64
from verifier import encoding, policy
from verifier.errors import Reason, Refused
from verifier.types import QuorumExpr

SMALL = small_realm(verifiers=3)
HERE = "ipv4:127.0.0.1"
REPLICA = QuorumExpr(1, (SMALL.replica,))
V = [verifier.key_id for verifier in SMALL.realm.verifiers]


async def grow(parts: Parts, epochs: int) -> None:
    """Epochs with one registration each, which only the replica signs."""
    for number in range(parts.replica.state.signed_epoch, epochs):
        request = Person.named(f"u{number}", SMALL).draft({"ssh": b"1"})
        request.lookup_parameters.quorum_requirement.CopyFrom(encoding.quorum_message(REPLICA))
        await parts.service.update(request.SerializeToString(), HERE)


def sign(parts: Parts, epoch: int, verifier: int) -> None:
    """A verifier's ratification, put where the step would put it."""
    pushed = encoding.decode_signed_head(
        SMALL.ratify(verifier, views.head_at(parts.replica.store, epoch).encoded, now_ms())
    )
    key = Tables.RATIFICATIONS.key(u64(epoch), V[verifier])
    parts.replica.store.write({key: encode_ratification(pushed.ratifications[0])})


def view(parts: Parts) -> Published:
    return Published(SMALL.realm, parts.replica.store, parts.replica.state)


async def test_the_newest_satisfying_epoch_is_that_of_a_dumb_search(
    tmp_path: Path, rng: random.Random
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await grow(parts, 8)
        for epoch in range(1, 9):
            for verifier in range(3):
                if rng.random() < 0.5:
                    sign(parts, epoch, verifier)
        store = parts.replica.store
        times = {epoch: views.head_at(store, epoch).issue_time_ms for epoch in range(1, 9)}
        at = view(parts)  # one for all: what it remembers is right for a clock that is set back, too
        for _ in range(60):
            chosen = rng.sample([SMALL.replica, *V], rng.randint(1, 4))
            quorum = QuorumExpr(rng.randint(1, len(chosen)), tuple(chosen))
            not_before = rng.choice([0, *times.values(), times[8] + 1])
            expected = [
                epoch
                for epoch in range(1, 9)
                if times[epoch] >= not_before and policy.satisfied(quorum, views.signers_at(store, epoch))
            ]
            assert at.newest(quorum, not_before) == max(expected, default=None)


async def test_a_view_is_asked_by_other_threads_while_the_next_one_is_made(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await grow(parts, 3)
        before = view(parts)
        before.signers(1)

        class Meanwhile(set[int]):
            def __contains__(self, epoch: object) -> bool:
                before.signers(2)
                return super().__contains__(epoch)

        after = before.after(parts.replica.state, Meanwhile({3}), listed=False)
        assert after.signers(2) == before.signers(2)


async def test_a_new_signature_is_seen_by_the_next_view_and_only_its_epoch_is_read_again(
    tmp_path: Path,
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await grow(parts, 3)
        before = view(parts)
        quorum = QuorumExpr(1, (V[0],))
        assert before.newest(quorum, 0) is None
        sign(parts, 2, 0)
        assert before.newest(quorum, 0) is None  # a view is of its moment
        after = before.after(parts.replica.state, {2}, listed=False)
        assert after.newest(quorum, 0) == 2
        (shown,) = encoding.decode_signed_head(after.signed_head(2, quorum)).ratifications
        assert [signature.key_id for signature in shown.signatures] == [V[0]]
        assert after.signers(3) is before.signers(3)
        unchanged = after.after(parts.replica.state, (), listed=False)
        assert unchanged.signed_head(2, quorum) is after.signed_head(2, quorum)


async def test_a_lookup_walks_back_no_further_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "LOOKBACK_EPOCHS", 2)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await grow(parts, 4)
        quorum = QuorumExpr(1, (V[0],))
        sign(parts, 2, 0)
        assert view(parts).newest(quorum, 0) is None
        sign(parts, 3, 0)
        assert view(parts).newest(quorum, 0) == 3


async def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "REMEMBERED_HEADS", 4)
    monkeypatch.setattr(published, "REMEMBERED_EPOCHS", 2)
    async with running(SMALL, Disk(tmp_path)) as parts:
        await grow(parts, 4)
        at = view(parts)
        for number in range(20):
            quorum = QuorumExpr(1, (SMALL.replica, number.to_bytes(32, "big")))
            assert at.newest(quorum, 0) == 4
            at.signed_head(4, quorum)
            at.signers(number % 4 + 1)
        assert len(at._heads) <= 4
        assert len(at._newest) <= 4
        assert len(at._epochs) <= 2


async def test_each_refusal_of_a_choice_has_its_reason(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        await grow(parts, 2)
        at = view(parts)
        stranger = QuorumExpr(1, (bytes(32),))
        cases: list[tuple[tuple[QuorumExpr, int, int], Reason]] = [
            ((REPLICA, 3, 0), Reason.NO_SUCH_EPOCH),
            ((REPLICA, 0, 3), Reason.NO_SUCH_EPOCH),
            ((QuorumExpr(1, (V[0],)), 0, 0), Reason.EPOCH_PENDING),
            ((QuorumExpr(1, (V[0],)), 1, 0), Reason.EPOCH_PENDING),
            ((stranger, 0, 0), Reason.QUORUM_UNSATISFIABLE),
        ]
        for arguments, reason in cases:
            with pytest.raises(Refused) as caught:
                at.choose(*arguments, 0)
            assert caught.value.reason is reason
        assert [at.choose(REPLICA, *where, 0) for where in ((0, 0), (0, 2), (1, 0), (2, 1))] == [2, 2, 1, 2]
