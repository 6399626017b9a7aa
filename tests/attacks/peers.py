"""The peers' service: a member that lies, or somebody with a member's TLS key and no replica's key.

r0 is attacked, r2 the liar. A word on a head counts by the signatures in it alone; an endorsement is given
only for what r0 has verified itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from e2eks.v1 import peers_pb2
from workload.cast import Key
from workload.replica import Replica

from attacks.surface import Surface, flipped
from keyserver.admission.gate import Gate
from keyserver.config import Registration
from keyserver.metrics import Metrics
from keyserver.peers.endorsing import Endorser
from keyserver.peers.exchange import HOLD, Exchange
from keyserver.peers.service import Peers as Service
from keyserver.proposer import Proposer
from keyserver.signer import composed_message
from keyserver.testing import OPEN, Person, small_realm
from keyserver.waiters import Signal
from verifier import encoding
from verifier.crypto import hashing, signatures
from verifier.epoch import compose_head, genesis_chain

SMALL = small_realm()
SALT = bytes(range(32))
CLOSED = Registration(insecure_skip_registration_proof=False, client_certificate=())

Change = Callable[[Any], None]


def put(field: str, value: bytes) -> Change:
    return lambda message: setattr(message, field, value)


def turn(field: str) -> Change:
    return lambda message: setattr(message, field, flipped(getattr(message, field)))


WORDS: Mapping[str, Change] = {
    "": lambda _: None,
    "no head": put("head", b""),
    "no key": put("key_id", b""),
    "no word": put("composed", b""),
    "turned head": turn("head"),
    "turned key": turn("key_id"),
    "turned word": turn("composed"),
    "trailing bytes in the head": lambda word: setattr(word, "head", word.head + b"\x08\x01"),
    "a head of 9 KiB": lambda word: setattr(word, "head", word.head + bytes(9 * 1024)),
}

REQUESTS: Mapping[str, Change] = {
    "": lambda _: None,
    "no salt": put("salt", b""),
    "a long salt": put("salt", bytes(33)),
    "no request": put("update_request", b""),
    "junk": put("update_request", b"\xff" * 40),
    "too much": put("update_request", bytes(300_000)),
    "a revocation": lambda message: setattr(message, "update_request", _alice().revocation()),
    "another's place": lambda message: setattr(message, "update_request", _elsewhere()),
    "another profile": lambda message: setattr(message, "update_request", _other_profile()),
}


class Peers(Surface):
    # Words on heads

    def _attacked(self) -> Replica:
        replica = Replica(3)
        replica.close_epoch()
        return replica

    def _another_head(self, replica: Replica) -> bytes:
        return compose_head(
            replica.realm,
            genesis_chain(replica.realm),
            root_hash=bytes(32),
            issue_time_ms=1,
            history_root=bytes(32),
            state_digest=bytes(32),
        )

    def make_word(
        self, by: str = "r1", under: str = "", head: str = "ours", change: str = "", realm: str = ""
    ) -> bytes:
        """A ShowHeadRequest in the name of `by`, signed by `under` (or by itself)."""
        replica = self._attacked()
        known: dict[str, Key] = {f"r{n}": key for n, key in enumerate(replica.replicas)}
        key, signer = (known.get(name) or Key(name) for name in (by, under or by))
        shown = self._another_head(replica) if head == "another" else replica.head(1).encoded
        if realm:
            shown = self._another_head(Replica(3, name=realm))
        parsed = encoding.decode_head(shown)
        made = signer.sign(composed_message(replica.realm.hash, parsed.epoch, parsed.hash))
        word = peers_pb2.ShownHead(head=shown, key_id=key.id, composed=made)
        WORDS[change](word)
        return peers_pb2.ShowHeadRequest(shown=word).SerializeToString()

    def judge_word(self, request: bytes) -> str:
        """Whether r0 goes on or holds."""
        replica = self._attacked()
        own = replica.replicas[0]
        signer: Any = SimpleNamespace(
            key_id=own.id,
            quarantined="",
            signed=lambda _: None,
            newest_signed=lambda: None,
            state_composed=lambda epoch, head: own.sign(composed_message(replica.realm.hash, epoch, head)),
        )
        shell: Any = SimpleNamespace(
            machine=replica.machine, store=replica.store, state=replica.state, applied=Signal()
        )
        unused: Any = None
        proposer = Proposer(unused, signer, lambda: 0)
        exchange = Exchange(shell, signer, proposer, Metrics(), lambda: 0)
        service = Service(shell, signer, proposer, unused, exchange, (), lambda: 0)
        service.show_head(request)
        return "held" if proposer.holds(HOLD) else "goes on"

    # Endorsements

    def make_request(self, change: str = "", gate: str = "open") -> tuple[bytes, str]:
        """An EndorseRequest for alice's registration; what r0 admits: "open" or nothing."""
        message = peers_pb2.EndorseRequest(update_request=_alice().update({"ssh": b"1"}), salt=SALT)
        REQUESTS[change](message)
        return message.SerializeToString(), gate

    def make_raw(self, data: str, repeated: int = 1) -> tuple[bytes, str]:
        return bytes.fromhex(data) * repeated, "open"

    def judge_endorsement(self, made: tuple[bytes, str]) -> str:
        request, gate = made
        secret = SMALL.head_seed
        key = hashing.key_id(signatures.public_key(secret))
        signer: Any = SimpleNamespace(
            key_id=key,
            quarantined="",
            endorse=lambda **_: SimpleNamespace(key_id=key, not_after_ms=1, signature=bytes(64)),
        )
        locate = SimpleNamespace(locate=lambda user_id, _: (SMALL.index_of(user_id), b""))
        realm = SMALL.realm
        state = SimpleNamespace(policy=realm.genesis_policy, epoch=1)
        shell: Any = SimpleNamespace(machine=SimpleNamespace(realm=realm), state=state, vrf=locate)
        unused: Any = None
        proposer = Proposer(unused, signer, lambda: 0)
        door = Gate(OPEN if gate == "open" else CLOSED, realm)
        service = Service(
            shell, signer, proposer, Endorser(realm, door, signer, lambda: 0), unused, (), lambda: 0
        )
        answer = peers_pb2.EndorseResponse.FromString(service.endorse(request))
        return "endorsed" if answer.signature else "nothing"


def _alice() -> Person:
    person = Person.named("alice", SMALL)
    person.entry = None
    return person


def _elsewhere() -> bytes:
    """Alice's entry under bob's name."""
    draft = _alice().draft({"ssh": b"1"})
    draft.lookup_parameters.user_id = Person.named("bob", SMALL).user_id
    return draft.SerializeToString()


def _other_profile() -> bytes:
    draft = _alice().draft({"ssh": b"1"})
    draft.profile = encoding.encode_profile({"ssh": b"2"})
    return draft.SerializeToString()
