"""RFC 9381 suite 0x03: the vectors, strict decoding, key validation, and that one input has one output."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from verifier.crypto import vrf
from verifier.crypto.signatures import FIELD_PRIME, GROUP_ORDER, IDENTITY

VECTORS = Path(__file__).parent.parent / "vectors"
RFC9381: list[dict[str, str]] = json.loads((VECTORS / "rfc9381.json").read_text())["vectors"]
SMALL_ORDER: list[dict[str, Any]] = json.loads((VECTORS / "ed25519_edge_cases.json").read_text())[
    "small_order_points"
]

SEED = bytes(range(32))
KEY = vrf.VrfKey(SEED)
ALPHA = b"alice@example.org"
PROOF = vrf.prove(KEY, ALPHA)
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")


def secret_scalar(seed: bytes) -> bytes:
    """RFC 8032 §5.1.5, again, for the attacker who owns the key."""
    clamped = bytearray(hashlib.sha512(seed).digest()[:32])
    clamped[0] &= 248
    clamped[31] = clamped[31] & 127 | 64
    return (int.from_bytes(clamped, "little") % GROUP_ORDER).to_bytes(32, "little")


@pytest.mark.parametrize("case", RFC9381, ids=lambda case: case["example"])
def test_rfc9381_vectors(case: dict[str, str]) -> None:
    key = vrf.VrfKey(bytes.fromhex(case["SK"]))
    alpha, pi, beta = (bytes.fromhex(case[name]) for name in ("alpha", "pi", "beta"))
    assert key.public_key.hex() == case["PK"]
    assert vrf._encode_to_curve(key.public_key, alpha).hex() == case["H"]
    assert vrf.prove(key, alpha) == pi
    assert vrf.evaluate(key, alpha) == beta
    assert vrf.proof_to_hash(pi) == beta
    assert vrf.verify(key.public_key, alpha, pi) == beta
    assert vrf.validate_key(key.public_key)


def test_index_is_the_first_half_of_the_output() -> None:
    output = vrf.evaluate(KEY, ALPHA)
    assert len(output) == 64
    assert vrf.index(output) == output[:32]


def test_every_flipped_bit_of_a_proof_is_refused() -> None:
    for position in range(len(PROOF) * 8):
        bad = bytearray(PROOF)
        bad[position // 8] ^= 1 << position % 8
        assert vrf.verify(KEY.public_key, ALPHA, bytes(bad)) is None, position


def test_other_input_or_key_is_refused() -> None:
    assert vrf.verify(KEY.public_key, ALPHA, PROOF) == vrf.evaluate(KEY, ALPHA)
    assert vrf.verify(KEY.public_key, ALPHA + b"\x00", PROOF) is None
    assert vrf.verify(vrf.VrfKey(b"o" * 32).public_key, ALPHA, PROOF) is None


@pytest.mark.parametrize("length", [0, 1, 79, 81, 160])
def test_other_proof_lengths_are_refused(length: int) -> None:
    cut = (PROOF + PROOF)[:length]
    assert vrf.verify(KEY.public_key, ALPHA, cut) is None
    with pytest.raises(ValueError):
        vrf.proof_to_hash(cut)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_other_key_lengths_are_refused(length: int) -> None:
    cut = (KEY.public_key + bytes(1))[:length]
    assert vrf.verify(cut, ALPHA, PROOF) is None
    assert not vrf.validate_key(cut)
    with pytest.raises(ValueError):
        vrf.VrfKey(bytes(length))


def test_s_is_refused_from_the_group_order_on() -> None:
    s = int.from_bytes(PROOF[48:], "little")
    for multiple in range(1, (2**256 - s) // GROUP_ORDER + 1):
        other = PROOF[:48] + (s + multiple * GROUP_ORDER).to_bytes(32, "little")
        assert vrf.verify(KEY.public_key, ALPHA, other) is None
        with pytest.raises(ValueError):
            vrf.proof_to_hash(other)


def test_gamma_off_the_curve_is_refused() -> None:
    bad = b"\x02" + bytes(31) + PROOF[32:]
    assert vrf.verify(KEY.public_key, ALPHA, bad) is None
    with pytest.raises(ValueError):
        vrf.proof_to_hash(bad)


@pytest.mark.parametrize("y", [3, 4, 5, 6, 9, 10])
def test_non_canonical_points_are_refused(y: int) -> None:
    point = (FIELD_PRIME + y).to_bytes(32, "little")
    assert not vrf.validate_key(point)
    assert vrf.verify(point, ALPHA, PROOF) is None
    with pytest.raises(ValueError):
        vrf.proof_to_hash(point + PROOF[32:])


@pytest.mark.parametrize("case", SMALL_ORDER, ids=lambda case: case["encoding"][:6])
def test_small_order_key_and_gamma_are_refused(case: dict[str, Any]) -> None:
    point = bytes.fromhex(case["encoding"])
    assert not vrf.validate_key(point)
    assert vrf.verify(point, ALPHA, PROOF) is None
    assert vrf.verify(KEY.public_key, ALPHA, point + PROOF[32:]) is None


def test_a_key_or_gamma_with_torsion_is_refused() -> None:
    mixed_key = bindings.crypto_core_ed25519_add(KEY.public_key, ORDER_8)
    assert not vrf.validate_key(mixed_key)
    assert vrf.verify(mixed_key, ALPHA, PROOF) is None
    mixed_gamma = bindings.crypto_core_ed25519_add(PROOF[:32], ORDER_8)
    assert vrf.verify(KEY.public_key, ALPHA, mixed_gamma + PROOF[32:]) is None


@pytest.mark.parametrize("public_key", [IDENTITY, ORDER_8], ids=["identity", "order 8"])
def test_the_forgery_that_only_key_validation_stops_is_refused(public_key: bytes) -> None:
    """With a key of small order and c = 0 mod 8 the equations hold for Gamma = identity, for any input."""
    hashed = vrf._encode_to_curve(public_key, ALPHA)
    for number in range(1, 1000):
        k = number.to_bytes(32, "little")
        u = bindings.crypto_scalarmult_ed25519_base_noclamp(k)
        v = bindings.crypto_scalarmult_ed25519_noclamp(k, hashed)
        c = vrf._challenge(public_key, hashed, IDENTITY, u, v)
        if c[0] % 8 == 0:
            break
    else:
        raise AssertionError("no challenge divisible by 8 in 1000 tries")
    assert vrf.verify(public_key, ALPHA, IDENTITY + c + k) is None


def weak_challenge(public_key: bytes, hashed: bytes, gamma: bytes, u: bytes, v: bytes) -> bytes:
    """coname's: over the two commitments only, so Gamma can be chosen after the challenge."""
    return hashlib.sha512(b"weak" + u + v).digest()[:16]


