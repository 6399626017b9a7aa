"""The prefix tree alone: what a batch of changes costs beside its hashing."""

import random
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from typing import NamedTuple

from bench_measure import CPU, Measured, Plan, median, median_ratio, seconds
from bench_realm import temporary_folder

from kv.leveldb import LevelDBStore
from verifier.merkle import tree

PREFIX = b"T"
SEED = 1
BATCH = 10_000  # of what the tree holds before
PREIMAGE_BYTES = 65  # of a leaf or a node: a tag and two parts of 32 bytes


class Insert(NamedTuple):
    """One repetition."""

    update_s: float
    write_s: float
    hashing_s: float
    hashes: int
    rows: int
    bytes: int


def tree_insert(plan: Plan) -> Iterator[Measured]:
    """A batch of random leaves into trees of several sizes, kept in LevelDB."""
    inserted = plan.size(10_000, 500)
    for existing in (0, 1000, plan.size(100_000, 2000)):
        dice = random.Random(SEED)
        with closing(LevelDBStore(temporary_folder() / "db")) as store:
            version = _fill(store, dice, existing)
            done = [_insert(store, dice, version, inserted) for _ in range(plan.repetitions)]
        per_leaf = [(i.update_s + i.write_s) / inserted for i in done]
        hashing = [insert.hashing_s for insert in done]
        metrics = {
            "leaves_per_s": 1 / median(per_leaf),
            "update_us": 1e6 * median([insert.update_s for insert in done]) / inserted,
            "write_us": 1e6 * median([insert.write_s for insert in done]) / inserted,
            "hashes_per_leaf": median([insert.hashes / inserted for insert in done]),
            "rows_per_leaf": median([insert.rows / inserted for insert in done]),
            "bytes_per_leaf": median([insert.bytes / inserted for insert in done]),
            "ratio_to_hashing": median_ratio([insert.update_s for insert in done], hashing),
            "ratio_with_write": median_ratio([i.update_s + i.write_s for i in done], hashing),
        }
        yield Measured("tree-insert", {"existing": existing, "inserted": inserted, "seed": SEED}, metrics)


def _fill(store: LevelDBStore, dice: random.Random, leaves: int) -> int:
    """A tree of so many random leaves; its version."""
    version = 0
    for first in range(0, leaves, BATCH):
        made = tree.update(store, PREFIX, version, version + 1, _leaves(dice, min(BATCH, leaves - first)))
        store.write(made.writes)
        version = made.root_version
    return version


def _leaves(dice: random.Random, count: int) -> dict[bytes, bytes]:
    return {dice.randbytes(32): dice.randbytes(32) for _ in range(count)}


def _insert(store: LevelDBStore, dice: random.Random, version: int, count: int) -> Insert:
    """Insert into the same tree as every repetition, and hash as much as that needed."""
    changes = _leaves(dice, count)
    made: list[tree.TreeUpdate] = []
    update_s = seconds(lambda: made.append(tree.update(store, PREFIX, version, version + 1, changes)), CPU)
    writes, hashes = made[0].writes, made[0].hashes
    write_s = seconds(lambda: store.write(writes))
    inputs = [dice.randbytes(PREIMAGE_BYTES) for _ in range(hashes)]
    hashing_s = seconds(lambda: [sha256(ready).digest() for ready in inputs], CPU)
    size = sum(len(key) + len(value) for key, value in writes.items())
    return Insert(update_s, write_s, hashing_s, hashes, len(writes), size)
