"""ECVRF-EDWARDS25519-SHA512-TAI (RFC 9381, suite 0x03) with key validation, on libsodium's groups.

The challenge covers the public key, H and Gamma, so one key gives one output for one input: a keyserver
cannot hide a user under a second index. Secret scalars meet only libsodium's scalar and point functions;
`alpha` (a user id) is no secret to the key holder, and the number of tries to the curve depends on it.

Stricter than the RFC in two points, neither met by honest proofs: points with a torsion component are
refused (libsodium multiplies only points of the prime-order group), and so are challenge 0 and s = 0.
"""

from hashlib import sha512
from typing import Final

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)
from nacl.exceptions import RuntimeError as SodiumError

from verifier.crypto.signatures import GROUP_ORDER, IDENTITY, is_canonical_point
from verifier.limits import HASH_BYTES, KEY_BYTES, VRF_PROOF_BYTES

SEED_BYTES = 32

_POINT_BYTES = 32
_CHALLENGE_BYTES = 16
_SCALAR_BYTES = 32
_SCALAR_PADDING = bytes(_SCALAR_BYTES - _CHALLENGE_BYTES)

_SUITE = b"\x03"
_ENCODE_TO_CURVE = _SUITE + b"\x01"
_CHALLENGE = _SUITE + b"\x02"
_PROOF_TO_HASH = _SUITE + b"\x03"
_BACK = b"\x00"
_TRIES = 256  # The counter is one byte; each try succeeds with probability 1/2.


