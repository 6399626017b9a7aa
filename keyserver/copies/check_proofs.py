"""The rows of the VRF cache: user id, index and proof must fit together under the realm's key.

A row does not say whose it is: its key is a hash of the user id. So rows are kept until the replayed log
names the user. Checking a proof costs some times what replaying an update does, nearly all of it inside the
library and outside the interpreter's lock: it is done in threads beside the replay.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from keyserver.machine.tables import Tables
from keyserver.vrf_cache import cache_key
from kv.interface import Store
from kv.merge import Row
from verifier.crypto import vrf
from verifier.limits import HASH_BYTES, VRF_PROOF_BYTES
from verifier.realm import user_id_alpha
from verifier.types import Realm

ROWS_A_BATCH = 10_000
NAMES_A_TASK = 64
TASKS_WAITING = 1024  # some 20 MiB of rows; then the replay waits for the checks
WORKERS = max(1, (os.cpu_count() or 1) - 1)  # the replay itself needs a core, too

_BROKEN: Final = "the proof does not show that this user id lies at this index"
_UNPROVABLE: Final = "index and proof do not belong together"

Named = tuple[bytes, str, bytes]  # key, user id, row


class IndexProofs:
    """Keeps rows in `scratch` and checks them; leaving the context waits for the last of them."""

    def __init__(
        self,
        realm: Realm,
        scratch: Store,
        fault: Callable[[bytes, str], None],
        workers: int = WORKERS,
    ) -> None:
        """`fault` is told the key of a row and what is wrong with it, in the caller's thread."""
        self._realm = realm
        self._scratch = scratch
        self._fault = fault
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="check")
        self._tasks: deque[Future[list[bytes]]] = deque()
        self._named: dict[bytes, Named] = {}  # of the next task
        self._done: dict[bytes, bytes | None] = {}  # keys to be deleted: their rows are being checked
        self.checked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._start()
                self._collect(down_to=0)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def keep(self, rows: Iterable[Row]) -> None:
        """All rows of the table, before the replay."""
        batch: dict[bytes, bytes | None] = {}
        for key, row in rows:
            self.checked += 1
            batch[key] = row
            if len(batch) == ROWS_A_BATCH:
                self._scratch.write(batch)
                batch = {}
        self._scratch.write(batch)

    def submit(self, user_id: str) -> None:
        """The log names a user: check the row, if there is one and it was not checked before."""
        key = cache_key(user_id)
        if key in self._done:
            return
        row = self._scratch.get(key)
        if row is None:
            return
        self._done[key] = None
        self._named[key] = key, user_id, row
        if len(self._named) == NAMES_A_TASK:
            self._start()
        if len(self._done) == ROWS_A_BATCH:
            self._drop()

    def finish(self) -> None:
        """The log has named everybody. What is left are names that are erased: half a check is possible."""
        self._drop()
        left: dict[bytes, bytes | None] = {}
        for key, row in self._scratch.scan(*Tables.VRF_CACHE.span()):
            left[key] = None
            if not _fits(row):
                self._fault(key, _UNPROVABLE)
        self._scratch.write(left)

    def _drop(self) -> None:
        self._scratch.write(self._done)
        self._done = {}

    def _start(self) -> None:
        named, self._named = list(self._named.values()), {}
        self._tasks.append(self._pool.submit(self._broken, named))
        self._collect(down_to=TASKS_WAITING)

    def _collect(self, *, down_to: int) -> None:
        while len(self._tasks) > down_to:
            for key in self._tasks.popleft().result():
                self._fault(key, _BROKEN)

    def _broken(self, named: list[Named]) -> list[bytes]:
        return [key for key, user_id, row in named if not self._is_proven(user_id, row)]

    def _is_proven(self, user_id: str, row: bytes) -> bool:
        if not user_id.isascii() or len(row) != HASH_BYTES + VRF_PROOF_BYTES:
            return False
        alpha = user_id_alpha(self._realm.name, user_id)
        output = vrf.verify(self._realm.vrf_public_key, alpha, row[HASH_BYTES:])
        return output is not None and vrf.index(output) == row[:HASH_BYTES]


def _fits(row: bytes) -> bool:
    """Whether the proof, if it is one, leads to the index."""
    if len(row) != HASH_BYTES + VRF_PROOF_BYTES:
        return False
    try:
        return vrf.index(vrf.proof_to_hash(row[HASH_BYTES:])) == row[:HASH_BYTES]
    except ValueError:
        return False
