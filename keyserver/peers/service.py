"""What this replica does for the other replicas, and how it looks after them.

Whoever calls is a member by its certificate. Its words count by the signatures in them alone: a member that
lies can refuse to endorse, and that is all.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
import trio
from e2eks.v1 import peers_pb2

from keyserver import quarantine, requests
from keyserver.peers.endorsing import Endorser, decode_endorse, encode_endorsed
from keyserver.peers.exchange import Exchange
from keyserver.peers.lines import PeerLine, Unreached
from keyserver.proposer import Clock, Proposer
from keyserver.replica import Replica
from keyserver.signer import Quarantined, Signer
from verifier import limits
from verifier.errors import Malformed, Reason, Refused

SHOW, STATUS = "ShowHead", "Status"
ANSWER_S = 3.0
VISIT_EVERY_S = 2.0
WORD_BYTES = 16 * 1024  # a head of at most 8 KiB, a key id and two signatures


@dataclass(frozen=True, slots=True)
class Standing:
    """How another member was found the last time. `problem` "" if well.

    `at_s` it answered, `asked_s` it was asked how it is, by the monotonic clock.
    """

    at_s: float
    asked_s: float
    problem: str
    said: peers_pb2.PeerStatus
    clock_ahead_ms: int = 0


class Peers:
    """The Peers service on bytes, and the visits to others. On the trio thread."""

    def __init__(
        self,
        replica: Replica,
        signer: Signer,
        proposer: Proposer,
        endorser: Endorser,
        exchange: Exchange,
        lines: Collection[PeerLine],
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._signer = signer
        self._proposer = proposer
        self._endorser = endorser
        self._exchange = exchange
        self._lines = lines
        self._clock = clock
        self._standing: dict[str, Standing] = {}
        self._log = structlog.get_logger("peers")

    # For others

    def endorse(self, request: bytes) -> bytes:
        """Verify a registration and stand for it; the EndorseResponse. Raises Refused, StorageError."""
        self._proposer.require_signing()
        why = quarantine.outside(self._replica.state, self._signer.key_id)
        if why:
            raise Refused(Reason.NOT_READY, why)
        asked, private = decode_endorse(request, self._replica.machine.realm)
        index, _ = self._replica.vrf.locate(asked.lookup.user_id, None)
        if asked.update.entry.index != index:
            raise Refused(Reason.WRONG_INDEX, "the entry's index is not that of the user id in this realm")
        return encode_endorsed(self._endorser.endorse(asked, private))

    def show_head(self, request: bytes) -> bytes:
        """Compare what a replica says of a head with one's own; the ShowHeadResponse.

        Raises Refused, StorageError, Halt.
        """
        if len(request) > WORD_BYTES:
            raise Malformed("a shown head is too large", Reason.TOO_LARGE)
        message = requests.parse(peers_pb2.ShowHeadRequest, request, "ShowHeadRequest")
        epoch = self._exchange.see(message.shown)
        answer = peers_pb2.ShowHeadResponse(shown=self._word(epoch))
        return answer.SerializeToString(deterministic=True)

    def status(self, request: bytes) -> bytes:
        """The PeerStatus. Raises Refused."""
        requests.parse(peers_pb2.PeerStatusRequest, request, "PeerStatusRequest")
        state = self._replica.state
        answer = peers_pb2.PeerStatus(
            key_id=self._signer.key_id,
            epoch=state.epoch,
            signed_epoch=state.signed_epoch,
            applied_index=self._replica.position.index,
            time_ms=self._clock(),
            signing=not (self._signer.quarantined or self._proposer.held),
        )
        return answer.SerializeToString(deterministic=True)

    # To others

    async def run(self) -> None:
        """Visit all others for ever, at once when there is a head to show. Raises StorageError, Halt."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_heads)
            for line in self._lines:
                nursery.start_soon(self._keep_visiting, line)

    async def _follow_heads(self) -> None:
        heads = self._replica.waiters.heads
        while True:
            turn = heads.turn()
            self._exchange.advanced()
            await turn.wait()

    async def _keep_visiting(self, line: PeerLine) -> None:
        while True:
            turn = self._exchange.signed.turn()
            before = self._standing.get(line.name)
            standing = await self._visit(line)
            self._standing[line.name] = standing
            self._endorser.doubted = doubt(
                [found.clock_ahead_ms for found in self._standing.values()], len(self._lines) + 1
            )
            if (before.problem if before else "") != standing.problem:
                self._log.warning("peer", name=line.name, problem=standing.problem)
            with trio.move_on_after(VISIT_EVERY_S):
                await turn.wait()

    async def _visit(self, line: PeerLine) -> Standing:
        """Show the newest head, and ask how it is if that is not just known."""
        before = self._standing.get(line.name) or Standing(0, -math.inf, "", peers_pb2.PeerStatus())
        try:
            await self._show(line)
            now_s = trio.current_time()
            if now_s - before.asked_s < VISIT_EVERY_S:
                return replace(before, at_s=now_s, problem="")
            data = await line.call(STATUS, b"", ANSWER_S)
            said = requests.parse(peers_pb2.PeerStatus, data, "PeerStatus")
        except (Unreached, Refused) as error:
            return replace(before, problem=str(error))
        now_s = trio.current_time()
        return Standing(now_s, now_s, "", said, said.time_ms - self._clock())

    async def _show(self, line: PeerLine) -> None:
        word = self._word(self._exchange.newest)
        if word is None:
            return
        request = peers_pb2.ShowHeadRequest(shown=word).SerializeToString(deterministic=True)
        data = await line.call(SHOW, request, ANSWER_S)
        answer = requests.parse(peers_pb2.ShowHeadResponse, data, "ShowHeadResponse")
        if answer.HasField("shown"):
            self._exchange.see(answer.shown)

    def _word(self, epoch: int) -> peers_pb2.ShownHead | None:
        try:
            return self._exchange.word(epoch) if epoch else None
        except Quarantined:
            return None

    # For operators

    def record(self) -> list[dict[str, Any]]:
        """How the others were found, for the status document; ages in seconds."""
        now_s = trio.current_time()
        make = partial(_record, now_s, self._exchange.differences)
        return [make(name, standing) for name, standing in sorted(self._standing.items())]


def doubt(others_ahead_ms: Collection[int], members: int) -> str:
    """Why this replica's clock is not to be trusted: more than half of the members' are far from it."""
    apart = [ahead for ahead in others_ahead_ms if abs(ahead) > limits.DELIMITER_DRIFT_MS]
    if len(apart) <= members // 2:
        return ""
    off_s = min(apart, key=abs) / 1000
    return f"this replica's clock is not that of the others: {off_s:+.0f} s would correct it"


def _record(now_s: float, differences: dict[str, int], name: str, standing: Standing) -> dict[str, Any]:
    said, key_id = standing.said, standing.said.key_id.hex()
    return {
        "name": name,
        "key_id": key_id,
        "reached": not standing.problem,
        "age_s": round(now_s - standing.at_s, 1) if key_id else None,
        "problem": standing.problem,
        "applied_index": said.applied_index,
        "epoch": said.epoch,
        "signed_epoch": said.signed_epoch,
        "signing": said.signing,
        "clock_ahead_ms": standing.clock_ahead_ms,
        "other_head_of_epoch": differences.get(key_id, 0),
    }
