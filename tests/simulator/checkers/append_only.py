"""History only grows: a head once composed or replayed stays, each follows the one before it, and the
verifier log is the same on all replicas and has no gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keyserver.machine import notices, views
from simulator.checkers import Checker
from simulator.world import Violation
from verifier.proof_encoding import decode_step

if TYPE_CHECKING:
    from keyserver.machine.state import Position
    from keyserver.replica import Batch
    from replication.types import LogEntry
    from simulator.replica import ReplicaSite
    from simulator.verifier import VerifierSite
    from simulator.world import World
    from verifier.daemon.step import Outcome
    from verifier.types import EpochHead


class AppendOnly(Checker):
    name = "append-only"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._own: dict[str, dict[int, bytes]] = {}  # of each replica, its heads
        self._heads: dict[int, EpochHead] = {}
        self._steps: dict[int, bytes] = {}
        self._sizes: dict[str, int] = {}
        self._replayed: dict[str, int] = {}

    def applied(self, site: ReplicaSite, before: Position, entries: Sequence[LogEntry], batch: Batch) -> None:
        if site.tainted:
            return
        process = site.process
        assert process is not None
        for notice in batch.notices:
            if isinstance(notice, notices.HeadComposed):
                own = self._own.setdefault(site.name, {0: self.world.cast.realm.hash})
                for epoch in range(max(own) + 1, notice.epoch):  # composed, but its process ended too soon
                    self._composed(site, own, views.head_at(process.store, epoch))
                self._composed(site, own, views.head_at(process.store, notice.epoch))
        size = batch.state.verifier_log_size
        if size != self._sizes.get(site.name, 0):
            self._grew(site, process.store, size)

    def _composed(self, site: ReplicaSite, own: dict[int, bytes], head: EpochHead) -> None:
        if own.setdefault(head.epoch, head.hash) != head.hash:
            raise Violation(self.name, f"{site.name} composed another head of epoch {head.epoch}")
        if own.get(head.epoch - 1) != head.previous_head_hash:
            raise Violation(self.name, f"head {head.epoch} of {site.name} does not follow its own past")
        if not self.world.log_forged and self._heads.setdefault(head.epoch, head).hash != head.hash:
            raise Violation(self.name, f"{site.name} composed another head {head.epoch} than others")

    def _grew(self, site: ReplicaSite, store: object, size: int) -> None:
        first = self._sizes.get(site.name, 0) + 1
        steps = views.verifier_steps(store, first, 1 << 30, size - first + 1)  # type: ignore[arg-type]
        for index, step in enumerate(steps, first):
            if decode_step(step).index != index:
                raise Violation(self.name, f"step {index} of {site.name} is another one, or there is a gap")
            if not self.world.log_forged and self._steps.setdefault(index, step) != step:
                raise Violation(self.name, f"{site.name} has another step {index} in its verifier log")
        if len(steps) != size - first + 1:
            raise Violation(self.name, f"the verifier log of {site.name} has a gap")
        self._sizes[site.name] = size

    def replayed(self, site: VerifierSite, outcome: Outcome) -> None:
        epoch = outcome.state.chain.epoch
        if epoch < self._replayed.get(site.name, 0):
            raise Violation(self.name, f"{site.name} went back to epoch {epoch}")
        self._replayed[site.name] = epoch
