"""The HTTP port of health and metrics, spoken to in raw bytes."""

from __future__ import annotations

import socket

from realm_processes.calls import DEADLINE_S

from attacks.calls import WireSurface
from keyserver.demo.stage import HOST


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
        """The status of the answer, or that there is none; and nothing else follows it on the connection."""
        received = b""
        with socket.create_connection((HOST, self.realm.ports.http), DEADLINE_S) as connection:
            try:
                connection.sendall(request)
                while piece := connection.recv(65536):
                    received += piece
            except ConnectionError:
                pass  # refused before it was read to its end: what was answered counts
        self.realm.check_alive()
        assert received.count(b"HTTP/1.1 ") <= 1, "one request was answered twice"
        return received[9:12].decode() if received else "closed"
