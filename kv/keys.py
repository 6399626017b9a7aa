"""How numbers and prefixes become keys: the only place where the order of bytes is discussed.

Keys are compared as unsigned bytes, shorter first when one is a prefix of the other. Numbers are therefore
written big endian with a fixed width, so that the order of the keys is the order of the numbers.
"""

U64_BYTES = 8
U64_MAX = 2**64 - 1

# Every key of every table lies in this range: kv.tables refuses the prefix 0xff.
EVERYTHING = (b"", b"\xff")


def u64(number: int) -> bytes:
    """Encode 0 <= number < 2**64 as 8 big-endian bytes. Raises OverflowError outside that range."""
    return number.to_bytes(U64_BYTES, "big")


def from_u64(encoded: bytes) -> int:
    """Decode what u64() made. Raises ValueError unless there are exactly 8 bytes."""
    if len(encoded) != U64_BYTES:
        raise ValueError(f"a 64-bit number takes {U64_BYTES} bytes, not {len(encoded)}")
    return int.from_bytes(encoded, "big")


def prefix_end(prefix: bytes) -> bytes:
    """Return the smallest key above all keys that start with `prefix`, to be the `stop` of a scan.

    Raises ValueError for the empty prefix and for one of 0xff bytes only: nothing lies above those.
    """
    head = prefix.rstrip(b"\xff")
    if not head:
        raise ValueError("no key lies above every key with this prefix")
    return head[:-1] + bytes((head[-1] + 1,))
