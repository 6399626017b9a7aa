"""What an operator asks of a running replica about the set of replicas, over its Unix socket."""

from __future__ import annotations

from collections import Counter

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyserver.machine import views
from keyserver.machine.turn import log_time
from keyserver.parts import Parts
from keyserver.replica_change import FILE_BYTES, SET_SCHEMA, PresentSet, decode_file, encode_present
from verifier.errors import ConfigError, Reason, Refused

LOOK_EVERY_S = 0.02
LOOKS = 150  # an election takes less


class ReplicaDesk:
    """Answers GET and POST /replicas, and POST /hand-over. `own`: the name of this replica."""

    def __init__(self, parts: Parts, own: str) -> None:
        self._parts = parts
        self._own = own

    async def answer(self, request: Request) -> Response:
        """Tell the present set, or propose a change of it."""
        if request.method != "POST":
            return Response(encode_present(self.present()), media_type="application/json")
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > FILE_BYTES:
                return _refusal("TOO_LARGE", "a change of the replicas is smaller")
        try:
            proposed = decode_file(bytes(data), self._parts.replica.machine.realm)
            await self._parts.service.change_replicas(proposed.change, proposed.made)
        except ConfigError as error:
            return _refusal("MALFORMED", str(error))
        except Refused as refusal:
            return _refusal(refusal.reason.value, refusal.what)
        state = self._parts.replica.state
        return JSONResponse({"accepted": True, "epoch": state.epoch, "signed_epoch": state.signed_epoch})

    async def hand_over(self, _request: Request) -> Response:
        """Let another replica lead; tell who does once it is known."""
        log = self._parts.log
        log.hand_over()
        for _ in range(LOOKS):
            leader = log.status().leader_name
            if leader and not log.leader_hint():
                return JSONResponse({"leader": leader})
            await trio.sleep(LOOK_EVERY_S)
        return _refusal(Reason.NOT_READY.value, "no other replica has all of the log and can be reached")

    def present(self) -> PresentSet:
        """The replicas of this moment."""
        replica = self._parts.replica
        store, state, realm = replica.store, replica.state, replica.machine.realm
        own = self._parts.signer.key_id.hex()
        return PresentSet(
            schema=SET_SCHEMA,
            realm_hash=realm.hash.hex(),
            base=views.policy_base(store, realm),
            policy=state.policy.encoded,
            log_time_ms=log_time(store, state.policy),
            epoch=state.epoch,
            pending=state.next_policy is not None,
            names={**self._others(), own: self._own},
        )

    def _others(self) -> dict[str, str]:
        """Key id -> the member that says it has it; of a key that several claim, who lies is not known."""
        said = [(row["key_id"], row["name"]) for row in self._parts.peers.record() if row["key_id"]]
        claims = Counter(key_id for key_id, _ in said)
        return {key_id: name for key_id, name in said if claims[key_id] == 1}


def _refusal(reason: str, what: str) -> Response:
    return JSONResponse({"reason": reason, "what": what}, status_code=409)
