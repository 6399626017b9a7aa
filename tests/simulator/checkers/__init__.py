"""Who judges a schedule. A checker keeps what it needs of what happened and raises Violation when its
promise is broken; each is in a file of its own, and knows no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyserver.machine.codes import Code
    from keyserver.machine.state import Position
    from keyserver.replica import Batch
    from replication.raft.events import Turn
    from replication.types import LogEntry
    from simulator.client import Change, Client
    from simulator.replica import ReplicaSite
    from simulator.verifier import VerifierSite
    from simulator.world import World
    from verifier.daemon.step import Outcome
    from verifier.errors import E2eksError
    from verifier.lookup import LookupResult


class Checker:
    """What can be heard of; a checker overrides what concerns its promise."""

    name = "checker"

    def __init__(self, world: World) -> None:
        self.world = world

    def started(self, site: ReplicaSite) -> None:
        """A replica's process has opened its disk."""

    def turned(self, site: ReplicaSite, turn: Turn) -> None:
        """A replica's driver had a turn; nothing of it has been sent."""

    def proposing(self, site: ReplicaSite, payload: bytes) -> None:
        """A signed entry leaves the proposer."""

    def applied(self, site: ReplicaSite, before: Position, entries: Sequence[LogEntry], batch: Batch) -> None:
        """A replica has written these entries after `before`, and announced them."""

    def ended(self, site: ReplicaSite, why: str) -> None:
        """A replica's process ends; its disk still has what is not synced."""

    def replayed(self, site: VerifierSite, outcome: Outcome) -> None:
        """A verifier has written what it replayed."""

    def ratified(self, site: VerifierSite, pushed: bytes) -> None:
        """A verifier's ratification leaves it."""

    def accused(self, site: VerifierSite, found: Exception) -> None:
        """A verifier stops with evidence."""

    def forged(self, key_id: bytes, shown: bytes) -> None:
        """A liar has signed this head."""

    def acknowledged(self, client: Client, change: Change, result: LookupResult) -> None:
        """A client has the proof that its update is in the tree."""

    def refused(self, client: Client, change: Change, code: Code) -> None:
        """The log refused a client's lawful update."""

    def unlawful(self, code: Code) -> None:
        """The log decided an update that the law forbids."""

    def believed(self, client: Client, site: ReplicaSite, result: LookupResult) -> None:
        """A client accepted a proof."""

    def refuted(self, client: Client, site: ReplicaSite, why: E2eksError) -> None:
        """A client found a proof to be false."""

    def not_believed(self, client: Client, site: ReplicaSite, why: E2eksError) -> None:
        """A client found a proof with too few signatures, or none in time."""

    def wrong_entry(self, client: Client, site: ReplicaSite, change: Change) -> None:
        """An update was answered with the proof of another entry."""

    def finished(self) -> None:
        """The schedule is over, all is healed."""


EVENTS = tuple(name for name in vars(Checker) if not name.startswith("_") and name != "name")


class Judges(Checker):
    """All checkers as one."""

    def __init__(self, world: World, checkers: Sequence[type[Checker]]) -> None:
        super().__init__(world)
        made = [checker(world) for checker in checkers]
        for event in EVENTS:
            hearing = [
                getattr(one, event)
                for one in made
                if getattr(type(one), event) is not getattr(Checker, event)
            ]
            setattr(self, event, _telling(hearing))


def _telling(hearing: Sequence[Any]) -> Any:
    def tell(*given: Any) -> None:
        for one in hearing:
            one(*given)

    return tell
