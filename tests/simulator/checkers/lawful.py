"""Only authorised change: what the law of updates forbids is never accepted, what it allows is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyserver.machine.codes import Code
from simulator.checkers import Checker
from simulator.world import Violation

if TYPE_CHECKING:
    from simulator.client import Change, Client


class Lawful(Checker):
    name = "lawful"

    def unlawful(self, code: Code) -> None:
        if code is Code.APPLIED:
            raise Violation(self.name, "an unlawful update was accepted")

    def refused(self, client: Client, change: Change, code: Code) -> None:
        if not self.world.log_forged:
            raise Violation(self.name, f"a lawful update was refused: {code.name}")
