"""Nothing leaves a member before it is durable: its journal has nothing to write when a turn ends, and when
its process ends, its disk holds what its last answers and votes spoke of.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from keyserver.machine import commands
from kv.interface import StorageError
from replication.raft.journal import Journal
from simulator.checkers import Checker
from simulator.disk import Disk
from simulator.world import Violation

if TYPE_CHECKING:
    from replication.raft.events import Turn
    from simulator.replica import ReplicaSite
    from simulator.world import World


class Spoken(Checker):
    name = "spoken"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._acknowledged: dict[str, int] = {}  # Raft's index
        self._voted: dict[str, tuple[int, str]] = {}

    def turned(self, site: ReplicaSite, turn: Turn) -> None:
        process = site.process
        if turn.outgoing and process is not None and getattr(process.journal, "staged", False):
            raise Violation(self.name, f"{site.name} speaks of what is not on its disk")
        for member, message in turn.outgoing:
            if message["type"] == "next_node_idx" and message["success"]:
                self._acknowledged[site.name] = message["next_node_idx"] - 1
            elif message["type"] == "response_vote":
                self._voted[site.name] = message["term"], member

    def ended(self, site: ReplicaSite, why: str) -> None:
        acknowledged = self._acknowledged.pop(site.name, 0)
        term, member = self._voted.pop(site.name, (0, ""))
        if site.tainted or "log" not in site.disk.views:
            return
        copy = Disk("copy", self.world.chance("copy"), views=deepcopy(site.disk.views))
        try:
            journal = Journal(copy.open_store("log"), commands.public_part)
        except StorageError as error:
            raise Violation(self.name, f"{site.name} leaves a log that does not open: {error}") from error
        if journal.last < acknowledged:
            raise Violation(self.name, f"{site.name} acknowledged entry {acknowledged}, has {journal.last}")
        if journal.term < term or (member and journal.term == term and journal.vote != member):
            raise Violation(self.name, f"{site.name} has forgotten its vote of term {term}")
