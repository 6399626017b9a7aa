"""No clock of a minority can post-date an epoch: heads are issued in time that has come, in rising order, and
at least the least interval apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keyserver.machine import notices, views
from simulator.checkers import Checker
from simulator.process import EPOCHS
from simulator.world import Violation
from verifier import limits

if TYPE_CHECKING:
    from keyserver.machine.state import Position
    from keyserver.replica import Batch
    from replication.types import LogEntry
    from simulator.replica import ReplicaSite


class Times(Checker):
    name = "times"

    def applied(self, site: ReplicaSite, before: Position, entries: Sequence[LogEntry], batch: Batch) -> None:
        process = site.process
        assert process is not None
        for notice in batch.notices:
            if isinstance(notice, notices.HeadComposed) and not site.tainted:
                issued = views.head_at(process.store, notice.epoch).issue_time_ms
                now = site.clock.true_ms()
                if issued > now + limits.DELIMITER_DRIFT_MS:
                    raise Violation(self.name, f"epoch {notice.epoch} was issued {issued - now} ms ahead")
                earlier = views.head_at(process.store, notice.epoch - 1) if notice.epoch > 1 else None
                if earlier and issued < earlier.issue_time_ms + EPOCHS.min_interval_ms:
                    raise Violation(self.name, f"epoch {notice.epoch} came too early")
