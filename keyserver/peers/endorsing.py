"""Registrations are endorsed by f + 1 replicas, each of which has verified proof, user id and index itself.

The replica that a client asks endorses first, so that what is plainly wrong troubles nobody else; then it
sends the client's own bytes to as many others as are needed, by turns, and to the rest when one fails or is
slow. Which salt hides the private part, it tells them: they compute everything else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import trio
from e2eks.v1 import peers_pb2

from keyserver import requests
from keyserver.admission.gate import Gate
from keyserver.machine import commands, private_parts
from keyserver.machine.commands import Endorsement
from keyserver.peers.lines import PeerLine, Unreached
from keyserver.proposer import Clock
from keyserver.signer import Signer
from verifier import limits
from verifier.crypto import signatures
from verifier.encoding import exact
from verifier.errors import Malformed, Reason, Refused
from verifier.types import Realm

ENDORSE = "Endorse"
ANSWER_S = 5.0  # of a peer: it fetches nothing, it only computes
HURRY_S = 0.1  # then the others are asked as well


@dataclass(frozen=True, slots=True)
class Private:
    """The private part of an update, and the hash that its public part names; both b"" without a profile."""

    part: bytes = b""
    hash: bytes = b""
    salt: bytes = b""


def private_of(asked: requests.Update, salt: bytes) -> Private:
    """What only the realm's replicas see of an update, hidden behind a salt of 32 random bytes."""
    if asked.profile is None:
        return Private()
    contents = private_parts.encode_private_contents(asked.lookup.user_id, asked.profile.encoded, asked.nonce)
    part = private_parts.encode_private_part(salt, contents)
    return Private(part, private_parts.private_hash(salt, contents), salt)


@dataclass(frozen=True, slots=True)
class Endorsed:
    """A replica's word that it verified a registration itself, and the id of the proof it was shown."""

    proof_id: bytes
    endorsement: Endorsement


class Endorser:
    """Endorses with this replica's key, and gathers what others say. On the trio thread."""

    def __init__(
        self, realm: Realm, gate: Gate, signer: Signer, clock: Clock, lines: Collection[PeerLine] = ()
    ) -> None:
        self._realm = realm
        self._gate = gate
        self._signer = signer
        self._clock = clock
        self._lines = tuple(lines)
        self.doubted = ""  # why this replica's clock may not judge a proof, or ""
        self._asked = 0  # registrations so far: the others take turns at being asked first

    @property
    def key_id(self) -> bytes:
        """Of this replica's key."""
        return self._signer.key_id

    def endorse(self, asked: requests.Update, private: Private) -> Endorsed:
        """This replica's own word. The index must have been compared. Raises Refused, Quarantined."""
        if self.doubted:
            raise Refused(Reason.NOT_READY, self.doubted)
        entry, now_ms = asked.update.entry, self._clock()
        proof_id = self._gate.verify(
            asked.proof,
            user_id=asked.lookup.user_id,
            index=entry.index,
            entry_hash=entry.hash,
            now_ms=now_ms,
        )
        endorsement = self._signer.endorse(
            private_hash=private.hash,
            index=entry.index,
            entry_hash=entry.hash,
            proof_id=proof_id,
            not_after_ms=now_ms + limits.ENDORSEMENT_MS,
        )
        return Endorsed(proof_id, endorsement)

    async def gather(
        self,
        request: bytes,
        asked: requests.Update,
        private: Private,
        *,
        keys: Mapping[bytes, bytes],
        needed: int,
    ) -> tuple[bytes, tuple[Endorsement, ...]]:
        """Proof id and `needed` endorsements by replicas of `keys` (key id -> public key), this one's first.

        Raises Refused: as this replica judges, or NOT_READY with what the others said.
        """
        own = self.endorse(asked, private)
        given = {own.endorsement.key_id: own.endorsement}
        said: list[str] = []
        encoded = peers_pb2.EndorseRequest(update_request=request, salt=private.salt).SerializeToString()

        failed = trio.Event()

        async def ask(line: PeerLine, hurry_s: float) -> None:
            with trio.move_on_after(hurry_s):
                await failed.wait()
            try:
                answer = await line.call(ENDORSE, encoded, ANSWER_S)
                made = self._checked(answer, asked, private, own.proof_id, keys)
                given.setdefault(made.key_id, made)
            except (Unreached, Refused) as error:
                said.append(str(error))
                failed.set()
            if len(given) >= needed:
                nursery.cancel_scope.cancel()

        if len(given) < needed:
            first = needed - len(given)
            async with trio.open_nursery() as nursery:
                for place, line in enumerate(self._in_turn()):
                    nursery.start_soon(ask, line, 0.0 if place < first else HURRY_S)
        if len(given) < needed:
            what = f"{len(given)} of {needed} replicas have endorsed the registration"
            raise Refused(Reason.NOT_READY, f"{what}; the others: {'; '.join(said) or 'there are none'}")
        return own.proof_id, tuple(given.values())[:needed]

    def _in_turn(self) -> tuple[PeerLine, ...]:
        self._asked += 1
        begin = self._asked % max(len(self._lines), 1)
        return self._lines[begin:] + self._lines[:begin]

    def _checked(
        self,
        answer: bytes,
        asked: requests.Update,
        private: Private,
        proof_id: bytes,
        keys: Mapping[bytes, bytes],
    ) -> Endorsement:
        """The endorsement in an answer, which must count in the step. Raises Malformed."""
        message = requests.parse(peers_pb2.EndorseResponse, answer, "EndorseResponse")
        entry, public_key = asked.update.entry, keys.get(message.key_id)
        if message.proof_id != proof_id:
            raise Malformed("it found another proof")
        signed = commands.endorsement_message(
            self._realm.hash, private.hash, entry.index, entry.hash, proof_id, message.not_after_ms
        )
        if public_key is None or not signatures.verify(public_key, signed, message.signature):
            raise Malformed("its signature is not that of a replica of this epoch")
        if message.not_after_ms < self._clock():
            raise Malformed("it has ended already: one of two clocks is wrong")
        return Endorsement(message.key_id, message.not_after_ms, message.signature)


def decode_endorse(data: bytes, of: Realm) -> tuple[requests.Update, Private]:
    """What an EndorseRequest asks to be verified. Raises Refused."""
    limit = limits.REQUEST_BYTES + limits.HASH_BYTES + 16
    message = requests.parse(peers_pb2.EndorseRequest, data, "EndorseRequest", limit=limit)
    salt = exact(message.salt, limits.HASH_BYTES, "salt")
    asked = requests.decode_update(message.update_request, of)
    if asked.profile is None:
        raise Malformed("a revocation is not endorsed: it needs no admission")
    return asked, private_of(asked, salt)


def encode_endorsed(made: Endorsed) -> bytes:
    """The EndorseResponse."""
    message = peers_pb2.EndorseResponse(
        proof_id=made.proof_id,
        key_id=made.endorsement.key_id,
        not_after_ms=made.endorsement.not_after_ms,
        signature=made.endorsement.signature,
    )
    return message.SerializeToString(deterministic=True)
