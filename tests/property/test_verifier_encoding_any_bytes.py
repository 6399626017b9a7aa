"""Any bytes into any decoder: a value, or one typed error. Random bytes, and valid ones cut and flipped."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import ALICE, BOB, any_of, make_entry, sign_entry
from samples.directory import Directory

from keyserver.machine import commands
from verifier import encoding, limits, proof_encoding
from verifier import realm as realms
from verifier.errors import Malformed

USER = "alice@example.test"


def directory() -> Directory:
    made = Directory()
    made.put(USER, encoding.encode_profile({"ssh": b"key"}))
    made.put("bob@example.test", owner=BOB)
    for _ in range(4):
        made.close()
    return made


D = directory()
UPDATE = sign_entry(make_entry(USER), ALICE).encoded
ENVELOPE = commands.encode_envelope(
    replica=ALICE.id, time_ms=1, commands=[commands.encode_command(commands.Delimiter(1, 2))]
)
DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "quorum": (encoding.decode_quorum, encoding.encode_quorum(any_of(ALICE, BOB).quorum)),
    "policy": (
        lambda data: encoding.decode_policy(data, limits.UPDATE_POLICY_KEYS, "policy"),
        any_of(ALICE).encoded,
    ),
    "entry": (encoding.decode_entry, make_entry(USER).encoded),
    "update": (encoding.decode_update, UPDATE),
    "profile": (encoding.decode_profile, encoding.encode_profile({"age": b"1", "ssh": b"2"})),
    "head": (encoding.decode_head, D.heads[0]),
    "signed head": (encoding.decode_signed_head, D.signed(1).encoded),
    "lookup proof": (proof_encoding.decode_lookup_proof, D.lookup(USER, 1)),
    "absence proof": (proof_encoding.decode_lookup_proof, D.lookup("carol@example.test", 1)),
    "consistency proof": (proof_encoding.decode_consistency_proof, D.consistency(2, 4)),
    "update step": (proof_encoding.decode_step, proof_encoding.encode_update_step(1, UPDATE)),
    "epoch step": (proof_encoding.decode_step, proof_encoding.encode_epoch_step(2, D.signed(1).encoded)),
    "steps": (proof_encoding.decode_steps, b""),
    "realm.json": (realms.parse_realm_json, realms.realm_json(D.realm)),
    "log entry": (commands.decode_log_entry, commands.encode_log_entry(ENVELOPE, bytes(64), [])),
}


def decodes(decode: Callable[[bytes], object], data: bytes) -> bool:
    """Whether the bytes give a value; anything but a value or Malformed fails the test."""
    try:
        decode(data)
    except Malformed:
        return False
    return True


@pytest.mark.parametrize("name", DECODERS)
def test_valid_bytes_decode(name: str) -> None:
    decode, valid = DECODERS[name]
    assert decodes(decode, valid)


@given(data=st.binary(max_size=400))
def test_any_bytes_give_a_value_or_one_typed_error(data: bytes) -> None:
    for decode, _ in DECODERS.values():
        decodes(decode, data)  # any other exception fails


@pytest.mark.parametrize("name", DECODERS)
def test_mutated_valid_bytes_give_a_value_or_one_typed_error(
    name: str, rng: Random, count: Callable[[int], int]
) -> None:
    decode, valid = DECODERS[name]
    others = [sample for _, sample in DECODERS.values()]
    refused = 0
    for _ in range(count(400)):
        data = bytearray(valid or b"\x0a\x00")
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                data += rng.choice(others)
            case _:
                data[at : at + 8] = rng.choice(others)[: rng.randrange(1, 40)]
        refused += not decodes(decode, bytes(data))
    assert refused > 0
