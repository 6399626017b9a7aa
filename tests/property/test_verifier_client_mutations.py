"""Mutations of what is valid: a typed error, or the very same result without a signature it did not need."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from e2eks.v1 import client_pb2
from e2eks.v1 import types_pb2 as pb
from google.protobuf.message import Message
from samples import (
    ALICE,
    BOB,
    EVE,
    REALM,
    VRF_KEY,
    index_of,
    make_entry,
    sign_entry,
)
from simulated_realm import SimulatedRealm

from verifier import consistency, encoding, lookup, policy, proof_encoding, update
from verifier import realm as realms
from verifier.crypto import vrf
from verifier.epoch import Signers
from verifier.errors import E2eksError
from verifier.lookup import Absent, Present, Trust, verify_lookup
from verifier.types import QuorumExpr, SignedHead

USER, OTHER, NOBODY = "alice@example.test", "bob@example.test", "nobody@example.test"
TRUST = Trust(REALM, REALM.verification_policy.quorum, REALM.genesis_policy)
SHARES = {"proof": 9000, "head": 5000, "update": 4000, "consistency": 3000, "vrf": 2000}


def make_world() -> SimulatedRealm:
    world = SimulatedRealm()
    world.put(USER, {"ssh": b"ssh-ed25519 AAAA alice", "age": b"age1alice"})
    for n in range(12):
        world.put(f"user{n}@example.test", {"age": b"age1%d" % n}, BOB)
    for n in range(5):
        world.close()
        world.put(OTHER, {"age": b"age1bob%d" % n}, BOB)
    return world


# How bytes are mutated


def flip_a_bit(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]


def set_a_byte(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes((rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))),)) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 40) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 4)) + data[at:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start, at = rng.randrange(len(data)), rng.randrange(len(data) + 1)
    return data[:at] + data[start : start + rng.randrange(1, 110)] + data[at:]


BYTES = (flip_a_bit, flip_a_bit, flip_a_bit, set_a_byte, set_a_byte, cut, insert, repeat)


def mutate_message(message: Message, rng: random.Random, depth: int = 0) -> None:
    """Change one field somewhere in the message; the encoding stays well-formed."""
    fields = message.ListFields()
    if not fields:
        return
    descriptor, value = rng.choice(fields)
    name = descriptor.name
    if descriptor.is_repeated:
        mutate_repeated(value, rng, depth)
    elif descriptor.message_type is not None:
        if rng.random() < 0.05:
            message.ClearField(name)
        else:
            mutate_message(value, rng, depth + 1)
    elif rng.random() < 0.1:
        message.ClearField(name)
    elif isinstance(value, bytes):
        setattr(message, name, rng.choice(BYTES)(value, rng))
    elif isinstance(value, bool):
        setattr(message, name, not value)
    elif isinstance(value, int):
        bound = 2**32 - 1 if descriptor.cpp_type == descriptor.CPPTYPE_UINT32 else 2**64 - 1
        setattr(
            message,
            name,
            rng.choice((value + 1, abs(value - 1), value ^ 1 << rng.randrange(20), bound)) & bound,
        )
    else:
        setattr(message, name, rng.choice((OTHER, value + "x", value.upper(), value[:-1])))


def mutate_repeated(items: object, rng: random.Random, depth: int) -> None:
    """Drop, double, swap or change an item of a repeated field."""
    values = list(items)  # type: ignore[call-overload]
    at = rng.randrange(len(values))
    action = rng.random()
    if action < 0.15:
        del values[at]
    elif action < 0.3:
        values.insert(rng.randrange(len(values) + 1), values[at])
    elif action < 0.4:
        rng.shuffle(values)
    elif isinstance(values[at], bytes):
        values[at] = rng.choice(BYTES)(values[at], rng) if values[at] else rng.randbytes(32)
    else:
        changed = type(values[at]).FromString(values[at].SerializeToString())
        mutate_message(changed, rng, depth + 1)
        values[at] = changed
    del items[:]  # type: ignore[attr-defined]
    items.extend(values)  # type: ignore[attr-defined]


def mutated(kind: type[Message], data: bytes, rng: random.Random) -> bytes:
    """Half of them bytes, half of them fields."""
    if rng.random() < 0.5:
        return rng.choice(BYTES)(data, rng)
    message = kind.FromString(data)
    mutate_message(message, rng)
    return encoding.canonical(message)


# What must come of them


@dataclass
class Tally:
    tried: int = 0
    decoded: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    def run(
        self,
        kind: type[Message],
        valid: bytes,
        decode: Callable[[bytes], object],
        judge: Callable[[bytes], object],
        rng: random.Random,
    ) -> tuple[bytes, object] | None:
        """Judge one mutation; the result if it was accepted. Anything but a typed error is a failure."""
        data = mutated(kind, valid, rng)
        if data == valid:
            return None
        self.tried += 1
        try:
            decode(data)
            self.decoded += 1
            result = judge(data)
        except E2eksError as error:
            self.ends[type(error).__name__] += 1
            return None
        self.ends["accepted"] += 1
        return data, result


def mutate_proofs(world: SimulatedRealm, rng: random.Random, tally: Tally, times: int) -> None:
    now = world.now_ms()
    proofs = [(user, world.lookup(user, world.epoch)) for user in (USER, NOBODY)]
    for n in range(times):
        user, valid = proofs[n % 2]
        accepted = tally.run(
            client_pb2.LookupProof,
            valid,
            proof_encoding.decode_lookup_proof,
            lambda data, user=user: verify_lookup(TRUST, user, data, now_ms=now),  # type: ignore[misc]
            rng,
        )
        if accepted is not None:
            check_proof(valid, *accepted)


def check_proof(valid: bytes, data: bytes, result: object) -> None:
    """Accepted: everything is as it was but for ratifications, and the remaining ones meet the quorum."""
    assert isinstance(result, Present | Absent)
    before, after = map(client_pb2.LookupProof.FromString, (valid, data))
    assert before.head.head == after.head.head
    erased = bool(before.profile) and not after.profile and not after.profile_nonce
    assert not erased
    for message in (before, after):
        del message.head.ratifications[:]
    assert encoding.canonical(before) == encoding.canonical(after)
    check_signers(encoding.signed_head_from(client_pb2.LookupProof.FromString(valid).head), result.signers)


def check_signers(valid: SignedHead, signers: object) -> None:
    """Nobody is counted who did not sign, nor at another time, and those counted meet the quorum."""
    assert isinstance(signers, Signers)
    signed = {
        made.key_id: ratification.timestamp_ms
        for ratification in valid.ratifications
        for made in ratification.signatures
    }
    assert signers.replicas <= signed.keys()
    assert signers.verifiers.items() <= signed.items()
    assert policy.satisfied(TRUST.quorum, {*signers.replicas, *signers.verifiers})


def mutate_heads(world: SimulatedRealm, rng: random.Random, tally: Tally, times: int) -> None:
    now = world.now_ms()
    valid = world.head(world.epoch).encoded
    for _ in range(times):
        accepted = tally.run(
            pb.SignedEpochHead,
            valid,
            encoding.decode_signed_head,
            lambda data: lookup.verify_head(TRUST, encoding.decode_signed_head(data), now_ms=now),
            rng,
        )
        if accepted is not None:
            assert (
                pb.SignedEpochHead.FromString(accepted[0]).head == pb.SignedEpochHead.FromString(valid).head
            )


def mutate_updates(rng: random.Random, tally: Tally, times: int) -> None:
    ids = (ALICE.id, BOB.id, EVE.id)
    law = encoding.make_policy([ALICE.public, BOB.public, EVE.public], QuorumExpr(2, ids))
    current = make_entry(USER, update_policy=law)
    signed = sign_entry(make_entry(USER, 1, previous=current, update_policy=law), ALICE, BOB, EVE)
    for _ in range(times):
        accepted = tally.run(
            pb.SignedEntryUpdate,
            signed.encoded,
            encoding.decode_update,
            lambda data: update.verify_update(current, encoding.decode_update(data), realm_hash=REALM.hash),
            rng,
        )
        if accepted is not None:
            assert pb.SignedEntryUpdate.FromString(accepted[0]).entry == signed.entry.encoded


def mutate_consistency(world: SimulatedRealm, rng: random.Random, tally: Tally, times: int) -> None:
    held = world.head(2)
    valid = world.directory.consistency(2, 5)
    for _ in range(times):
        accepted = tally.run(
            client_pb2.ConsistencyProof,
            valid,
            proof_encoding.decode_consistency_proof,
            lambda data: consistency.verify_consistency(
                TRUST, held, proof_encoding.decode_consistency_proof(data)
            ),
            rng,
        )
        if accepted is not None:
            before, after = map(client_pb2.ConsistencyProof.FromString, (valid, accepted[0]))
            assert before.new_head.head == after.new_head.head
            assert (before.inclusion, before.consistency) == (after.inclusion, after.consistency)


def test_no_mutation_of_anything_valid_proves_anything_else(
    rng: random.Random, count: Callable[[int], int]
) -> None:
    world, tally = make_world(), Tally()
    mutate_proofs(world, rng, tally, count(SHARES["proof"]))
    mutate_heads(world, rng, tally, count(SHARES["head"]))
    mutate_updates(rng, tally, count(SHARES["update"]))
    mutate_consistency(world, rng, tally, count(SHARES["consistency"]))
    assert tally.tried >= count(20_000), tally
    assert tally.decoded >= 0.3 * tally.tried, tally
    kinds = {"accepted", "Malformed", "VerificationError", "Refused", "HistoryConflict", "NotRatified"}
    assert tally.ends.keys() == kinds, tally


def test_no_mutation_of_a_vrf_proof_gives_another_output(
    rng: random.Random, count: Callable[[int], int]
) -> None:
    index, proof = index_of(USER)
    alpha = realms.user_id_alpha(REALM.name, USER)
    for _ in range(count(SHARES["vrf"])):
        changed = rng.choice(BYTES)(proof, rng)
        output = vrf.verify(VRF_KEY.public_key, alpha, changed)
        assert output is None or vrf.index(output) == index
        assert output is None or changed == proof
