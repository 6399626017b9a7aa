"""What services read: proof parts that verify, the newest epoch for a quorum, pages of the verifier log."""

from collections.abc import Callable
from random import Random

import pytest
from workload.cast import Key, User, derive, policy_of
from workload.replica import Replica

from keyserver.machine import views
from keyserver.machine.codes import Code, Halt
from keyserver.machine.commands import Tick
from keyserver.machine.rows import policy_of_epoch
from keyserver.machine.tables import Tables
from kv.keys import u64
from kv.overlay import Overlay
from verifier import encoding, limits
from verifier.consistency import continues
from verifier.errors import Reason, Refused
from verifier.merkle.proof import root_from_path
from verifier.merkle.tree import PageCache


@pytest.fixture(scope="module")
def history() -> tuple[Replica, list[User]]:
    """Nine epochs; user n registers in epoch n and updates in every third after that."""
    replica = Replica(3)
    replica.admit(replica.verifiers[0])
    users: list[User] = []
    for epoch in range(1, 10):
        for number, user in enumerate(users):
            if (epoch - number) % 3 == 1:
                assert replica.update(user) is Code.APPLIED
        users.append(User.named(f"user {epoch}"))
        assert replica.register(users[-1]) is Code.APPLIED
        replica.close_epoch()
    return replica, users


def test_lookup_parts_prove_presence_and_absence_in_every_epoch(
    history: tuple[Replica, list[User]],
) -> None:
    replica, users = history
    cache = PageCache()
    for epoch in range(1, 10):
        root = replica.head(epoch).root_hash
        for number, user in enumerate(users):
            parts = views.lookup_parts(replica.store, user.index, epoch, cache)
            if number >= epoch:
                leaf = parts.existing
                assert (parts.entry, parts.profile, parts.nonce) == (b"", b"", b"")
            else:
                entry = encoding.decode_entry(parts.entry)
                assert entry.version == (epoch - number - 1) // 3
                assert parts.profile
                assert len(parts.nonce) == limits.NONCE_BYTES
                leaf = (user.index, entry.hash)
            assert root_from_path(user.index, leaf, parts.neighbors) == root


def test_an_erased_profile_leaves_the_entry(history: tuple[Replica, list[User]]) -> None:
    replica, users = history
    erased = Overlay(replica.store)
    erased.put(Tables.PROFILES.key(users[0].index, u64(1)), None)
    parts = views.lookup_parts(erased, users[0].index, 1)
    assert parts.entry
    assert (parts.profile, parts.nonce) == (b"", b"")


def test_tree_and_tables_that_contradict_each_other_halt(history: tuple[Replica, list[User]]) -> None:
    replica, users = history
    lost, invented = Overlay(replica.store), Overlay(replica.store)
    lost.put(Tables.CURRENT.key(users[0].index), None)
    row = replica.store.get(Tables.CURRENT.key(users[8].index))
    invented.put(Tables.CURRENT.key(derive("nobody")), row)
    for rows, index in ((lost, users[0].index), (invented, derive("nobody"))):
        with pytest.raises(Halt):
            views.lookup_parts(rows, index, 9)


def test_consistency_parts_connect_every_pair_of_heads(history: tuple[Replica, list[User]]) -> None:
    replica, _ = history
    for old in range(1, 10):
        for new in range(old, 10):
            inclusion, consistency = views.consistency_parts(replica.store, old, new)
            assert continues(replica.head(old), replica.head(new), inclusion, consistency)


@pytest.mark.parametrize(("old", "new"), [(0, 1), (0, 0), (3, 2)])
def test_consistency_parts_of_no_such_pair_are_refused(
    history: tuple[Replica, list[User]], old: int, new: int
) -> None:
    with pytest.raises(Refused) as raised:
        views.consistency_parts(history[0].store, old, new)
    assert raised.value.reason is Reason.NO_SUCH_EPOCH


def test_entries_of_an_index_by_epoch(history: tuple[Replica, list[User]]) -> None:
    replica, users = history
    assert views.entry_at(replica.store, derive("nobody"), 9) is None
    assert views.entry_at(replica.store, users[3].index, 3) is None
    versions = [views.entry_at(replica.store, users[3].index, epoch) for epoch in range(4, 10)]
    assert [at.since_epoch for at in versions if at is not None] == [4, 4, 4, 7, 7, 7]
    current = views.current_entry(replica.store, users[3].index)
    assert current is not None
    assert current.since_epoch == 7
    assert not views.is_pending(replica.store, users[3].index)


