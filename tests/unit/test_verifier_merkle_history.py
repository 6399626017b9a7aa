"""RFC 6962 proofs against published vectors; rows, and the refusing side of each verification."""

import json
from pathlib import Path
from typing import Any

import pytest

from kv.interface import StorageError
from kv.memory import MemoryStore
from verifier.merkle import history

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "vectors" / "rfc6962.json").read_text())
# The vectors' library refuses to prove anything about the empty tree; the contract's first head needs it.
FROM_NOTHING = "additional/size1-is-zero-and-size2-is-not-zero"
LEAVES = [bytes.fromhex(leaf) for leaf in VECTORS["tree"]["leaves"]]


def grown(leaves: list[bytes]) -> MemoryStore:
    store = MemoryStore()
    for number, leaf in enumerate(leaves):
        store.write(history.append(store, b"h", number, leaf))
    return store


STORE = grown(LEAVES)


def hexed(nodes: list[str]) -> list[bytes]:
    return [bytes.fromhex(node) for node in nodes]


@pytest.mark.parametrize("case", VECTORS["inclusion"], ids=lambda case: case["name"])
def test_published_inclusion_proofs(case: dict[str, Any]) -> None:
    leaf_hash, root = hexed([case["leaf_hash"], case["root"]])
    path = hexed(case["path"])
    verdict = history.verify_inclusion_of_hash(leaf_hash, case["index"], case["size"], path, root)
    assert verdict is case["valid"]


@pytest.mark.parametrize("case", VECTORS["consistency"], ids=lambda case: case["name"])
def test_published_consistency_proofs(case: dict[str, Any]) -> None:
    old_root, new_root = hexed([case["old_root"], case["new_root"]])
    verdict = history.verify_consistency(case["old"], case["new"], old_root, new_root, hexed(case["proof"]))
    assert verdict is (case["valid"] or case["name"] == FROM_NOTHING)


def test_published_roots_and_the_paths_behind_the_proofs() -> None:
    assert history.EMPTY_ROOT.hex() == history.root(STORE, b"h", 0).hex() == VECTORS["tree"]["root_of_0"]
    assert history.root(STORE, b"h", 8).hex() == VECTORS["tree"]["root_of_8"]
    for case in VECTORS["inclusion"]:
        if case["valid"] and case["size"] in (3, 5, 8):
            path = history.inclusion(STORE, b"h", case["index"], case["size"])
            assert path == tuple(hexed(case["path"]))
    for case in VECTORS["consistency"]:
        if case["valid"] and 0 < case["old"] <= case["new"] <= 8 and case["new_root"] != case["old_root"]:
            proof = history.consistency(STORE, b"h", case["old"], case["new"])
            assert proof == tuple(hexed(case["proof"]))


def test_rows_are_complete_subtrees_and_never_rewritten() -> None:
    store, count = MemoryStore(), 0
    for number in range(64):
        rows = history.append(store, b"h", number, b"leaf %d" % number)
        assert all(store.get(key) is None for key in rows)
        store.write(rows)
        count += len(rows)
    assert count == 127


def test_paths_have_exactly_the_length_of_their_place() -> None:
    path = history.inclusion(STORE, b"h", 5, 8)
    root = history.root(STORE, b"h", 8)
    assert history.verify_inclusion(LEAVES[5], 5, 8, path, root)
    assert not history.verify_inclusion(LEAVES[5], 5, 8, path[:-1], root)
    assert not history.verify_inclusion(LEAVES[5], 5, 8, (*path, bytes(32)), root)
    assert not history.verify_inclusion(LEAVES[5], 5, 8, (*path[:-1], path[-1][:31]), root)
    assert not history.verify_inclusion(LEAVES[4], 5, 8, path, root)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 1), (1, 1), (8, 8), (2**64, 2**64 + 1)])
def test_places_that_do_not_exist_are_refused(index: int, size: int) -> None:
    assert not history.verify_inclusion(b"", index, size, [], history.leaf_hash(b""))
    if size <= 8:
        with pytest.raises(ValueError):
            history.inclusion(STORE, b"h", index, size)


@pytest.mark.parametrize(("old", "new"), [(-1, 3), (3, 2), (1, 0)])
def test_a_tree_does_not_shrink(old: int, new: int) -> None:
    assert not history.verify_consistency(old, new, history.EMPTY_ROOT, history.EMPTY_ROOT, [])
    with pytest.raises(ValueError):
        history.consistency(STORE, b"h", old, new)


def test_consistency_from_nothing_and_with_itself() -> None:
    root = history.root(STORE, b"h", 5)
    assert history.consistency(STORE, b"h", 0, 5) == ()
    assert history.verify_consistency(0, 5, history.EMPTY_ROOT, root, [])
    assert not history.verify_consistency(0, 5, root, root, [])
    assert not history.verify_consistency(0, 0, history.EMPTY_ROOT, root, [])
    assert history.verify_consistency(5, 5, root, root, [])
    assert not history.verify_consistency(5, 5, root, root, [root])
    assert not history.verify_consistency(3, 5, history.root(STORE, b"h", 3), root, [])


def test_a_frontier_needs_its_peaks() -> None:
    frontier = history.frontier(STORE, b"h", 5)
    assert len(frontier.peaks) == 2
    assert history.Frontier(frontier.size, frontier.peaks) == frontier
    for size, peaks in (
        (4, frontier.peaks),
        (5, frontier.peaks[:1]),
        (-1, ()),
        (1, (b"short",)),
        (2**64, (bytes(32),)),
    ):
        with pytest.raises(ValueError):
            history.Frontier(size, peaks)


@pytest.mark.parametrize("row", [None, b"", bytes(31), bytes(33)])
def test_a_missing_or_damaged_row_is_corruption(row: bytes | None) -> None:
    store = grown(LEAVES)
    store.write({b"h\x01" + (2).to_bytes(8, "big"): row})  # The subtree of leaves 4 and 5.
    for attempt in (
        lambda: history.root(store, b"h", 6),
        lambda: history.frontier(store, b"h", 6),
        lambda: history.inclusion(store, b"h", 0, 6),
        lambda: history.consistency(store, b"h", 4, 6),
        lambda: history.append(store, b"h", 7, b"leaf"),
    ):
        with pytest.raises(history.HistoryCorrupt):
            attempt()
    assert issubclass(history.HistoryCorrupt, StorageError)
