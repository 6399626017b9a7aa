"""HTTP/2 frames written by hand (RFC 9113), over a blocking TLS socket: what no honest library would send.

Headers are literals without indexing (RFC 7541, section 6.2.2), so that no state is kept; what the server
sends is only cut into frames, its headers are not decoded.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4  # a setting
CANCEL = 8  # an error code
ENHANCE_YOUR_CALM = 11
GRPC_FRAME = struct.Struct(">BI")  # compressed or not, and the length of one message
TIMEOUT_S = 60.0
WINDOW = 65_535  # before the server says otherwise
FRAME_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as received."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in values.items()))


def reset(stream: int) -> bytes:
    """A RST_STREAM frame: the call is cancelled."""
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", CANCEL))


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, as a literal without indexing and without Huffman coding."""
    return b"\x00" + _string(name) + _string(value)


def _string(data: bytes) -> bytes:
    length = len(data)
    if length < 127:
        return bytes([length]) + data
    encoded, rest = bytearray([127]), length - 127
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*encoded, rest]) + data


def call_headers(path: str, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """The header block of a gRPC call."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *extra,
    )
    return b"".join(literal(*field) for field in fields)


def message(data: bytes, announced: int | None = None) -> bytes:
    """A gRPC message; `announced` is a length other than its own."""
    return GRPC_FRAME.pack(0, len(data) if announced is None else announced) + data


def call(stream: int, path: str, request: bytes) -> bytes:
    """A whole call in two frames; the request has at most 16 KiB."""
    return frame(HEADERS, END_HEADERS, stream, call_headers(path)) + frame(
        DATA, END_STREAM, stream, message(request)
    )


def _over_tls(plain: socket.socket, roots: str) -> socket.socket:
    context = ssl.create_default_context(cadata=roots)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(plain, server_hostname="localhost")


class Connection:
    """One HTTP/2 connection. `roots` is PEM, or empty without TLS; `source` is the address to call from."""

    def __init__(
        self,
        port: int,
        roots: str,
        *,
        wanted: Mapping[int, int] | None = None,
        source: str = "127.0.0.1",
        receive_buffer: int = 0,
    ) -> None:
        plain = socket.socket()
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.settimeout(TIMEOUT_S)
        plain.bind((source, 0))
        plain.connect(("127.0.0.1", port))
        self._socket = _over_tls(plain, roots) if roots else plain
        self._stream = -1
        self._received = bytearray()
        self._ended: set[int] = set()
        self._counted = 0
        self._initial_window = WINDOW
        self._taken: Counter[int] = Counter()  # bytes sent and not given back, of each stream and (0) of all
        self.send(PREFACE + settings(wanted or {}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes. Raises OSError once the server has closed the connection."""
        self._socket.sendall(data)

    def next_stream(self) -> int:
        """The number of a new stream."""
        self._stream += 2
        return self._stream

    @property
    def is_new(self) -> bool:
        """Whether no call was made yet."""
        return self._stream < 0

    def start(self, path: str, request: bytes) -> int:
        """Make a call; its stream."""
        stream = self.next_stream()
        self.send(call(stream, path, request))
        return stream

    def send_data(self, stream: int, data: bytes) -> None:
        """Send data, as fast as the server takes it, and end the stream; stop if the server has ended it."""
        left = memoryview(data)
        while len(left) and stream not in self._ended:
            room = min(self._window(0), self._window(stream), FRAME_BYTES)
            if room <= 0:
                if self._next() is None:
                    raise ConnectionResetError("the server has closed the connection")
                continue
            piece, left = left[:room], left[room:]
            self._taken[0] += len(piece)
            self._taken[stream] += len(piece)
            self.send(frame(DATA, 0 if len(left) else END_STREAM, stream, bytes(piece)))

    def swallow(self) -> bool:
        """Take what has come, without waiting; whether the server has closed the connection."""
        self._socket.settimeout(0)
        try:
            while self._next() is not None:
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        finally:
            self._socket.settimeout(TIMEOUT_S)
        return True

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it closes. Raises TimeoutError."""
        while (found := self._next()) is not None:
            yield found

    def take_everything(self) -> None:
        """Let the server send as much as it likes over all calls together."""
        room = (1 << 31) - 1 - WINDOW
        self.send(frame(WINDOW_UPDATE, payload=room.to_bytes(4, "big")))

    def wait_for_all(self) -> int:
        """Wait until no call is open; how many there were since the last time."""
        while 2 * len(self._ended) < self._stream + 1 and self._next() is not None:
            pass
        ended = len(self._ended) - self._counted
        self._counted = len(self._ended)
        return ended

    def until_ended(self, stream: int) -> list[Frame]:
        """All frames up to the one that ends the stream, or the connection."""
        seen: list[Frame] = []
        while stream not in self._ended and (found := self._next()) is not None:
            seen.append(found)
        return seen

    def _next(self) -> Frame | None:
        """The next frame, or None at the end."""
        while (found := self._cut_off()) is None:
            try:
                more = self._socket.recv(65536)
            except (ConnectionError, ssl.SSLEOFError):
                more = b""
            if not more:
                return None
            self._received += more
        if found.kind == WINDOW_UPDATE:
            self._taken[found.stream] -= int.from_bytes(found.payload, "big")
        elif found.kind == SETTINGS:
            for at in range(0, len(found.payload), 6):
                name, value = struct.unpack_from(">HI", found.payload, at)
                if name == INITIAL_WINDOW_SIZE:
                    self._initial_window = value
        elif found.kind == RST_STREAM or (found.kind in (DATA, HEADERS) and found.flags & END_STREAM):
            self._ended.add(found.stream)
        if found.kind in (SETTINGS, PING) and not found.flags & ACK:  # or few calls are let in
            self.send(frame(found.kind, ACK, 0, found.payload if found.kind == PING else b""))
        return found

    def _cut_off(self) -> Frame | None:
        """The first frame of what was received, if it is there whole."""
        length = int.from_bytes(self._received[:3], "big")
        if len(self._received) < 9 + length:
            return None
        kind, flags, stream = struct.unpack_from(">BBI", self._received, 3)
        payload = bytes(self._received[9 : 9 + length])
        del self._received[: 9 + length]
        return Frame(kind, flags, stream, payload)

    def _window(self, stream: int) -> int:
        """How many bytes the server still takes, of one stream or (0) of all."""
        return (self._initial_window if stream else WINDOW) - self._taken[stream]
