"""The Ed25519 rule of suite 1, for the accepting and each refusing side, from published edge cases."""

import json
from pathlib import Path
from typing import Any

import pytest

from verifier.crypto import signatures

VECTORS = Path(__file__).parent.parent / "vectors"
EDGES: dict[str, Any] = json.loads((VECTORS / "ed25519_edge_cases.json").read_text())
RFC8032: list[dict[str, str]] = json.loads((VECTORS / "rfc8032.json").read_text())["vectors"]

SEED = bytes(range(32))
KEY = signatures.SigningKey(SEED)
MESSAGE = b"message"
SIGNATURE = KEY.sign(MESSAGE)

# y = p + 3 … p + 18 that lie on the curve: other encodings of points of large order.
NON_CANONICAL_LARGE_ORDER = [(signatures.FIELD_PRIME + y).to_bytes(32, "little") for y in (3, 4, 5, 6, 9, 10)]
# ed25519-speccheck case 3: a key with a torsion component.
MIXED_ORDER_KEY = bytes.fromhex("cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d")


def hexed(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


@pytest.mark.parametrize("case", RFC8032, ids=lambda case: case["name"])
def test_rfc8032_vectors(case: dict[str, str]) -> None:
    seed, public_key, message, signature = hexed(case, "secret_key", "public_key", "message", "signature")
    assert signatures.public_key(seed) == public_key
    assert signatures.sign(seed, message) == signature
    assert signatures.verify(public_key, message, signature)


@pytest.mark.parametrize("case", EDGES["signatures"], ids=lambda case: case["name"])
def test_edge_cases_have_the_verdict_of_suite_1(case: dict[str, Any]) -> None:
    assert signatures.verify(*hexed(case, "key", "message", "signature")) is case["valid"]


def test_edge_cases_have_both_verdicts() -> None:
    verdicts = [case["valid"] for case in EDGES["signatures"]]
    assert verdicts.count(True) > 10
    assert verdicts.count(False) > 100


@pytest.mark.parametrize("point", EDGES["small_order_points"], ids=lambda point: point["encoding"][:6])
def test_small_order_points_are_no_keys(point: dict[str, Any]) -> None:
    encoding = bytes.fromhex(point["encoding"])
    assert not signatures.is_valid_public_key(encoding)
    assert signatures.is_canonical_point(encoding) is point["canonical"]
    assert (encoding in signatures.SMALL_ORDER_POINTS) is point["canonical"]


@pytest.mark.parametrize("point", EDGES["small_order_points"], ids=lambda point: point["encoding"][:6])
def test_small_order_r_is_refused(point: dict[str, Any]) -> None:
    assert not signatures.verify(KEY.public_key, MESSAGE, bytes.fromhex(point["encoding"]) + SIGNATURE[32:])


@pytest.mark.parametrize("encoding", NON_CANONICAL_LARGE_ORDER, ids=lambda encoding: encoding.hex()[:6])
def test_non_canonical_keys_are_refused(encoding: bytes) -> None:
    canonical = (int.from_bytes(encoding, "little") - signatures.FIELD_PRIME).to_bytes(32, "little")
    assert signatures.is_valid_public_key(canonical)
    assert not signatures.is_valid_public_key(encoding)
    assert not signatures.verify(encoding, MESSAGE, SIGNATURE)


def test_key_validity_is_what_verification_accepts() -> None:
    assert signatures.is_valid_public_key(KEY.public_key)
    assert signatures.is_valid_public_key(MIXED_ORDER_KEY)
    assert not signatures.is_valid_public_key(b"\x02" + bytes(31))  # Not on the curve.
    for length in (0, 31, 33, 64):
        assert not signatures.is_valid_public_key(KEY.public_key[:1] * length)


def test_s_is_refused_from_the_group_order_on() -> None:
    s = int.from_bytes(SIGNATURE[32:], "little")
    for multiple in range(1, (2**256 - s) // signatures.GROUP_ORDER + 1):
        other = (s + multiple * signatures.GROUP_ORDER).to_bytes(32, "little")
        assert not signatures.verify(KEY.public_key, MESSAGE, SIGNATURE[:32] + other)


def test_every_flipped_bit_is_refused() -> None:
    for position in range(512):
        bad = bytearray(SIGNATURE)
        bad[position // 8] ^= 1 << position % 8
        assert not signatures.verify(KEY.public_key, MESSAGE, bytes(bad))


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_other_key_lengths_are_refused(length: int) -> None:
    assert not signatures.verify((KEY.public_key + bytes(32))[:length], MESSAGE, SIGNATURE)


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128])
def test_other_signature_lengths_are_refused(length: int) -> None:
    assert not signatures.verify(KEY.public_key, MESSAGE, (SIGNATURE + bytes(64))[:length])


def test_other_message_or_key_is_refused() -> None:
    assert signatures.verify(KEY.public_key, MESSAGE, SIGNATURE)
    assert not signatures.verify(KEY.public_key, MESSAGE + b"\x00", SIGNATURE)
    assert not signatures.verify(KEY.public_key, b"", SIGNATURE)
    assert not signatures.verify(signatures.public_key(b"s" * 32), MESSAGE, SIGNATURE)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_seed_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError):
        signatures.sign(bytes(length), MESSAGE)


def test_a_signing_key_does_not_show_its_secret() -> None:
    assert SEED.hex() not in repr(KEY)
    assert not hasattr(KEY, "__dict__")


def test_self_test_passes_with_this_library() -> None:
    signatures.self_test()


@pytest.mark.parametrize("verdict", [True, False])
def test_self_test_stops_a_library_with_another_rule(verdict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "verify", lambda *_: verdict)
    with pytest.raises(signatures.SignatureRuleError):
        signatures.self_test()


def test_self_test_stops_another_signing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures.SigningKey, "sign", lambda *_: bytes(64))
    with pytest.raises(signatures.SignatureRuleError):
        signatures.self_test()