class VrfKey:
    """A VRF secret key. Holds the secret scalar and the nonce prefix, never shows them."""

    __slots__ = ("_prefix", "_scalar", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Expand `seed` (32 bytes) as RFC 8032 §5.1.5 does. Raises `ValueError` for another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError("a VRF seed has 32 bytes")
        hashed = sha512(seed).digest()
        clamped = bytearray(hashed[:_SCALAR_BYTES])
        clamped[0] &= 0b1111_1000
        clamped[31] = clamped[31] & 0b0111_1111 | 0b0100_0000
        self._prefix: Final = hashed[_SCALAR_BYTES:]
        self._scalar: Final = crypto_core_ed25519_scalar_reduce(bytes(clamped) + bytes(_SCALAR_BYTES))
        self.public_key: Final = crypto_scalarmult_ed25519_base_noclamp(self._scalar)

    def __repr__(self) -> str:
        return f"VrfKey(public_key={self.public_key.hex()})"


def prove(key: VrfKey, alpha: bytes) -> bytes:
    """Return the proof (80 bytes: Gamma ‖ challenge ‖ s) for `alpha`, any bytes (RFC 9381 §5.1).

    Deterministic: the same key and input give the same bytes.
    """
    hashed = _encode_to_curve(key.public_key, alpha)
    gamma = crypto_scalarmult_ed25519_noclamp(key._scalar, hashed)
    nonce = crypto_core_ed25519_scalar_reduce(sha512(key._prefix + hashed).digest())
    challenge = _challenge(
        key.public_key,
        hashed,
        gamma,
        crypto_scalarmult_ed25519_base_noclamp(nonce),
        crypto_scalarmult_ed25519_noclamp(nonce, hashed),
    )
    product = crypto_core_ed25519_scalar_mul(challenge + _SCALAR_PADDING, key._scalar)
    return gamma + challenge + crypto_core_ed25519_scalar_add(nonce, product)


def evaluate(key: VrfKey, alpha: bytes) -> bytes:
    """Return the output (64 bytes) for `alpha` without a proof; equals `proof_to_hash(prove(key, alpha))`."""
    return _output(crypto_scalarmult_ed25519_noclamp(key._scalar, _encode_to_curve(key.public_key, alpha)))


def proof_to_hash(proof: bytes) -> bytes:
    """Return the output (64 bytes) of a proof that is known to be valid (RFC 9381 §5.2).

    Proves nothing by itself. Raises `ValueError` where the proof does not decode.
    """
    decoded = _decode_proof(proof)
    if decoded is None:
        raise ValueError("not a VRF proof")
    try:
        return _output(decoded[0])
    except SodiumError:
        raise ValueError("not a VRF proof") from None


def verify(public_key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
    """Return the output (64 bytes) that `proof` proves for `alpha` under `public_key`, or None.

    RFC 9381 §5.3 with key validation. Any bytes in any argument give an answer, never an error.
    """
    decoded = _decode_proof(proof)
    if decoded is None or len(public_key) != KEY_BYTES or not is_canonical_point(public_key):
        return None
    gamma, challenge, s = decoded
    hashed = _encode_to_curve(public_key, alpha)
    c = challenge + _SCALAR_PADDING
    try:
        # Multiplying refuses points off the curve, of small order and outside the prime-order group:
        # this is the validation of the key and of Gamma.
        c_key = crypto_scalarmult_ed25519_noclamp(c, public_key)
        c_gamma = crypto_scalarmult_ed25519_noclamp(c, gamma)
        u = crypto_core_ed25519_sub(crypto_scalarmult_ed25519_base_noclamp(s), c_key)
        v = crypto_core_ed25519_sub(crypto_scalarmult_ed25519_noclamp(s, hashed), c_gamma)
    except SodiumError:
        return None
    if _challenge(public_key, hashed, gamma, u, v) != challenge:
        return None
    return _output(gamma)


def validate_key(public_key: bytes) -> bool:
    """Say whether any bytes are a VRF public key: canonical, in the prime-order group, not the identity.

    RFC 9381 §5.4.5 asks for less; `verify` refuses what this refuses.
    """
    return (
        len(public_key) == KEY_BYTES
        and is_canonical_point(public_key)
        and crypto_core_ed25519_is_valid_point(public_key)
    )


def index(output: bytes) -> bytes:
    """Return the place in the prefix tree (32 bytes) that an output (64 bytes) gives."""
    return output[:HASH_BYTES]


def _decode_proof(proof: bytes) -> tuple[bytes, bytes, bytes] | None:
    if len(proof) != VRF_PROOF_BYTES:
        return None
    gamma = proof[:_POINT_BYTES]
    challenge = proof[_POINT_BYTES : _POINT_BYTES + _CHALLENGE_BYTES]
    s = proof[_POINT_BYTES + _CHALLENGE_BYTES :]
    if int.from_bytes(s, "little") >= GROUP_ORDER or not is_canonical_point(gamma):
        return None
    return gamma, challenge, s


def _encode_to_curve(salt: bytes, alpha: bytes) -> bytes:
    """Try-and-increment (§5.4.1.1): the first hash that decodes as a point, times the cofactor."""
    prefix = sha512(_ENCODE_TO_CURVE + salt + alpha)
    for counter in range(_TRIES):
        attempt = prefix.copy()
        attempt.update(bytes((counter,)) + _BACK)
        candidate = attempt.digest()[:_POINT_BYTES]
        if not is_canonical_point(candidate):
            continue
        try:
            point = _times_cofactor(candidate)
        except SodiumError:
            continue
        if point != IDENTITY:
            return point
    raise AssertionError("no try reached the curve: probability 2^-256")


def _challenge(*points: bytes) -> bytes:
    """Hash of Y, H, Gamma, U, V in this order (§5.4.3); 16 bytes."""
    return sha512(_CHALLENGE + b"".join(points) + _BACK).digest()[:_CHALLENGE_BYTES]


def _output(gamma: bytes) -> bytes:
    return sha512(_PROOF_TO_HASH + _times_cofactor(gamma) + _BACK).digest()


def _times_cofactor(point: bytes) -> bytes:
    """Eight times a point, by doubling: cheaper than a multiplication, and without its subgroup check."""
    double = crypto_core_ed25519_add(point, point)
    quadruple = crypto_core_ed25519_add(double, double)
    return crypto_core_ed25519_add(quadruple, quadruple)
