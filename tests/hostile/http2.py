"""HTTP/2 frames written by hand (RFC 9113), over a blocking TLS socket: what no honest library would send.

Headers are literals without indexing (RFC 7541, section 6.2.2), so that no state is kept; what the server
sends is only cut into frames, its headers are not decoded.
"""

from __future__ import annotations

import socket
import ssl
import struct
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
        self._received = b""
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

    def start(self, path: str, request: bytes) -> int:
        """Make a call; its stream."""
        stream = self.next_stream()
        self.send(call(stream, path, request))
        return stream

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it closes. Raises TimeoutError."""
        while True:
            header = self._exactly(9)
            if not header:
                return
            length = int.from_bytes(header[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", header[3:])
            yield Frame(kind, flags, stream, self._exactly(length))

    def until_ended(self, stream: int) -> list[Frame]:
        """All frames up to the one that ends the stream, or the connection."""
        seen: list[Frame] = []
        for found in self.frames():
            seen.append(found)
            ends = found.kind == RST_STREAM or (found.kind in (DATA, HEADERS) and found.flags & END_STREAM)
            if found.stream == stream and ends:
                break
        return seen

    def _exactly(self, length: int) -> bytes:
        while len(self._received) < length:
            try:
                more = self._socket.recv(65536)
            except (ConnectionError, ssl.SSLError):
                more = b""
            if not more:
                return b""
            self._received += more
        taken, self._received = self._received[:length], self._received[length:]
        return taken