def test_the_newest_epoch_a_verifier_ratified() -> None:
    replica = Replica()
    verifier = replica.verifiers[0]
    replica.admit(verifier)
    for _ in range(4):
        replica.close_epoch()
    assert views.newest_ratified(replica.store, verifier.id) == 0
    for epoch in (1, 3):
        replica.run(replica.ratification(verifier, replica.head(epoch).encoded))
    assert views.newest_ratified(replica.store, verifier.id) == 3
    assert views.newest_ratified(replica.store, replica.replicas[0].id) == 0


def test_a_signed_head_carries_only_wanted_signatures() -> None:
    replica = Replica(3, 3)
    for verifier in replica.verifiers:
        replica.admit(verifier)
    replica.close_epoch()
    for verifier in replica.verifiers:
        replica.run(replica.ratification(verifier))
    some = {replica.replicas[1].id, replica.verifiers[2].id}
    for wanted in (None, some, {derive("nobody")}, set[bytes]()):
        signed = encoding.decode_signed_head(views.signed_head(replica.store, 1, wanted))
        signers = [made.key_id for given in signed.ratifications for made in given.signatures]
        everybody = sorted(key.id for key in replica.replicas) + sorted(key.id for key in replica.verifiers)
        assert signers == [key for key in everybody if wanted is None or key in wanted]


def test_a_signed_head_has_at_most_64_signatures() -> None:
    replica = Replica(3)
    verifiers = [Key("many", number) for number in range(63)]
    for verifier in verifiers:
        replica.admit(verifier)
    replica.close_epoch()
    for verifier in verifiers:
        assert replica.run(replica.ratification(verifier)) == (Code.APPLIED,)
    signed = encoding.decode_signed_head(views.signed_head(replica.store, 1))
    assert sum(len(made.signatures) for made in signed.ratifications) == limits.RATIFICATIONS_PER_HEAD


def test_the_verifier_log_is_read_in_pages(
    history: tuple[Replica, list[User]], rng: Random, count: Callable[[int], int]
) -> None:
    replica, _ = history
    every = views.verifier_steps(replica.store, 1, 2**30, 2**30)
    assert len(every) == replica.state.verifier_log_size
    assert views.verifier_steps(replica.store, 0, 2**30, 2**30) == every
    assert views.verifier_steps(replica.store, len(every) + 1, 2**30, 2**30) == []
    assert views.verifier_steps(replica.store, 1, 0, 5) == every[:1]
    for _ in range(count(50)):
        start, size, steps = rng.randint(1, len(every)), rng.randint(1, 5000), rng.randint(1, 9)
        page = views.verifier_steps(replica.store, start, size, steps)
        assert page == every[start - 1 :][: len(page)]
        bytes_used = sum(len(step) + views.STEP_FRAME_BYTES for step in page)
        assert len(page) == 1 or bytes_used <= size
        assert len(page) <= steps


def test_no_head_has_changed_the_policy_yet(history: tuple[Replica, list[User]]) -> None:
    assert list(views.policy_heads(history[0].store, 0)) == []


def test_the_policy_of_an_epoch_is_what_the_newest_head_before_it_introduced(
    history: tuple[Replica, list[User]],
) -> None:
    replica, _ = history
    genesis, second, third = (policy_of([Key("policy", number)]) for number in range(3))
    rows = Overlay(replica.store)
    for epoch, introduced in ((3, second), (7, third)):
        rows.put(Tables.POLICY_HEADS.key(u64(epoch)), introduced.encoded)
    laws = [policy_of_epoch(rows, genesis, epoch) for epoch in range(1, 10)]
    assert laws == [genesis] * 3 + [second] * 4 + [third] * 2
    for start, epochs in ((0, [3, 7]), (3, [3, 7]), (4, [7]), (8, [])):
        heads = [encoding.decode_signed_head(one) for one in views.policy_heads(rows, start)]
        assert [one.head.epoch for one in heads] == epochs
    asked: list[bytes] = []
    heads_one_by_one = views.policy_heads(Watched(rows, asked), 1)
    assert asked == []
    next(heads_one_by_one)  # a slow reader of many holds one
    assert Tables.HEADS.key(u64(3)) in asked
    assert Tables.HEADS.key(u64(7)) not in asked


class Watched(Overlay):
    """Rows that tell which keys are read."""

    def __init__(self, rows: Overlay, asked: list[bytes]) -> None:
        super().__init__(rows)
        self._asked = asked

    def get(self, key: bytes) -> bytes | None:
        self._asked.append(key)
        return super().get(key)


def test_views_of_an_empty_store() -> None:
    replica = Replica()
    replica.run(Tick())
    assert views.verifiers(replica.store) == {}
    assert views.verifier_steps(replica.store, 1, 1, 1) == []
    with pytest.raises(Halt):
        views.signed_head(replica.store, 1)
