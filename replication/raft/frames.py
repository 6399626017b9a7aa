"""Frames on a stream of bytes: u32be length, then so many bytes. A frame of length 0 is a sign of life.

Pure. The length is judged before a byte of the content is kept, so nobody makes a replica hold more than
FRAME_BYTES_MAX of what it has not understood.
"""

from __future__ import annotations

# An append of 4 MiB and what is around it, twice.
FRAME_BYTES_MAX = 8 * 1024 * 1024
LENGTH_BYTES = 4
ALIVE = bytes(LENGTH_BYTES)


class FrameRefused(Exception):
    """The stream holds something that is no frame of ours. Its text is a stable reason."""


def framed(content: bytes) -> bytes:
    """Return the frame of 1 to FRAME_BYTES_MAX bytes of content. Raises ValueError for any other length."""
    if not 0 < len(content) <= FRAME_BYTES_MAX:
        raise ValueError(f"a frame holds 1 to {FRAME_BYTES_MAX} bytes, not {len(content)}")
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


class FrameReader:
    """Cuts a stream into the contents of its frames; b"" stands for a sign of life."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Take the next bytes of the stream; return what is complete. Raises FrameRefused: end the stream."""
        buffer = self._buffer
        buffer += data
        contents: list[bytes] = []
        start = 0
        while len(buffer) - start >= LENGTH_BYTES:
            begin = start + LENGTH_BYTES
            length = int.from_bytes(buffer[start:begin], "big")
            if length > FRAME_BYTES_MAX:
                raise FrameRefused("a frame beyond the limit")
            if len(buffer) < begin + length:
                break
            start = begin + length
            contents.append(bytes(buffer[begin:start]))
        del buffer[:start]
        return contents
