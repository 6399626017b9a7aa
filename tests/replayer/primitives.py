"""What the naive replayer hashes, checks and refuses with."""

from hashlib import sha256
from operator import methodcaller

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from replayer import verdicts as v

u64 = methodcaller("to_bytes", 8, "big")
encoded = methodcaller("SerializeToString", deterministic=True)
Refused = type("Refused", (Exception,), {})  # a verdict other than 0; the number is its argument


def require(condition: bool, code: int = v.MALFORMED) -> None:
    if not condition:
        raise Refused(code)


def tagged(label: str, *parts: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return sha256(bytes([len(label)]) + label.encode() + framed).digest()


def signed_by(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        return crypto_sign_open(signature + message, key) == message
    except CryptoError:
        return False


def parse(kind, data: bytes, largest: int):
    require(len(data) <= largest, v.TOO_LARGE)
    message = kind.FromString(data)
    message.DiscardUnknownFields()
    require(encoded(message) == data)
    return message


def tree_root(leaves: list[tuple[bytes, bytes]], depth: int = 0) -> bytes:
    if len(leaves) < 2:
        return sha256(b"\x02" + b"".join(leaves[0])).digest() if leaves else bytes(32)
    halves = ([at for at in leaves if at[0][depth // 8] >> (7 - depth % 8) & 1 == bit] for bit in (0, 1))
    left, right = (tree_root(half, depth + 1) for half in halves)
    return sha256(b"\x03" + left + right).digest()


def history_root(heads: list[bytes]) -> bytes:
    if len(heads) < 2:
        return sha256(b"".join(b"\x00" + head for head in heads)).digest()
    left = 1 << (len(heads) - 1).bit_length() - 1
    return sha256(b"\x01" + history_root(heads[:left]) + history_root(heads[left:])).digest()
