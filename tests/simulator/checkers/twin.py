"""The rules say what the naive replayer says too, which shares no line with them: digests and heads."""

from __future__ import annotations

from replayer.replay import Replayer

from keyserver.machine import views
from simulator.checkers import Checker
from simulator.process import EPOCHS
from simulator.world import Violation
from verifier.realm import realm_message


class Twin(Checker):
    name = "twin"

    def finished(self) -> None:
        sites = [site for site in self.world.replicas if site.process is not None and not site.tainted]
        if not sites:
            return
        site = max(sites, key=lambda one: one.process.replica.position.index)
        process, position = site.process, site.process.replica.position
        twin = Replayer(realm_message(self.world.cast.realm), EPOCHS.min_interval_ms)
        for entry in process.journal.read(1, position.index + 1, 1 << 40):
            twin.replay(entry.payload)
        if twin.digest != position.digest:
            raise Violation(self.name, f"the naive replayer has another digest at entry {position.index}")
        epochs = range(1, process.replica.state.epoch + 1)
        if twin.heads != [views.head_at(process.store, epoch).encoded for epoch in epochs]:
            raise Violation(self.name, "the naive replayer composed other heads")
