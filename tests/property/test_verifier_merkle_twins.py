"""The trees against dumb twins: a dictionary with plain recursion, and RFC 6962 read line by line."""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.memory import MemoryStore
from verifier.errors import VerificationError
from verifier.merkle import history, tree
from verifier.merkle.proof import EMPTY_ROOT, root_from_path

PREFIX = b"tree/"

# ---- prefix tree -------------------------------------------------------------------------------------------


def bit(index: bytes, depth: int) -> int:
    return index[depth // 8] >> (7 - depth % 8) & 1


def halves(leaves: Mapping[bytes, bytes], depth: int) -> list[dict[bytes, bytes]]:
    return [{i: e for i, e in leaves.items() if bit(i, depth) == side} for side in (0, 1)]


def twin_root(leaves: Mapping[bytes, bytes], depth: int = 0) -> bytes:
    if not leaves:
        return bytes(32)
    if len(leaves) == 1:
        [(index, entry_hash)] = leaves.items()
        return sha256(b"\x02" + index + entry_hash).digest()
    left, right = halves(leaves, depth)
    return sha256(b"\x03" + twin_root(left, depth + 1) + twin_root(right, depth + 1)).digest()


def twin_path(leaves: Mapping[bytes, bytes], index: bytes) -> tuple[list[bytes], tuple[bytes, bytes] | None]:
    neighbors, depth = [], 0
    rest = dict(leaves)
    while len(rest) > 1:
        sides = halves(rest, depth)
        other = sides[1 - bit(index, depth)]
        neighbors.append(twin_root(other, depth + 1) if other else b"")
        rest, depth = sides[bit(index, depth)], depth + 1
    return neighbors, next(iter(rest.items()), None)


def twin_hashes(leaves: Mapping[bytes, bytes], changed: set[bytes], depth: int = 0) -> int:
    """Nodes with a changed leaf below them: what one batch has to hash."""
    if not changed & leaves.keys():
        return 0
    if len(leaves) == 1:
        return 1
    return 1 + sum(twin_hashes(side, changed, depth + 1) for side in halves(leaves, depth))


# Indices that share long prefixes: a few bases with some bits turned, so that leaves part at every depth.
bases = st.sampled_from([bytes(32), b"\xff" * 32, b"\xa5" * 32])
turned = st.lists(st.integers(0, 255), max_size=3)


@st.composite
def near_indices(draw: st.DrawFn) -> bytes:
    number = int.from_bytes(draw(bases), "big")
    for position in draw(turned):
        number ^= 1 << position
    return number.to_bytes(32, "big")


indices = near_indices() | st.binary(min_size=32, max_size=32)
entry_hashes = st.binary(min_size=32, max_size=32)
batches = st.lists(st.dictionaries(indices, entry_hashes, max_size=12), max_size=5)


def apply_batch(store: MemoryStore, version: int, new: int, batch: Mapping[bytes, bytes]) -> tree.TreeUpdate:
    applied = tree.update(store, PREFIX, version, new, batch)
    assert all(store.get(key) is None for key in applied.writes), "a page was rewritten"
    store.write(applied.writes)
    return applied


@settings(max_examples=60, deadline=None, print_blob=True)
@given(batches=batches, absent=st.lists(indices, max_size=4))
def test_every_version_equals_the_twin(batches: list[dict[bytes, bytes]], absent: list[bytes]) -> None:
    store, version, leaves = MemoryStore(), 0, dict[bytes, bytes]()
    versions: list[tuple[int, dict[bytes, bytes]]] = [(0, {})]
    for number, batch in enumerate(batches, start=1):
        leaves |= batch
        applied = apply_batch(store, version, 3 * number, batch)
        assert applied.root == twin_root(leaves)
        assert applied.hashes == (twin_hashes(leaves, set(batch)) if batch else 0)
        assert applied.root_version == (3 * number if batch else version)
        version = applied.root_version
        versions.append((version, dict(leaves)))
    cache = tree.PageCache(pages_max=3)
    for old_version, known in versions:
        assert tree.root(store, PREFIX, old_version) == twin_root(known)
        assert [*tree.leaves(store, PREFIX, old_version)] == sorted(known.items())
        for index in [*leaves, *absent]:
            neighbors, leaf = twin_path(known, index)
            path = tree.lookup(store, PREFIX, old_version, index)
            assert (list(path.neighbors), path.leaf) == (neighbors, leaf)
            assert tree.lookup(store, PREFIX, old_version, index, cache) == path
            assert root_from_path(index, path.leaf, path.neighbors) == twin_root(known)


@settings(max_examples=60, deadline=None, print_blob=True)
@given(
    first=st.dictionaries(indices, entry_hashes, max_size=30),
    second=st.dictionaries(indices, entry_hashes, min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_changes_does_not_matter(
    first: dict[bytes, bytes], second: dict[bytes, bytes], order: random.Random
) -> None:
    store = MemoryStore()
    version = apply_batch(store, 0, 1, first).root_version
    items = [*second.items()]
    order.shuffle(items)
    straight, shuffled = (tree.update(store, PREFIX, version, 2, batch) for batch in (second, dict(items)))
    assert straight == shuffled
    assert tree.update(MemoryStore(), PREFIX, 0, 2, {**first, **second}).root == straight.root


@settings(max_examples=300, deadline=None, print_blob=True)
@given(leaves=st.dictionaries(indices, entry_hashes, min_size=1, max_size=25), data=st.data())
def test_a_changed_path_gives_another_root_or_is_refused(
    leaves: dict[bytes, bytes], data: st.DataObject
) -> None:
    store = MemoryStore()
    applied = apply_batch(store, 0, 1, leaves)
    index = data.draw(st.sampled_from(sorted(leaves)) | indices)
    path = tree.lookup(store, PREFIX, 1, index)
    neighbors, leaf = list(path.neighbors), path.leaf
    kinds = (
        ["drop", "add"]
        + (["turn", "swap", "empty", "zeros"] if neighbors else [])
        + (["leaf"] if leaf else [])
    )
    kind = data.draw(st.sampled_from(kinds))
    at = data.draw(st.integers(0, max(len(neighbors) - 1, 0)))
    if kind == "drop":
        neighbors = neighbors[:at]
    elif kind == "add":
        neighbors.insert(at, data.draw(st.just(b"") | entry_hashes))
    elif kind == "turn":
        turned = bytearray(neighbors[at] or bytes(32))
        turned[data.draw(st.integers(0, 31))] ^= data.draw(st.integers(1, 255))
        neighbors[at] = bytes(turned)
    elif kind == "swap":
        other = data.draw(st.integers(0, len(neighbors) - 1))
        neighbors[at], neighbors[other] = neighbors[other], neighbors[at]
    elif kind == "empty":
        neighbors[at] = b""
    elif kind == "zeros":
        neighbors[at] = EMPTY_ROOT
    elif leaf:
        leaf = data.draw(st.sampled_from([None, (leaf[0], bytes(32)), (leaf[1], leaf[0])]))
    if (neighbors, leaf) == (list(path.neighbors), path.leaf):
        return
    with suppress(VerificationError):
        assert root_from_path(index, leaf, neighbors) != applied.root


@settings(max_examples=400, deadline=None, print_blob=True)
@given(leaves=st.dictionaries(indices, entry_hashes, min_size=2, max_size=40), data=st.data())
def test_a_damaged_page_is_a_value_or_tree_corrupt(leaves: dict[bytes, bytes], data: st.DataObject) -> None:
    store = MemoryStore()
    writes = apply_batch(store, 0, 1, leaves).writes
    key = data.draw(st.sampled_from(sorted(writes)))
    page = bytearray(writes[key])
    near_kinds = st.integers(0, min(len(page), 130) - 1)
    for at in data.draw(st.lists(near_kinds | st.integers(0, len(page) - 1), min_size=1, max_size=3)):
        page[at] = data.draw(st.integers(0, 3) | st.integers(0, 255))
    del page[data.draw(st.just(len(page)) | st.integers(0, len(page))) :]
    store.write({key: bytes(page)})
    for index in leaves:
        with suppress(tree.TreeCorrupt):
            tree.lookup(store, PREFIX, 1, index)
    for attempt in (
        lambda: [*tree.leaves(store, PREFIX, 1)],
        lambda: tree.root(store, PREFIX, 1),
        lambda: tree.update(store, PREFIX, 1, 2, {index: bytes(32) for index in leaves}),
    ):
        with suppress(tree.TreeCorrupt):
            attempt()


# ---- RFC 6962 ----------------------------------------------------------------------------------------------


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(d: Sequence[bytes]) -> bytes:
    if not d:
        return sha256(b"").digest()
    if len(d) == 1:
        return sha256(b"\x00" + d[0]).digest()
    k = split(len(d))
    return sha256(b"\x01" + mth(d[:k]) + mth(d[k:])).digest()


def twin_inclusion(m: int, d: Sequence[bytes]) -> list[bytes]:
    if len(d) == 1:
        return []
    k = split(len(d))
    if m < k:
        return [*twin_inclusion(m, d[:k]), mth(d[k:])]
    return [*twin_inclusion(m - k, d[k:]), mth(d[:k])]


def subproof(m: int, d: Sequence[bytes], complete: bool) -> list[bytes]:
    if m == len(d):
        return [] if complete else [mth(d)]
    k = split(len(d))
    if m <= k:
        return [*subproof(m, d[:k], complete), mth(d[k:])]
    return [*subproof(m - k, d[k:], False), mth(d[:k])]


def leaf_of(number: int) -> bytes:
    return b"head %d" % number


def grown(size: int) -> MemoryStore:
    store = MemoryStore()
    for number in range(size):
        store.write(history.append(store, b"h", number, leaf_of(number)))
    return store


SIZE = 70
STORE = grown(SIZE)
LEAVES = [leaf_of(number) for number in range(SIZE)]


def test_roots_frontiers_and_appends_equal_the_twin_at_every_size() -> None:
    frontier = history.Frontier()
    for size in range(SIZE + 1):
        assert history.root(STORE, b"h", size) == mth(LEAVES[:size]) == frontier.root()
        assert history.frontier(STORE, b"h", size) == frontier
        if size < SIZE:
            frontier = frontier.append(LEAVES[size])


@settings(max_examples=200, deadline=None, print_blob=True)
@given(size=st.integers(1, SIZE), data=st.data())
def test_inclusion_equals_the_twin_and_verifies(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    path = history.inclusion(STORE, b"h", index, size)
    assert list(path) == twin_inclusion(index, LEAVES[:size])
    root = mth(LEAVES[:size])
    assert history.verify_inclusion(LEAVES[index], index, size, path, root)
    other_index, other_size = data.draw(st.integers(-1, SIZE + 1)), data.draw(st.integers(-1, SIZE + 1))
    if other_index != index:
        assert not history.verify_inclusion(LEAVES[index], other_index, size, path, root)
    # The size alone may change without changing path or root; with the right root it is another tree.
    if 0 <= other_size <= SIZE and other_size != size:
        assert not history.verify_inclusion(LEAVES[index], index, other_size, path, mth(LEAVES[:other_size]))


@settings(max_examples=200, deadline=None, print_blob=True)
@given(sizes=st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted), data=st.data())
def test_consistency_equals_the_twin_and_verifies(sizes: list[int], data: st.DataObject) -> None:
    old, new = sizes
    proof = history.consistency(STORE, b"h", old, new)
    assert list(proof) == (subproof(old, LEAVES[:new], True) if old else [])
    old_root, new_root = mth(LEAVES[:old]), mth(LEAVES[:new])
    assert history.verify_consistency(old, new, old_root, new_root, proof)
    assert not history.verify_consistency(old, new, old_root, new_root, [*proof, bytes(32)])
    assert not history.verify_consistency(old, new, bytes(32), new_root, proof)
    if old:
        assert not history.verify_consistency(old, new, old_root, bytes(32), proof)
    if proof:
        assert not history.verify_consistency(old, new, old_root, new_root, proof[:-1])
        at = data.draw(st.integers(0, len(proof) - 1))
        changed = [*proof]
        changed[at] = bytes((changed[at][0] ^ 1,)) + changed[at][1:]
        assert not history.verify_consistency(old, new, old_root, new_root, changed)


@pytest.mark.parametrize("old", range(1, 24))
def test_no_fork_is_consistent(old: int) -> None:
    """A tree that differs in one old leaf has no proof that our proof of the honest tree could be."""
    for changed in range(old):
        forked = [*LEAVES[:changed], b"other", *LEAVES[changed + 1 :]]
        proof = history.consistency(STORE, b"h", old, 24)
        assert not history.verify_consistency(old, 24, mth(forked[:old]), mth(LEAVES[:24]), proof)
        assert not history.verify_consistency(old, 24, mth(LEAVES[:old]), mth(forked[:24]), proof)
