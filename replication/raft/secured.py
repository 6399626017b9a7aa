"""TLS on a TCP stream, a step of the event loop for what arrives together, none for what can leave at once.

trio's own stream takes one step and two system calls for each record of 16 KiB, and a task for each sending:
half of what a follower spends on a batch. OpenSSL does the same work here, between two buffers in memory.
"""

from __future__ import annotations

import os
import ssl

import trio

READ_BYTES = 256 * 1024  # of a socket at a time
RECORD_BYTES = 16 * 1024


class SecuredStream:
    """One end of a connection. One task receives and one sends; the stream is the caller's to close.

    After trio.BrokenResourceError or OSError the connection is of no more use.
    """

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._socket = stream.socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._may_have = True  # content that was not read yet: asking OpenSSL in vain costs an exception
        self._unsent = b""  # what the socket had no room for, before what is in `_outgoing`
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)

    async def do_handshake(self) -> None:
        """Agree on keys and learn who the other end is (`tls`). Raises OSError, trio.BrokenResourceError."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self._fill()
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
            else:
                break
        await self.flush()

    async def receive_some(self) -> bytes:
        """Wait for content, return what came, b"" at the end. Raises OSError, trio.BrokenResourceError."""
        while True:
            if self._may_have:
                content, ended = self._decrypted()
                if content or ended:
                    return content
            await self._fill()

    def send_now(self, content: bytes) -> bool:
        """Send what goes without waiting; tell whether that is all. If not, flush() must follow.

        Raises OSError.
        """
        self.tls.write(content)
        return self._send_unsent()

    async def send_all(self, content: bytes) -> None:
        """Send, and wait until all has gone, what was sent before included. Raises OSError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if content:
            self.tls.write(content)
        await self.flush()

    async def flush(self) -> None:
        """Wait until all that was sent has gone. Raises OSError."""
        while not self._send_unsent():
            await trio.lowlevel.wait_writable(self._socket)

    def _send_unsent(self) -> bool:
        while self._unsent or self._outgoing.pending:
            unsent = self._unsent or self._outgoing.read()
            try:
                sent = os.write(self._socket.fileno(), unsent)
            except BlockingIOError:
                sent = 0
            self._unsent = unsent[sent:]
            if not sent:
                return False
        return True

    async def _fill(self) -> None:
        """Wait for bytes and hand them to OpenSSL."""
        data = None
        while data is None:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = os.read(self._socket.fileno(), READ_BYTES)
            except BlockingIOError:
                continue
        self._may_have = True
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypted(self) -> tuple[bytes, bool]:
        """Return what OpenSSL can make of the bytes that came, and whether the other end has ended."""
        parts: list[bytes] = []
        ended = False
        try:
            while part := self.tls.read(RECORD_BYTES):
                parts.append(part)
                if not (self.tls.pending() or self._incoming.pending or self._incoming.eof):
                    self._may_have = False
                    break
            ended = not part
        except ssl.SSLWantReadError:
            self._may_have = False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            ended = True
        except ssl.SSLError as error:
            if not parts:  # else the next call finds the end, or the same, after what was right
                raise trio.BrokenResourceError from error
        return b"".join(parts), ended
