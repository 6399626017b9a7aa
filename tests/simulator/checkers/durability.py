"""Acknowledged survives: what a client holds a proof of is in every later epoch that anybody believes, and
in every replica and verifier at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyserver.machine import views
from simulator.checkers import Checker
from simulator.world import Violation
from verifier.daemon.state import current_at

if TYPE_CHECKING:
    from simulator.client import Change, Client
    from simulator.replica import ReplicaSite
    from simulator.world import World
    from verifier.lookup import LookupResult


class Durability(Checker):
    name = "acknowledged-survives"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._held: dict[str, list[tuple[int, int, bytes]]] = {}  # user -> (epoch, version, entry hash)

    def acknowledged(self, client: Client, change: Change, result: LookupResult) -> None:
        entry = change.draft.command.update.entry
        held = self._held.setdefault(change.user.user_id, [])
        held.append((result.head.head.epoch, entry.version, entry.hash))

    def believed(self, client: Client, site: ReplicaSite, result: LookupResult) -> None:
        epoch, entry = result.head.head.epoch, result.proof.entry
        for since, version, entry_hash in self._held.get(result.user_id, ()):
            if since <= epoch:
                shown = (entry.version, entry.hash) if entry is not None else (-1, b"")
                if shown[0] < version or (shown[0] == version and shown[1] != entry_hash):
                    raise Violation(self.name, f"version {version} of epoch {since} is gone in epoch {epoch}")

    def finished(self) -> None:
        replicas = [site for site in self.world.replicas if site.healthy and not site.tainted]
        for user_id, held in self._held.items():
            since, version, _ = max(held)
            index = next(
                one.index for client in self.world.clients for one in client.users if one.user_id == user_id
            )
            for site in replicas if not self.world.log_forged else ():
                found = views.current_entry(site.process.store, index)
                if found is None or found.update.entry.version < version:
                    raise Violation(self.name, f"{site.name} lost version {version} of epoch {since}")
            for number in range(self.world.plan.verifiers):
                site = self.world.sites[f"v{number}"]
                if site.healthy and site.process.state.chain.epoch >= since:
                    current = current_at(site.process.store, index)
                    if current is None or current.update.entry.version < version:
                        raise Violation(self.name, f"{site.name} lost version {version} of epoch {since}")
