"""Two different heads of one epoch never both reach the clients' default quorum, whoever lies."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from keyserver.machine import commands
from keyserver.machine.commands import SignHead
from simulator.checkers import Checker
from simulator.world import Violation
from verifier import encoding, policy

if TYPE_CHECKING:
    from simulator.client import Client
    from simulator.replica import ReplicaSite
    from simulator.verifier import VerifierSite
    from simulator.world import World
    from verifier.lookup import LookupResult


class SplitView(Checker):
    name = "split-view"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._signers: dict[tuple[int, bytes], set[bytes]] = defaultdict(set)
        self._reached: dict[int, bytes] = {}
        self._believed: dict[int, bytes] = {}

    def proposing(self, site: ReplicaSite, payload: bytes) -> None:
        for command in commands.decode_log_entry(payload).envelope.commands:
            if isinstance(command, SignHead):
                self._add(command.epoch, command.head_hash, site.key.id)

    def ratified(self, site: VerifierSite, pushed: bytes) -> None:
        head = encoding.decode_signed_head(pushed).head
        signers = self._signers[head.epoch, head.hash]
        law = self.world.cast.realm.genesis_policy
        if not site.tainted and not policy.satisfied(law.quorum, signers & law.keys.keys()):
            raise Violation(self.name, f"{site.name} ratified a head {head.epoch} that has no majority")
        self._add(head.epoch, head.hash, site.key.id)

    def forged(self, key_id: bytes, shown: bytes) -> None:
        head = encoding.decode_signed_head(shown).head
        self._add(head.epoch, head.hash, key_id)

    def _add(self, epoch: int, head_hash: bytes, key_id: bytes) -> None:
        signers = self._signers[epoch, head_hash]
        if key_id in signers:
            return
        signers.add(key_id)
        enough = policy.satisfied(self.world.cast.realm.verification_policy.quorum, signers)
        if enough and self._reached.setdefault(epoch, head_hash) != head_hash:
            raise Violation(self.name, f"two heads of epoch {epoch} reached the default quorum")

    def believed(self, client: Client, site: ReplicaSite, result: LookupResult) -> None:
        head = result.head.head
        if self._believed.setdefault(head.epoch, head.hash) != head.hash:
            raise Violation(self.name, f"clients believed two heads of epoch {head.epoch}")
