"""Every proof that an honest replica serves verifies, and answers what was asked; honest verifiers find
nothing to accuse honest replicas of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.checkers import Checker
from simulator.world import Violation

if TYPE_CHECKING:
    from simulator.client import Change, Client
    from simulator.replica import ReplicaSite
    from simulator.verifier import VerifierSite
    from verifier.errors import E2eksError


class Proofs(Checker):
    name = "proofs"

    def refuted(self, client: Client, site: ReplicaSite, why: E2eksError) -> None:
        if not site.tainted:
            raise Violation(self.name, f"{site.name} served {client.name} a proof that fails: {why}")

    def wrong_entry(self, client: Client, site: ReplicaSite, change: Change) -> None:
        if not site.tainted:
            raise Violation(self.name, f"{site.name} answered an update with another entry")

    def accused(self, site: VerifierSite, found: Exception) -> None:
        if self.world.suspect is None and not site.tainted:
            raise Violation(self.name, f"{site.name} stops though nobody lies: {found}")
