"""Where a user id lies in the tree, with the proof of it: computed once, then remembered.

The VRF is a pure function of the user id and costs more than the rest of a lookup. Registered names are
kept in a private table; others in bounded memory, because strangers choose them. Computing for strangers is
rate-limited by address. Used from any thread; rows are handed to the run loop, which alone writes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from keyserver.machine.codes import invariant
from keyserver.machine.rows import vrf_cache_key
from keyserver.rate_limits import Buckets, Limits
from kv.interface import Reader
from verifier.limits import HASH_BYTES, VRF_PROOF_BYTES

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

NAMES_REMEMBERED = 65_536  # with keys and bookkeeping some 40 MiB
ROWS_OWED = 10_000  # beyond it new rows are forgotten: they are only a cache

Prove = Callable[[str], tuple[bytes, bytes]]
IndexProof = tuple[bytes, bytes]


class Recent(Generic[K, V]):
    """The most recently used pairs, at most `capacity`. Not for several threads at once."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._pairs: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, key: K) -> V | None:
        value = self._pairs.get(key)
        if value is not None:
            self._pairs.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self._pairs[key] = value
        self._pairs.move_to_end(key)
        if len(self._pairs) > self._capacity:
            self._pairs.popitem(last=False)


class VrfCache:
    """Index (32 bytes) and proof (80 bytes) by user id."""

    def __init__(
        self,
        reader: Reader,
        prove: Prove,
        *,
        limiter: Buckets[str] | None = None,
        capacity: int = NAMES_REMEMBERED,
        observe: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._reader = reader
        self._prove = prove
        self._limiter = Buckets(Limits().peer_unknown_names, "too many names") if limiter is None else limiter
        self._observe = observe  # told where each answer came from
        self._memory: Recent[str, IndexProof] = Recent(capacity)
        self._kept: Recent[str, bool] = Recent(capacity)  # names known to have a row, or one that is owed
        self._owed: dict[str, IndexProof] = {}
        self._lock = threading.Lock()

    def recall(self, user_id: str) -> IndexProof | None:
        """Index and proof of a checked user id, unless they must be computed. Raises StorageError."""
        with self._lock:
            found = self._memory.get(user_id)
        if found is not None:
            self._observe("memory")
            return found
        row = self._reader.get(cache_key(user_id))
        if row is None:
            return None
        self._observe("table")
        found = _decode(row)
        with self._lock:
            self._memory.put(user_id, found)
            self._kept.put(user_id, True)
        return found

    def locate(self, user_id: str, address: str | None) -> IndexProof:
        """Index and proof of a checked user id. Raises Refused (RATE_LIMITED), StorageError.

        `address` None: whoever asks was limited already, here or by another replica.
        """
        found = self.recall(user_id)
        if found is not None:
            return found
        if address is not None:
            self._limiter.take(address)
        return self.compute(user_id)

    def compute(self, user_id: str) -> IndexProof:
        """Index and proof of a name that was not recalled, from now on remembered."""
        found = self._prove(user_id)
        self._observe("computed")
        with self._lock:
            self._memory.put(user_id, found)
        return found

    def keep(self, user_id: str, found: IndexProof) -> None:
        """The name is registered: owe its row to the table."""
        with self._lock:
            if self._kept.get(user_id):
                return
        is_new = self._reader.get(cache_key(user_id)) is None
        with self._lock:
            if is_new and len(self._owed) < ROWS_OWED:
                self._owed[user_id] = found
            self._kept.put(user_id, True)

    def take_rows(self) -> dict[bytes, bytes]:
        """The rows owed, for the run loop to write beside its next batch."""
        with self._lock:
            owed, self._owed = self._owed, {}
        return {cache_key(user_id): index + proof for user_id, (index, proof) in owed.items()}


def cache_key(user_id: str) -> bytes:
    """The key of a name's row."""
    return vrf_cache_key(user_id)


def _decode(row: bytes) -> IndexProof:
    invariant(len(row) == HASH_BYTES + VRF_PROOF_BYTES, "a row of the VRF cache is an index and a proof")
    return row[:HASH_BYTES], row[HASH_BYTES:]
