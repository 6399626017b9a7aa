"""One head per epoch and signer; no signature leaves before the register has it on the disk, and nobody goes
on from before what the register knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyserver.machine import commands
from keyserver.machine.commands import SignHead
from simulator.checkers import Checker
from simulator.world import Violation
from verifier import encoding

if TYPE_CHECKING:
    from simulator.replica import ReplicaSite
    from simulator.verifier import VerifierSite
    from simulator.world import World


class OneHead(Checker):
    name = "one-head"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._signed: dict[tuple[bytes, int], tuple[bytes, bytes]] = {}

    def started(self, site: ReplicaSite) -> None:
        process = site.process
        assert process is not None
        newest, reached = process.signer.newest_signed(), process.replica.position.index
        if newest is not None and newest.log_index > reached:
            raise Violation(
                self.name, f"{site.name} goes on at entry {reached}, but signed at {newest.log_index}"
            )

    def proposing(self, site: ReplicaSite, payload: bytes) -> None:
        if site.key_at_large:
            return
        envelope = commands.decode_log_entry(payload).envelope
        for command in envelope.commands:
            if isinstance(command, SignHead):
                self._left(site, command.epoch, command.head_hash, command.signature)

    def ratified(self, site: VerifierSite, pushed: bytes) -> None:
        if not site.tainted:
            signed = encoding.decode_signed_head(pushed)
            made = signed.ratifications[0].signatures[0].signature
            self._left(site, signed.head.epoch, signed.head.hash, made)

    def _left(self, site: ReplicaSite | VerifierSite, epoch: int, head_hash: bytes, made: bytes) -> None:
        before = self._signed.setdefault((site.key.id, epoch), (head_hash, made))
        if before != (head_hash, made):
            what = "another head" if before[0] != head_hash else "the same head again, in other bytes"
            raise Violation(self.name, f"{site.name} signed {what} of epoch {epoch}")
        file = site.disk.files.get(str(site.register))
        if file is None or made not in file.synced:
            raise Violation(
                self.name, f"{site.name}'s signature on epoch {epoch} left before the register had it"
            )
