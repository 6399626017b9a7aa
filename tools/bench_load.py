"""Load on a gRPC server over TLS: so many calls in flight on one connection, each answer kept.

The load comes from this process, in Python, on the same machine: it takes a core of its own, and no figure
beyond what it can ask for. So the servers' own processor time is measured too.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio
from bench_servers import Process

from verifier.client.transport import ANSWER_BYTES

CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What a round of calls gave: answers in the order of the requests, seconds of each call."""

    answers: list[bytes]
    latencies: list[float]
    seconds: float
    cpu_s: float  # of the servers' processes

    @property
    def per_s(self) -> float:
        return len(self.answers) / self.seconds


class Caller:
    """Calls one method of a server, or of several in turn. Any error of a call ends the benchmark."""

    def __init__(
        self,
        runner: asyncio.Runner,
        channels: Sequence[grpc.aio.Channel],
        method: str,
        servers: Sequence[Process],
    ) -> None:
        self._runner = runner
        self._calls: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(method) for channel in channels
        ]
        self._servers = servers

    def _cpu_s(self) -> float:
        return sum(server.cpu_s() for server in self._servers)

    def ask(self, requests: Sequence[bytes], in_flight: int) -> Answered:
        """Make all calls, at most `in_flight` at a time."""
        cpu_s = self._cpu_s()
        start = time.perf_counter()
        answers, latencies = self._runner.run(self._ask(requests, in_flight))
        taken = time.perf_counter() - start
        return Answered(answers, latencies, taken, self._cpu_s() - cpu_s)

    async def _ask(self, requests: Sequence[bytes], in_flight: int) -> tuple[list[bytes], list[float]]:
        waiting = deque(enumerate(requests))
        answers = [b""] * len(requests)
        latencies = [0.0] * len(requests)

        async def work(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
            while waiting:
                number, request = waiting.popleft()
                start = time.perf_counter()
                answers[number] = await call(request, timeout=CALL_TIMEOUT_S)
                latencies[number] = time.perf_counter() - start

        async with asyncio.TaskGroup() as group:
            for number in range(in_flight):
                group.create_task(work(self._calls[number % len(self._calls)]))
        return answers, latencies


class Connect(Protocol):
    """Opens a connection to the address of each server, in the same order."""

    def __call__(self, addresses: Sequence[str], method: str, servers: Sequence[Process]) -> Caller: ...


@contextmanager
def connections(roots: Sequence[str]) -> Iterator[Connect]:
    """Opens connections that trust the PEM roots, each of its own."""
    credentials = grpc.ssl_channel_credentials("\n".join(roots).encode())
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", ANSWER_BYTES)]
    channels: list[grpc.aio.Channel] = []
    with asyncio.Runner() as runner:

        async def open_channel(address: str) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(address, credentials, options)

        def connect(addresses: Sequence[str], method: str, servers: Sequence[Process]) -> Caller:
            opened = [runner.run(open_channel(address)) for address in addresses]
            channels.extend(opened)
            return Caller(runner, opened, method, servers)

        try:
            yield connect
        finally:
            for channel in channels:
                runner.run(channel.close())
