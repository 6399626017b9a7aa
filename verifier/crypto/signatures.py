"""Ed25519 (RFC 8032) under the one acceptance rule of suite 1; nothing else verifies signatures.

The rule: S < L, A canonical, A and R not of small order, no cofactor, R compared as bytes.
libsodium >= 1.0.18 applies exactly this to detached signatures. Libraries differ on such edges, and
replicas that differ split the realm, so `self_test` pins the rule at start-up.
"""

from typing import Final, NamedTuple

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError
from nacl.exceptions import RuntimeError as SodiumError

from verifier.limits import KEY_BYTES, SIGNATURE_BYTES

SEED_BYTES = 32

FIELD_PRIME: Final = 2**255 - 19
GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493

IDENTITY: Final = bytes((1,)) + bytes(31)

# The eight points whose order divides the cofactor, canonical encodings (C2SP CCTV, ed25519/README.md).
SMALL_ORDER_POINTS: Final = frozenset(
    bytes.fromhex(encoded)
    for encoded in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class SignatureRuleError(Exception):
    """The linked library does not verify signatures by the rule of suite 1; the process must not start."""


class SigningKey:
    """An Ed25519 secret key. Holds the expanded secret, never shows it."""

    __slots__ = ("_secret", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Expand `seed` (32 bytes, RFC 8032 §5.1.5). Raises `ValueError` for another length."""
        if len(seed) != SEED_BYTES:
            raise ValueError("an Ed25519 seed has 32 bytes")
        public_key, secret = crypto_sign_seed_keypair(seed)
        self.public_key: Final[bytes] = public_key
        self._secret: Final[bytes] = secret

    def sign(self, message: bytes) -> bytes:
        """Return the deterministic signature (64 bytes) over `message`."""
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(public_key={self.public_key.hex()})"


def public_key(seed: bytes) -> bytes:
    """Return the public key (32 bytes) of `seed` (32 bytes). Raises `ValueError` for another length."""
    return SigningKey(seed).public_key


def sign(seed: bytes, message: bytes) -> bytes:
    """Return the signature (64 bytes) over `message` by the key of `seed`. `SigningKey` halves the cost."""
    return SigningKey(seed).sign(message)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Say whether `signature` over `message` by `public_key` satisfies the rule.

    Wrong lengths are False; no bytes raise.
    """
    # The binding hands pointers to C unchecked: a short key would be read past its end.
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


def is_canonical_point(encoded: bytes) -> bool:
    """Say whether 32 bytes are canonical: y < p, and no sign bit where x = 0 (RFC 8032 §5.1.3).

    Says nothing about the point being on the curve. libsodium's point decoding leaves both checks out.
    """
    word = int.from_bytes(encoded, "little")
    y = word & (2**255 - 1)
    negative = word >> 255
    return y < FIELD_PRIME and not (negative and y in (1, FIELD_PRIME - 1))


def is_valid_public_key(public_key: bytes) -> bool:
    """Say whether a signature can verify under `public_key` (any bytes).

    True for 32 bytes that are a canonical encoding of a curve point not of small order.
    """
    if len(public_key) != KEY_BYTES or not is_canonical_point(public_key):
        return False
    if public_key in SMALL_ORDER_POINTS:
        return False
    try:
        crypto_core_ed25519_add(public_key, IDENTITY)
    except SodiumError:
        return False
    return True


class _Pinned(NamedTuple):
    name: str
    verdict: bool
    public_key: str
    message: str
    signature: str


# ed25519-speccheck cases.json, cases 0 to 4, 6 and 11 (tests/vectors/README.md); they tell libraries apart.
_PINNED: Final = (
    _Pinned(
        "A and R of small order",
        False,
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "8c93255d71dcab10e8f379c26200f3c7bd5f09d9bc3068d3ef4edeb4853022b6",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
        "0000000000000000000000000000000000000000000000000000000000000000",
    ),
    _Pinned(
        "A of small order",
        False,
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43"
        "a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
    ),
    _Pinned(
        "R of small order",
        False,
        "f7badec5b8abeaf699583992219b7b223f1df3fbbea919844e3f7c554a43dd43",
        "aebf3f2601a0c8c5d39cc7d8911642f740b78168218da8471772b35f9d35b9ab",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"
        "8c4bd45aecaca5b24fb97bc10ac27ac8751a7dfe1baff8b953ec9f5833ca260e",
    ),
    _Pinned(
        "A and R of mixed order, equation holds",
        True,
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "9bd9f44f4dcc75bd531b56b2cd280b0bb38fc1cd6d1230e14861d861de092e79",
        "9046a64750444938de19f227bb80485e92b83fdb4b6506c160484c016cc1852f"
        "87909e14428a7a1d62e9f22f3d3ad7802db02eb2e688b6c52fcd6648a98bd009",
    ),
    _Pinned(
        "equation holds only times the cofactor",
        False,
        "cdb267ce40c5cd45306fa5d2f29731459387dbf9eb933b7bd5aed9a765b88d4d",
        "e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec4011eaccd55b53f56c",
        "160a1cb0dc9c0258cd0a7d23e94d8fa878bcb1925f2c64246b2dee1796bed512"
        "5ec6bc982a269b723e0668e540911a9a6a58921d6925e434ab10aa7940551a09",
    ),
    _Pinned(
        "S not below L",
        False,
        "442aad9f089ad9e14647b1ef9099a1ff4798d78589e66f28eca69c11f582a623",
        "85e241a07d148b41e47d62c63f830dc7a6851a0b1f33ae4bb2f507fb6cffec40",
        "e96f66be976d82e60150baecff9906684aebb1ef181f67a7189ac78ea23b6c0e"
        "547f7690a0e2ddcd04d87dbc3490dc19b3b3052f7ff0538cb68afb369ba3a514",
    ),
    _Pinned(
        "A not canonical",
        False,
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "39a591f5321bbe07fd5a23dc2f39d025d74526615746727ceefd6e82ae65c06f",
        "a9d55260f765261eb9b84e106f665e00b867287a761990d7135963ee0a7d59dc"
        "a5bb704786be79fc476f91d3f3f89b03984d8068dcf1bb7dfc6637b45450ac04",
    ),
)

# RFC 8032 §7.1, TEST 2: signing is pinned too.
_PINNED_SEED: Final = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
_PINNED_MESSAGE: Final = b"\x72"
_PINNED_SIGNATURE: Final = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def self_test() -> None:
    """Check the linked library against pinned edge cases.

    Raises `SignatureRuleError` naming the first that differs.
    """
    for case in _PINNED:
        fields = (bytes.fromhex(field) for field in (case.public_key, case.message, case.signature))
        if verify(*fields) is not case.verdict:
            raise SignatureRuleError(f"Ed25519 verification differs from the rule: {case.name}")
    key = SigningKey(bytes.fromhex(_PINNED_SEED))
    signature = key.sign(_PINNED_MESSAGE)
    if signature.hex() != _PINNED_SIGNATURE or not verify(key.public_key, _PINNED_MESSAGE, signature):
        raise SignatureRuleError("Ed25519 signing differs from RFC 8032")
