"""Links between sites. What replicas say to each other for the log flows in order, as over TCP: it is lost
only by a connection that breaks. Calls (of clients, of verifiers, beside the log) may fail before they are
made, after, or be made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from replication.raft.events import Connected, Disconnected, Received

if TYPE_CHECKING:
    from simulator.world import World

T = TypeVar("T")
RECONNECT_US = 40_000
MS = 1000


class Unanswered(Exception):
    """A call brought no answer; whether it was made is not known."""


@dataclass
class Pair:
    """The connection between two replicas. What was sent under an older generation never arrives."""

    up: bool = False
    generation: int = 0
    gap: bool = False  # bytes were lost: TCP gives up as soon as something gets through again


class Network:
    def __init__(self, world: World, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._pairs: dict[frozenset[str], Pair] = {}
        self._last: dict[tuple[str, str], int] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.slow_us: dict[str, int] = {}  # site -> longest further delay of what it sends
        self.drop = 0.0  # chance that a call or a connection is lost
        self.repeat = 0.0  # chance that a call is made twice

    def delay_us(self, source: str) -> int:
        delay = self._rng.randint(300, 4000)
        slow = self.slow_us.get(source, 0)
        return delay + (self._rng.randint(0, slow) if slow else 0)

    # The log's own connections

    def pair(self, one: str, other: str) -> Pair:
        return self._pairs.setdefault(frozenset((one, other)), Pair())

    def send(self, source: str, target: str, message: Any) -> None:
        """Hand a message to the connection; it arrives after those before it, or never."""
        pair = self.pair(source, target)
        if not pair.up:
            return
        if self.drop and self._rng.random() < self.drop / 4:
            self._world.fired("drop")
            self.reset(source, target)
            return
        world = self._world
        at = max(self._last.get((source, target), 0) + 1, world.now + self.delay_us(source))
        self._last[source, target] = at
        world.at(at, lambda: self._arrive(source, target, pair.generation, message))

    def _arrive(self, source: str, target: str, generation: int, message: Any) -> None:
        pair = self.pair(source, target)
        if pair.generation != generation or not pair.up:
            return
        if (source, target) in self.cuts:
            self._world.fired("one_way" if (target, source) not in self.cuts else "partition")
            pair.gap = True
        elif not pair.gap:
            self._world.sites[target].post(Received(source, message))

    def reset(self, one: str, other: str) -> None:
        """Break a connection; both ends learn of it and try again."""
        pair = self.pair(one, other)
        pair.generation += 1
        pair.gap = False
        if pair.up:
            pair.up = False
            self._world.sites[one].post(Disconnected(other))
            self._world.sites[other].post(Disconnected(one))
        self._later(one, other)

    def _later(self, one: str, other: str) -> None:
        generation = self.pair(one, other).generation
        wait = RECONNECT_US + self._rng.randint(0, RECONNECT_US)
        self._world.after(wait, lambda: self._connect(one, other, generation))

    def _connect(self, one: str, other: str, generation: int) -> None:
        pair, sites = self.pair(one, other), self._world.sites
        if pair.up or pair.generation != generation:
            return
        if {(one, other), (other, one)} & self.cuts or not (sites[one].runs and sites[other].runs):
            self._later(one, other)
            return
        pair.up = True
        sites[one].post(Connected(other))
        sites[other].post(Connected(one))

    def restarted(self, site: str) -> None:
        """The connections of a site that has started or ended."""
        for other in self._world.members:
            if other != site:
                self.reset(site, other)

    # Cutting and healing

    def cut(self, sources: list[str], targets: list[str], *, both: bool) -> None:
        for source in sources:
            for target in targets:
                self.cuts.add((source, target))
                if both:
                    self.cuts.add((target, source))
                    if source in self._world.members and target in self._world.members:
                        self.reset(source, target)

    def heal(self) -> None:
        self.cuts.clear()
        self.slow_us.clear()
        self.drop = self.repeat = 0.0
        self.mend()

    def mend(self) -> None:
        """Break the connections that lost something, so that they begin anew."""
        for names, pair in list(self._pairs.items()):
            if pair.gap:
                self.reset(*sorted(names))

    # Calls

    def call(self, source: str, target: str, make: Callable[[], T]) -> T:
        """Make a call that takes no time. Raises Unanswered, and what `make` raises."""
        site = self._world.sites[target]
        if not site.runs or site.paused or {(source, target), (target, source)} & self.cuts:
            raise Unanswered
        lost = self._rng.random() if self.drop else 1.0
        if lost < self.drop / 2:
            self._world.fired("drop")
            raise Unanswered
        answer = make()
        if self.repeat and self._rng.random() < self.repeat:
            self._world.fired("duplicate")
            answer = make()
        if lost < self.drop:
            self._world.fired("drop")
            raise Unanswered
        return answer
