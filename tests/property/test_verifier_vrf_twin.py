"""The VRF against a dumb twin in plain integers (RFC 9381 §5 read line by line), and against mutations."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.crypto import vrf

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]

KEY = vrf.VrfKey(b"k" * 32)
ALPHA = b"carol@example.org"
PROOF = vrf.prove(KEY, ALPHA)


def add(p: Point, q: Point) -> Point:
    t = D * p[0] * q[0] * p[1] * q[1] % P
    x = (p[0] * q[1] + p[1] * q[0]) * pow(1 + t, -1, P)
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - t, -1, P)
    return x % P, y % P


def times(n: int, p: Point) -> Point:
    total = (0, 1)
    while n:
        if n & 1:
            total = add(total, p)
        p, n = add(p, p), n >> 1
    return total


def encode(p: Point) -> bytes:
    return (p[1] | (p[0] & 1) << 255).to_bytes(32, "little")


def decode(data: bytes) -> Point | None:
    word = int.from_bytes(data, "little")
    y, sign = word & (2**255 - 1), word >> 255
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square or (x == 0 and sign):
        return None
    return (P - x if x & 1 != sign else x), y


def base() -> Point:
    point = decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    assert point is not None
    return point


def hash_to_curve(salt: bytes, alpha: bytes) -> Point:
    for counter in range(256):
        digest = hashlib.sha512(b"\x03\x01" + salt + alpha + bytes((counter, 0))).digest()
        point = decode(digest[:32])
        if point is not None and times(8, point) != (0, 1):
            return times(8, point)
    raise AssertionError


def twin_prove(seed: bytes, alpha: bytes) -> tuple[bytes, bytes]:
    hashed = hashlib.sha512(seed).digest()
    x = int.from_bytes(hashed[:32], "little") & ~(7 | 1 << 255) | 1 << 254
    public = encode(times(x, base()))
    h = hash_to_curve(public, alpha)
    gamma = times(x, h)
    k = int.from_bytes(hashlib.sha512(hashed[32:] + encode(h)).digest(), "little") % L
    points = public + b"".join(encode(p) for p in (h, gamma, times(k, base()), times(k, h)))
    c = hashlib.sha512(b"\x03\x02" + points + b"\x00").digest()[:16]
    s = (k + int.from_bytes(c, "little") * x) % L
    beta = hashlib.sha512(b"\x03\x03" + encode(times(8, gamma)) + b"\x00").digest()
    return encode(gamma) + c + s.to_bytes(32, "little"), beta


@settings(max_examples=15, deadline=None, print_blob=True)
@given(seed=st.binary(min_size=32, max_size=32), alpha=st.binary(max_size=300))
def test_proofs_and_outputs_equal_the_twin(seed: bytes, alpha: bytes) -> None:
    key = vrf.VrfKey(seed)
    proof, output = twin_prove(seed, alpha)
    assert vrf.prove(key, alpha) == proof
    assert vrf.evaluate(key, alpha) == output
    assert vrf.proof_to_hash(proof) == output
    assert vrf.verify(key.public_key, alpha, proof) == output


@settings(max_examples=300, deadline=None, print_blob=True)
@given(at=st.integers(0, 79), value=st.integers(1, 255))
def test_a_changed_byte_is_refused(at: int, value: int) -> None:
    bad = PROOF[:at] + bytes((PROOF[at] ^ value,)) + PROOF[at + 1 :]
    assert vrf.verify(KEY.public_key, ALPHA, bad) is None


@settings(max_examples=300, deadline=None, print_blob=True)
@given(key=st.binary(max_size=40), proof=st.binary(min_size=78, max_size=82), alpha=st.binary(max_size=20))
def test_any_bytes_are_refused_without_an_error(key: bytes, proof: bytes, alpha: bytes) -> None:
    assert vrf.verify(key, alpha, proof) is None
    assert vrf.verify(KEY.public_key, alpha, proof) is None
