"""Frames: what is sent arrives, however the stream is cut; too long a frame is refused before it is held."""

import random
from collections.abc import Callable

import pytest

from replication.raft.frames import ALIVE, FRAME_BYTES_MAX, FrameReader, FrameRefused, framed


def test_frames_are_found_however_the_stream_is_cut(rng: random.Random, count: Callable[[int], int]) -> None:
    for _ in range(count(200)):
        contents = [rng.randbytes(rng.choice((1, 2, 100, 5000))) for _ in range(rng.randrange(8))]
        stream = b"".join(ALIVE + framed(content) for content in contents)
        reader = FrameReader()
        read: list[bytes] = []
        while stream:
            cut = rng.randrange(1, len(stream) + 1)
            read += reader.feed(stream[:cut])
            stream = stream[cut:]
        assert read == [part for content in contents for part in (b"", content)]


def test_the_largest_frame_is_taken_and_one_more_byte_is_not() -> None:
    largest = framed(bytes(FRAME_BYTES_MAX))
    assert FrameReader().feed(largest) == [bytes(FRAME_BYTES_MAX)]
    with pytest.raises(FrameRefused, match="beyond the limit"):
        FrameReader().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(FrameRefused, match="beyond the limit"):
        FrameReader().feed(framed(b"x") + b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("size", [0, FRAME_BYTES_MAX + 1])
def test_no_other_length_is_made(size: int) -> None:
    with pytest.raises(ValueError, match="a frame holds"):
        framed(bytes(size))
