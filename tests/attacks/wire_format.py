"""Pieces of the protobuf wire format, for messages that no library writes."""

from __future__ import annotations

VARINT, LENGTH, GROUP, GROUP_END = 0, 2, 3, 4


def varint(number: int, extra: int = 0) -> bytes:
    """`number` in base 128, with `extra` needless bytes."""
    pieces = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        pieces.append(low | (0x80 if number or extra else 0))
        if not number:
            break
    if extra:
        pieces += b"\x80" * (extra - 1) + b"\x00"
    return bytes(pieces)


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def number_field(number: int, value: int) -> bytes:
    return tag(number, VARINT) + varint(value)


def bytes_field(number: int, data: bytes) -> bytes:
    return tag(number, LENGTH) + varint(len(data)) + data


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next thing starts."""
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return number, at


def fields(data: bytes) -> list[bytes]:
    """The encoded fields of a message, tags included, in order. Numbers and lengths only."""
    found, start = [], 0
    while start < len(data):
        key, at = read_varint(data, start)
        value, at = read_varint(data, at)
        end = at + value if key & 7 == LENGTH else at
        found.append(data[start:end])
        start = end
    return found
