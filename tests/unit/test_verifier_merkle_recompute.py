"""All pages of a prefix tree, hashed again: equal roots, and no spoiled page goes unseen."""

from collections.abc import Callable
from random import Random

import pytest
from kept.plants import ROW_KINDS

from kv.memory import MemoryStore
from verifier.merkle import tree
from verifier.merkle.proof import EMPTY_ROOT
from verifier.merkle.recompute import Pages, recompute

PREFIX = b"t"
EPOCHS = 40


@pytest.fixture
def grown(rng: Random) -> tuple[dict[bytes, bytes], list[bytes]]:
    """The rows of a tree and its root after each epoch, from 0 on."""
    store, version, roots, indices = MemoryStore(), 0, [EMPTY_ROOT], [bytes(32)]
    for epoch in range(1, EPOCHS + 1):
        changes = {}
        for _ in range(rng.choice((0, 1, 3, 60))):
            index = rng.randbytes(32) if rng.random() < 0.7 else rng.choice(indices)
            near = index[:-1] + bytes((index[-1] ^ 1,))  # shares 255 bits
            changes[index if rng.random() < 0.9 else near] = rng.randbytes(32)
        indices += changes
        update = tree.update(store, PREFIX, version, epoch, changes)
        store.write(update.writes)
        version = update.root_version
        roots.append(update.root)
    return dict(store.scan(PREFIX, b"u")), roots


def pages_of(rows: dict[bytes, bytes]) -> Pages:
    store = MemoryStore()
    store.write(rows)
    return recompute(store, PREFIX)


def roots_of(pages: Pages) -> list[bytes]:
    versions = (max((v for v in pages.roots if v <= epoch), default=0) for epoch in range(EPOCHS + 1))
    return [pages.roots[version] if version else EMPTY_ROOT for version in versions]


def test_gives_the_root_of_every_epoch(grown: tuple[dict[bytes, bytes], list[bytes]]) -> None:
    rows, roots = grown
    pages = pages_of(rows)
    assert pages.faults == []
    assert roots_of(pages) == roots


def test_the_empty_tree_has_no_pages() -> None:
    assert pages_of({}) == Pages()


def test_sees_every_spoiled_page(
    grown: tuple[dict[bytes, bytes], list[bytes]], rng: Random, count: Callable[[int], int]
) -> None:
    rows, roots = grown
    for _ in range(count(20)):
        for spoil in ROW_KINDS:
            spoiled = dict(rows)
            if spoil(rng, spoiled, PREFIX):
                pages = pages_of(spoiled)
                assert pages.faults or roots_of(pages) != roots, spoil.__name__
