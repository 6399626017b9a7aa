"""One schedule: a heap of things to happen, the sites they happen to, and the judges who watch.

Nothing here depends on the machine it runs on: time is a number, chance comes from the seed, and everything
that happens enters the trace, whose hash is the same for the same seed.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from simulator.cast import Cast, cast
from simulator.disk import Disk, Files
from simulator.network import Network
from simulator.seams import surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulator.checkers import Judges
    from simulator.schedule import Plan

MS = 1000  # microseconds
SECOND = 1_000_000
TAIL = 60


class Violation(Exception):
    """A promise was broken. `invariant` names the checker."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
        self.what = what


class Site(Protocol):
    """A machine of the world."""

    name: str
    paused: bool

    @property
    def runs(self) -> bool: ...
    def post(self, event: Any) -> None: ...


class World:
    """Time, chance, the network and the sites of one schedule."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.judges: Judges
        self.now = 0
        self.cast: Cast = cast(plan.replicas, plan.verifiers)
        self.sites: dict[str, Any] = {}
        self.disks: dict[str, Disk] = {}
        self.members: tuple[str, ...] = tuple(f"r{number}" for number in range(plan.replicas))
        self.network = Network(self, self.chance("network"))
        self.replicas: list[Any] = []
        self.clients: list[Any] = []
        self.fired_kinds: Counter[str] = Counter()
        self.running: Any = None  # the replica that has its turn
        self.suspect: Any = None  # the one replica that lies, is cloned or was restored
        self.log_forged = False  # Raft's own assumptions were broken: logs may differ
        self.ends: list[Callable[[], None]] = []  # of the faults under way
        self.healed_at = 0
        self.events = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._hash = blake2b(digest_size=16)
        self._tail: deque[str] = deque(maxlen=TAIL)

    def chance(self, *names: object) -> Random:
        """A stream of chance of its own, so that one more draw here moves nothing there."""
        return Random("/".join(map(str, (self.plan.seed, *names))))

    def disk(self, name: str) -> Disk:
        """The disk of a machine."""
        if name not in self.disks:
            rng = self.chance("disk", name)
            self.disks[name] = Disk(name, rng, lambda trouble: self.fired(str(trouble), name))
        return self.disks[name]

    def may_taint(self, site: Any) -> bool:
        """Whether a fault may break what is assumed of this replica: before the healing, and of one only."""
        return not self.healed_at and site is self.suspect

    # Time

    def at(self, when: int, do: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (max(when, self.now), self._number, do))

    def after(self, wait_us: int, do: Callable[[], None]) -> None:
        self.at(self.now + wait_us, do)

    def seconds(self) -> float:
        return self.now / SECOND

    def run_until(self, when: int, enough: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen up to a moment; whether it was `enough` before."""
        while self._heap and self._heap[0][0] <= when:
            self.now, _, do = heapq.heappop(self._heap)
            self.events += 1
            do()
            if enough():
                return True
        self.now = max(self.now, when)
        return enough()

    # The trace

    def note(self, who: str, what: str, *details: object) -> None:
        """Write a line of the trace."""
        line = f"{self.now / SECOND:9.4f} {who:4} {what} {' '.join(map(_shown, details))}"
        self._hash.update(line.encode())
        self._tail.append(line)

    def fired(self, kind: str, who: str = "") -> None:
        """A fault took effect."""
        if not self.fired_kinds[kind]:
            self.note(who or "-", "FAULT", kind)
        self.fired_kinds[kind] += 1

    @property
    def trace(self) -> str:
        return self._hash.hexdigest()

    @property
    def tail(self) -> Sequence[str]:
        return tuple(self._tail)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Shipped code lives in this world."""
        with surroundings(Files(self.disks), self.seconds, self._alarm):
            yield

    def _alarm(self, wait_s: float) -> None:
        site = self.running
        assert site is not None
        self.after(round(wait_s * SECOND), lambda: site.wake())


def _shown(detail: object) -> str:
    return detail.hex()[:12] if isinstance(detail, bytes) else str(detail)
