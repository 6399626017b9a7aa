"""What a hostile server sends a client over a real connection: words for the terminal, floods, no end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from simulated_realm import SimulatedRealm
from simulated_realm.server import make_certificates, serving

from attacks.surface import Surface
from verifier.client.client import Client
from verifier.client.failure import words
from verifier.client.outcome import Exit, exit_of_error, status_of
from verifier.client.pins import MemoryPins
from verifier.client.transport import GrpcTransport
from verifier.errors import E2eksError, Reason, Refused

NOBODY = "nobody@example.test"
DEADLINE_S = 60.0
MIB = 2**20
SENT_BYTES_MAX = 40 * MIB  # what a client takes of one stream, 32 MiB, and some messages on their way to it


class HostileRealm(SimulatedRealm):
    """Answers lookups with a head that no verifier signed, so that clients ask for the replicas' policies."""

    def __init__(self, heads: Callable[[], Iterator[bytes]]) -> None:
        super().__init__()
        self.close()
        self.verifiers = ()
        self.sent = 0
        self._heads = heads

    def stream(self, address: str, method: str, request: bytes) -> Sequence[bytes]:
        return self._counted()  # type: ignore[return-value]  # the server iterates

    def _counted(self) -> Iterator[bytes]:
        for head in self._heads():
            self.sent += len(head)
            yield head


def without_end(message: bytes) -> Iterator[bytes]:
    while True:
        yield message


class Transport(Surface):
    def make_refusal(self, says: str) -> SimulatedRealm:
        """A server that refuses, in these words."""
        world = SimulatedRealm()
        world.close()
        world.refusals["Lookup"] = Refused(Reason.NOT_READY, says)
        return world

    def make_answer(self, larger_by: int = 0) -> SimulatedRealm:
        """A server that answers truly, and adds so many zeros."""
        world = SimulatedRealm()
        world.close()
        world.tampering["Lookup"] = lambda raw: raw + bytes(larger_by)
        return world

    def make_policy_heads(self, kind: str) -> SimulatedRealm:
        """What a server streams as the chain of replicas' policies."""
        kinds: Mapping[str, Callable[[], Iterator[bytes]]] = {
            "none": lambda: iter(()),
            "small, without end": lambda: without_end(b""),
            "of 1 MiB, without end": lambda: without_end(bytes(MIB)),
            "of 3 MiB": lambda: iter((bytes(3 * MIB),)),
        }
        return HostileRealm(kinds[kind])

    def judge_words(self, world: SimulatedRealm) -> str:
        """The first line that a user reads."""
        return self._ended(world)[1]

    def judge_exit(self, world: SimulatedRealm) -> str:
        """How the command ends; the server has not been listened to for ever."""
        ended = self._ended(world)[0]
        if isinstance(world, HostileRealm):
            assert world.sent <= SENT_BYTES_MAX, f"the client took {world.sent} bytes"
        return ended

    def _ended(self, world: SimulatedRealm) -> tuple[str, str]:
        certificates = make_certificates()
        roots = [certificates.root.decode()]
        with (
            serving(world, certificates) as address,
            GrpcTransport([address], tls_roots_pem=roots, timeout_s=DEADLINE_S) as transport,
        ):
            client = Client(world.realm, transport, MemoryPins(), clock=world.now_ms)
            try:
                return status_of(client.lookup(NOBODY)), ""
            except E2eksError as error:
                return Exit(exit_of_error(error)).name, words(error, ()).partition("\n")[0]
