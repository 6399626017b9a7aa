"""Numbers and prefixes as keys."""

import pytest

from kv.keys import EVERYTHING, U64_MAX, from_u64, prefix_end, u64


def test_numbers_keep_their_order_and_value() -> None:
    numbers = [0, 1, 127, 128, 255, 256, 2**32 - 1, 2**32, 2**63, U64_MAX]
    encoded = [u64(number) for number in numbers]
    assert encoded == sorted(encoded)
    assert [from_u64(each) for each in encoded] == numbers
    assert u64(258) == b"\x00\x00\x00\x00\x00\x00\x01\x02"


@pytest.mark.parametrize("number", [-1, U64_MAX + 1])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        u64(number)


@pytest.mark.parametrize("encoded", [b"", b"\x00" * 7, b"\x00" * 9])
def test_a_number_takes_exactly_eight_bytes(encoded: bytes) -> None:
    with pytest.raises(ValueError):
        from_u64(encoded)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"\x00", b"\x01"), (b"a\xff", b"b"), (b"a\xff\xff", b"b"), (b"\xfe\xff", b"\xff")],
)
def test_the_end_of_a_prefix_lies_just_above_it(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end
    assert prefix + b"\xff" * 9 < end


@pytest.mark.parametrize("prefix", [b"", b"\xff", b"\xff\xff"])
def test_nothing_lies_above_these_prefixes(prefix: bytes) -> None:
    with pytest.raises(ValueError):
        prefix_end(prefix)


def test_everything_covers_every_table() -> None:
    start, stop = EVERYTHING
    assert start <= b"" < b"\xfe\xff\xff" < stop
