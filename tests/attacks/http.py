"""The HTTP port of health and metrics, spoken to in raw bytes."""

from __future__ import annotations

import socket
from contextlib import suppress

from realm_processes.calls import DEADLINE_S

from attacks.calls import WireSurface
from keyserver.demo.stage import HOST

REFUSALS = ("400", "431", "")


class Http(WireSurface):
    def make_request(
        self, line: str, headers: str = "Host: localhost", body: str = "", times: int = 1
    ) -> bytes:
        """A request: its first line, header lines parted by `|`, the last of them so many `times`, a body."""
        lines = headers.split("|")
        head = "\r\n".join([line, *lines[:-1], *[lines[-1]] * times, "Connection: close"])
        return f"{head}\r\n\r\n{body}".encode()

    def make_long_header(self, characters: int) -> bytes:
        return self.make_request("GET /status HTTP/1.1", "Host: localhost|X-Long: " + "v" * characters)

    def judge_status(self, request: bytes) -> str:
        """The status of the answer; "refused" for what is not read as a request. No second answer follows.

        A refusal may be lost: a server that closes before it has read everything resets the connection.
        """
        received = b""
        at = (HOST, self.realm.ports.http)
        with socket.create_connection(at, DEADLINE_S) as connection, suppress(ConnectionError):
            connection.sendall(request)
            while piece := connection.recv(65536):
                received += piece
        self.realm.check_alive()
        assert received.count(b"HTTP/1.1 ") <= 1, "one request was answered twice"
        status = received[9:12].decode()
        return "refused" if status in REFUSALS else status