def proof_with_another_gamma(a: int, b: int) -> bytes:
    """The key owner's attack: fix U = aB and V = bH, learn c, and solve V = sH - c*Gamma for Gamma."""
    hashed = vrf._encode_to_curve(KEY.public_key, ALPHA)
    u = bindings.crypto_scalarmult_ed25519_base_noclamp(a.to_bytes(32, "little"))
    v = bindings.crypto_scalarmult_ed25519_noclamp(b.to_bytes(32, "little"), hashed)
    c = weak_challenge(KEY.public_key, hashed, b"", u, v)
    c_int, x = int.from_bytes(c, "little"), int.from_bytes(secret_scalar(SEED), "little")
    s = (a + c_int * x) % GROUP_ORDER
    exponent = (s - b) * pow(c_int, -1, GROUP_ORDER) % GROUP_ORDER
    gamma = bindings.crypto_scalarmult_ed25519_noclamp(exponent.to_bytes(32, "little"), hashed)
    return gamma + c + s.to_bytes(32, "little")


@pytest.mark.parametrize(("a", "b"), [(2, 3), (5, 7), (11, 13)])
def test_the_key_owner_cannot_make_a_second_output(a: int, b: int) -> None:
    assert vrf.verify(KEY.public_key, ALPHA, proof_with_another_gamma(a, b)) is None


def test_the_attack_works_on_a_challenge_that_omits_key_and_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: the same proofs give three more outputs under coname's challenge."""
    monkeypatch.setattr(vrf, "_challenge", weak_challenge)
    proofs = [vrf.prove(KEY, ALPHA), *(proof_with_another_gamma(a, b) for a, b in ((2, 3), (5, 7), (11, 13)))]
    outputs = {vrf.verify(KEY.public_key, ALPHA, proof) for proof in proofs}
    assert None not in outputs
    assert len(outputs) == 4


def test_a_key_does_not_show_its_secret() -> None:
    assert SEED.hex() not in repr(KEY)
    assert secret_scalar(SEED).hex() not in repr(KEY)
    assert not hasattr(KEY, "__dict__")
