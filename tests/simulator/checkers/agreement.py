"""Digests agree at every index: replicas that applied the same log have the same state digest, and unless
Raft's own assumptions were broken, all have applied the same log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keyserver.machine import commands
from kv.interface import StorageError
from replication.chain import FIRST_LINK, next_link
from simulator.checkers import Checker
from simulator.world import Violation

if TYPE_CHECKING:
    from keyserver.machine.state import Position
    from keyserver.replica import Batch
    from replication.raft.events import Turn
    from replication.types import LogEntry
    from simulator.replica import ReplicaSite
    from simulator.world import World


class Agreement(Checker):
    name = "agreement"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._links: dict[str, dict[int, bytes]] = {}
        self._agreed: dict[int, bytes] = {}
        self._digests: dict[tuple[int, bytes], bytes] = {}
        self._leaders: dict[int, str] = {}

    def applied(self, site: ReplicaSite, before: Position, entries: Sequence[LogEntry], batch: Batch) -> None:
        if site.tainted:
            return
        if entries[0].index != before.index + 1:
            raise Violation(self.name, f"{site.name} applied entry {entries[0].index} out of order")
        self._follow(site, before.index)
        self._link(site, entries)
        position, links = batch.position, self._links[site.name]
        if position.index != entries[-1].index:
            raise Violation(self.name, f"{site.name} applied up to {position.index}, not {entries[-1].index}")
        known = self._digests.setdefault((position.index, links[position.index]), position.digest)
        if known != position.digest:
            raise Violation(self.name, f"{site.name} has another state digest at entry {position.index}")

    def _follow(self, site: ReplicaSite, index: int) -> None:
        """Links what a process wrote that ended before anybody heard of it."""
        links = self._links.setdefault(site.name, {0: FIRST_LINK})
        if index not in links:
            assert site.process is not None
            self._link(site, site.process.journal.read(max(links) + 1, index + 1, 1 << 40))

    def _link(self, site: ReplicaSite, entries: Sequence[LogEntry]) -> None:
        links = self._links[site.name]
        for entry in entries:
            link = next_link(links[entry.index - 1], entry.index, commands.public_part(entry.payload))
            if links.setdefault(entry.index, link) != link:
                raise Violation(self.name, f"{site.name} applied another entry {entry.index} than before")
            if not self.world.log_forged and self._agreed.setdefault(entry.index, link) != link:
                raise Violation(self.name, f"{site.name} applied another entry {entry.index} than others")

    def finished(self) -> None:
        for site in self.world.replicas:
            if site.healthy and not site.tainted:
                position = site.process.replica.position.index
                try:
                    site.process.journal.verify_chain(1, position + 1)
                except StorageError as error:
                    raise Violation(self.name, f"the log of {site.name} is no chain: {error}") from error
                self._follow(site, position)
                known = self._digests.get((position, self._links[site.name][position]))
                if known not in (None, site.process.replica.position.digest):
                    raise Violation(self.name, f"{site.name} has another state digest at entry {position}")

    def turned(self, site: ReplicaSite, turn: Turn) -> None:
        if turn.role == "leader" and not site.tainted and not self.world.log_forged:
            leader = self._leaders.setdefault(turn.term, site.name)
            if leader != site.name:
                raise Violation(self.name, f"{leader} and {site.name} both lead term {turn.term}")
