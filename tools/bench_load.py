"""Load on a gRPC server over TLS: so many calls in flight on one connection, each answer kept.

The load comes from this process, in Python, on the same machine: it takes a core of its own, and no figure
beyond what it can ask for. So the servers' own processor time is measured too.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
    cpu_s: float  # of the server's process

    @property
    def per_s(self) -> float:
        return len(self.answers) / self.seconds


class Caller:
    """Calls one method of one server. Any error of a call ends the benchmark."""

    def __init__(
        self, runner: asyncio.Runner, channel: grpc.aio.Channel, method: str, server: Process
    ) -> None:
        self._runner = runner
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        self._server = server

    def ask(self, requests: Sequence[bytes], in_flight: int) -> Answered:
        """Make all calls, at most `in_flight` at a time."""
        cpu_s = self._server.cpu_s()
        start = time.perf_counter()
        answers, latencies = self._runner.run(self._ask(requests, in_flight))
        taken = time.perf_counter() - start
        return Answered(answers, latencies, taken, self._server.cpu_s() - cpu_s)

    async def _ask(self, requests: Sequence[bytes], in_flight: int) -> tuple[list[bytes], list[float]]:
        waiting = deque(enumerate(requests))
        answers = [b""] * len(requests)
        latencies = [0.0] * len(requests)

        async def work() -> None:
            while waiting:
                number, request = waiting.popleft()
                start = time.perf_counter()
                answers[number] = await self._call(request, timeout=CALL_TIMEOUT_S)
                latencies[number] = time.perf_counter() - start

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
        return answers, latencies


Connect = Callable[[str, str, Process], Caller]  # address, method, server


@contextmanager
def connections(roots: Sequence[str]) -> Iterator[Connect]:
    """Opens connections that trust the PEM roots, each of its own."""
    credentials = grpc.ssl_channel_credentials("\n".join(roots).encode())
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", ANSWER_BYTES)]
    channels: list[grpc.aio.Channel] = []
    with asyncio.Runner() as runner:

        async def open_channel(address: str) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(address, credentials, options)

        def connect(address: str, method: str, server: Process) -> Caller:
            channel = runner.run(open_channel(address))
            channels.append(channel)
            return Caller(runner, channel, method, server)

        try:
            yield connect
        finally:
            for channel in channels:
                runner.run(channel.close())
