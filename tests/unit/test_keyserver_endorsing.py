"""Endorsements gathered from other replicas: what counts, what does not, and a dead or lying one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from e2eks.v1 import client_pb2, peers_pb2

from keyserver import requests
from keyserver.admission.gate import Gate
from keyserver.machine.commands import endorsement_message
from keyserver.peers.endorsing import Endorser, decode_endorse, encode_endorsed, private_of
from keyserver.peers.lines import Unreached
from keyserver.peers.service import doubt
from keyserver.signer import Signer
from keyserver.testing import OPEN, Person, small_realm
from verifier import limits
from verifier.crypto import hashing, signatures
from verifier.errors import Malformed, Reason, Refused
from verifier.signonce import SignOnceRegister

SMALL = small_realm()
SALT = bytes(range(32))
PATIENCE = 30.0
Answer = Callable[[bytes], bytes]


class Line:
    """A line to a replica that answers as the test says."""

    def __init__(self, answer: Answer | None) -> None:
        self._answer = answer
        self.asked = 0

    async def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        assert method == "Endorse"
        self.asked += 1
        if self._answer is None:
            await trio.sleep(timeout_s)
            raise Unreached("it is dead")
        return self._answer(request)


def signer(folder: Path, number: int) -> Signer:
    seed = bytes([number]) * 32
    path = folder / f"register {number}"
    register = SignOnceRegister.create(path, key_id=hashing.key_id(signatures.public_key(seed)))
    return Signer(SMALL.realm, seed, SMALL.vrf_seed, register)


def request() -> bytes:
    return Person.named("alice", SMALL).update({"ssh": b"1"})


def peer(own: Signer, now_ms: int = 1_000) -> Answer:
    endorser = Endorser(SMALL.realm, Gate(OPEN, SMALL.realm), own, lambda: now_ms)
    return lambda data: encode_endorsed(endorser.endorse(*decode_endorse(data, SMALL.realm)))


def spoilt(answer: Answer, spoil: Callable[[peers_pb2.EndorseResponse], None]) -> Answer:
    def lie(data: bytes) -> bytes:
        message = peers_pb2.EndorseResponse.FromString(answer(data))
        spoil(message)
        return message.SerializeToString()

    return lie


async def gathered(
    folder: Path, needed: int, *answers: Answer | None, known: int = 3
) -> tuple[Any, list[Line]]:
    own = signer(folder, 9)
    lines = [Line(answer) for answer in answers]
    unused: Any = lines
    endorser = Endorser(SMALL.realm, Gate(OPEN, SMALL.realm), own, lambda: 1_000, unused)
    public = [own.public_key, *(signatures.public_key(bytes([n]) * 32) for n in (1, 2, 3))]
    keys = {hashing.key_id(key): key for key in public}
    data = request()
    asked = requests.decode_update(data, SMALL.realm)
    private = private_of(asked, SALT)
    try:
        with trio.fail_after(PATIENCE):
            proof_id, made = await endorser.gather(data, asked, private, keys=keys, needed=needed)
    finally:
        own.close()
    for endorsement in made:
        message = endorsement_message(
            SMALL.realm.hash, private.hash, asked.update.entry.index, asked.update.entry.hash, proof_id,
            endorsement.not_after_ms,
        )  # fmt: skip
        assert signatures.verify(keys[endorsement.key_id], message, endorsement.signature)
    assert made[0].key_id == own.key_id
    return made, lines


async def test_a_lone_replica_asks_nobody(tmp_path: Path) -> None:
    made, (line,) = await gathered(tmp_path, 1, peer(signer(tmp_path, 1)))
    assert (len(made), line.asked) == (1, 0)


async def test_one_dead_replica_of_three_costs_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    before = trio.current_time()
    made, _ = await gathered(tmp_path, 2, None, peer(signer(tmp_path, 1)))
    assert len(made) == 2
    assert trio.current_time() == before


async def test_one_replica_asked_twice_counts_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    one = peer(signer(tmp_path, 1))
    with pytest.raises(Refused, match="2 of 3"):
        await gathered(tmp_path, 3, one, one)


async def test_an_endorsement_that_has_ended_already_does_not_count(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    slow = peer(signer(tmp_path, 1), now_ms=1_000 - limits.ENDORSEMENT_MS - 1)
    made, _ = await gathered(tmp_path / "a", 2, slow, peer(signer(tmp_path, 2)))
    assert all(endorsement.not_after_ms >= 1_000 for endorsement in made)
    with pytest.raises(Refused, match="one of two clocks is wrong"):
        await gathered(tmp_path / "b", 2, slow)


@pytest.mark.parametrize(
    ("others_ahead_ms", "members", "doubted"),
    [
        ([86_400_000, 86_401_000], 3, True),
        ([-20_000, -20_000], 3, True),
        ([86_400_000, 9_000], 3, False),
        ([86_400_000], 3, False),
        ([20_000, 20_000, 0, 0], 5, False),
        ([20_000, 20_000, 20_000, 0], 5, True),
        ([], 1, False),
    ],
)
def test_a_clock_is_doubted_that_more_than_half_of_the_members_contradict(
    tmp_path: Path, others_ahead_ms: list[int], members: int, doubted: bool
) -> None:
    own = signer(tmp_path, 1)
    endorser = Endorser(SMALL.realm, Gate(OPEN, SMALL.realm), own, lambda: 1_000)
    endorser.doubted = doubt(others_ahead_ms, members)
    assert bool(endorser.doubted) is doubted
    if doubted:
        with pytest.raises(Refused) as refused:
            asked = peers_pb2.EndorseRequest(update_request=request(), salt=SALT).SerializeToString()
            endorser.endorse(*decode_endorse(asked, SMALL.realm))
        assert refused.value.reason is Reason.NOT_READY
    own.close()


def refuse(_: bytes) -> bytes:
    raise Refused(Reason.PROOF_INVALID, "the proof is not accepted here")


def nonsense(_: bytes) -> bytes:
    return b"\xff"


LIES: dict[str, Callable[[Answer], Answer]] = {
    "refusal": lambda _: refuse,
    "nonsense": lambda _: nonsense,
    "empty": lambda _: lambda _: b"",
    "another proof": lambda a: spoilt(a, lambda m: setattr(m, "proof_id", bytes(32))),
    "another time": lambda a: spoilt(a, lambda m: setattr(m, "not_after_ms", 10**9)),
    "another key": lambda a: spoilt(a, lambda m: setattr(m, "key_id", bytes(32))),
    "no signature": lambda a: spoilt(a, lambda m: setattr(m, "signature", b"")),
}


@pytest.mark.parametrize("lie", list(LIES))
async def test_an_answer_that_would_not_count_in_the_log_does_not_count(tmp_path: Path, lie: str) -> None:
    honest, lying = peer(signer(tmp_path, 1)), LIES[lie](peer(signer(tmp_path, 2)))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    made, _ = await gathered(first, 2, lying, honest)
    assert len(made) == 2
    with pytest.raises(Refused) as caught:
        await gathered(second, 2, lying)
    assert caught.value.reason is Reason.NOT_READY


async def test_a_stranger_to_the_policy_does_not_count(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        await gathered(tmp_path, 2, peer(signer(tmp_path, 7)))


def test_what_a_peer_is_asked_is_checked_like_a_clients_request() -> None:
    data = request()
    good = peers_pb2.EndorseRequest(update_request=data, salt=SALT)
    asked, private = decode_endorse(good.SerializeToString(), SMALL.realm)
    assert private == private_of(asked, SALT)
    for bad in (
        peers_pb2.EndorseRequest(update_request=data, salt=SALT[1:]),
        peers_pb2.EndorseRequest(update_request=data + b"\xff", salt=SALT),
        peers_pb2.EndorseRequest(update_request=b"", salt=SALT),
        peers_pb2.EndorseRequest(update_request=bytes(300_000), salt=SALT),
    ):
        with pytest.raises(Malformed):
            decode_endorse(bad.SerializeToString(), SMALL.realm)
    another = client_pb2.UpdateRequest.FromString(data)
    another.profile_nonce = bytes(32)
    with pytest.raises(Refused) as caught:
        decode_endorse(
            peers_pb2.EndorseRequest(
                update_request=another.SerializeToString(), salt=SALT
            ).SerializeToString(),
            SMALL.realm,
        )
    assert caught.value.reason is Reason.COMMITMENT_MISMATCH


def test_a_revocation_is_not_endorsed() -> None:
    alice = Person.named("alice", SMALL)
    alice.update({"ssh": b"1"})
    wire = peers_pb2.EndorseRequest(update_request=alice.revocation(), salt=SALT)
    with pytest.raises(Malformed, match="revocation"):
        decode_endorse(wire.SerializeToString(), SMALL.realm)
