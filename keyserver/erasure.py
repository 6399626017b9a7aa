"""The blanker: pays the duties of erasure, on this replica's own disk.

The step deleted the private rows and noted which private parts of the log hold the same. Here these are
blanked, and the files of log and database purged of what was deleted. A duty ends AFTER that: a crash at any
moment leaves it standing, and all of it may safely be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from keyserver.machine.erasure import OweBlanking, owed_blankings, without_parts
from keyserver.replica import Replica
from kv import crash_points
from replication.interface import ReplicatedLog

DUTIES_AT_ONCE = 64  # each rewrites files under its rows; more of them at once would hold up the next
REST_S = 1.0  # between payments: duties that come together are paid together
READERS_REST_S = 10.0  # after an attempt in vain: a backup takes minutes, and each attempt rewrites files


class Blanker:
    """Works beside the run loop of one replica, for ever."""

    def __init__(
        self, replica: Replica, log: ReplicatedLog, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        """`may_write` is False while there is no room on the disk to rewrite anything."""
        self._replica = replica
        self._log = log
        self._may_write = may_write
        self._logger = structlog.get_logger("erasure")

    async def run(self) -> None:
        """Pay what is owed, whenever something is. Raises Halt and StorageError."""
        while True:
            turn = self._replica.applied.turn()  # BEFORE looking: what is written meanwhile wakes us at once
            owed = owed_blankings(self._replica.store, DUTIES_AT_ONCE)
            self._replica.metrics.set("blanking", len(owed))
            if not owed or not self._may_write():
                await turn.wait()
                continue
            if await self.pay(owed):
                await trio.sleep(REST_S)
            else:
                self._logger.warning("erasure waits for readers of the erased", entries=len(owed))
                await trio.sleep(READERS_REST_S)

    async def pay(self, owed: Sequence[OweBlanking]) -> bool:
        """Blank, purge, and end the duties; False if somebody still reads what should be purged."""
        for one in owed:
            await self._blank(one)
            crash_points.reach("E1")
        rows = sorted(frozenset[bytes]().union(*(one.deleted for one in owed)))
        if not await self._log.compact([one.log_index for one in owed]):
            return False
        crash_points.reach("E2")
        if not await trio.to_thread.run_sync(self._replica.store.compact, rows):
            return False
        crash_points.reach("E3")
        await self._replica.write_beside({duty: None for one in owed for duty in sorted(one.duties)})
        self._logger.info("private parts erased", entries=len(owed), rows=len(rows))
        return True

    async def _blank(self, one: OweBlanking) -> None:
        read = self._log.read
        [entry] = await trio.to_thread.run_sync(read, one.log_index, one.log_index + 1, 1)
        payload = without_parts(entry.payload, one.parts)
        if payload != entry.payload:
            await self._log.rewrite_private(one.log_index, payload)
