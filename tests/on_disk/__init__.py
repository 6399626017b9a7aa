"""Replica and verifier on real folders inside a test: opened as their processes do, asked everything, closed.

`Answers` of a folder are all that anybody may be told from it. A damaged copy must give the same ones, or
refuse.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import trio
from e2eks.v1 import client_pb2, verification_pb2

from keyserver.admission.gate import Gate
from keyserver.data_directory import check_register, open_data
from keyserver.run import Parts, Surroundings, assemble, first_cause, run_parts
from keyserver.signer import Signer
from keyserver.testing import FAST, OPEN, Person, SmallRealm, first_epoch
from verifier import realm as realms
from verifier.errors import Refused
from verifier.signonce import RegisterMissing, SignOnceRegister

HERE = "127.0.0.1"
PATIENCE_S = 60.0
TIMEOUT_MS = 60_000
LOG, DIGEST = "log", "digest at"

Answers = Mapping[str, bytes]


@dataclass(frozen=True)
class ReplicaFolder:
    """A replica whose register and data lie in `path`; `now_ms` None is the machine's own clock."""

    path: Path
    small: SmallRealm
    now_ms: int | None = None

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def register(self) -> Path:
        return self.path / "sign-once.register"

    def create(self) -> None:
        self.path.mkdir()
        SignOnceRegister.create(self.register, key_id=self.small.replica).close()

    def signer(self) -> Signer:
        """As a process has it: in quarantine without a register."""
        small = self.small
        try:
            register = SignOnceRegister.open(self.register, key_id=small.replica)
        except RegisterMissing as error:
            return Signer(small.realm, small.head_seed, small.vrf_seed, None, why=str(error))
        return Signer(small.realm, small.head_seed, small.vrf_seed, register)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Parts]:
        """The parts of the replica at work, all of its log applied. Raises StorageError, Halt, not groups."""
        with ExitStack() as stack:
            signer = stack.enter_context(closing(self.signer()))
            data = stack.enter_context(open_data(self.data))
            check_register(data.store, data.log, signer)
            now_ms = self.now_ms
            parts = assemble(
                name="r1",
                realm=self.small.realm,
                realm_json=realms.realm_json(self.small.realm),
                epochs=FAST,
                update_timeout_ms=TIMEOUT_MS,
                store=data.store,
                log=data.log,
                signer=signer,
                gate=Gate(OPEN, self.small.realm),
                around=Surroundings() if now_ms is None else Surroundings(clock=lambda: now_ms),
            )
            try:
                with trio.fail_after(PATIENCE_S):
                    async with trio.open_nursery() as nursery:
                        await nursery.start(run_parts, parts)
                        await _caught_up(parts)
                        yield parts
                        nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise first_cause(group) from group

    def run(self, use: Callable[[Parts], Awaitable[Answers]]) -> Answers:
        """What `use` makes of the running replica. Raises StorageError, Halt."""

        async def used() -> Answers:
            async with self.running() as parts:
                return await use(parts)

        return trio.run(used)


async def _caught_up(parts: Parts) -> None:
    committed = parts.log.status().committed_index
    while parts.replica.position.index < committed:
        turn = parts.replica.applied.turn()
        if parts.replica.position.index < committed:
            await turn.wait()


async def fill(parts: Parts, people: list[Person], versions: int) -> Answers:
    """Register the people, or go on with their next versions, each in an epoch of its own; where it ends."""
    await first_epoch(parts)
    for _ in range(versions):
        for person in people:
            await parts.service.update(person.update({"ssh": person.user_id.encode() * 8}), HERE)
    state = parts.replica.state
    return {"epoch": str(state.epoch).encode(), "issue time": str(state.issue_time_ms).encode()}


async def ask_everything(parts: Parts, people: list[Person], epochs: list[int]) -> Answers:
    """Every lookup of the people in the epochs (0: the newest), consistency, the verifier log, the log, and
    the digest of the state as of one of its entries.
    """
    answers: dict[str, bytes] = {}
    for person in people:
        for epoch in epochs:
            answers[f"{person.user_id} {epoch}"] = _answer(parts.service.lookup, person.lookup(epoch=epoch))
    request = client_pb2.ConsistencyRequest(old_epoch=1).SerializeToString()
    answers["consistency"] = _answer(lambda asked, _: parts.service.consistency(asked), request)
    size = parts.replica.state.verifier_log_size
    wanted = verification_pb2.VerifierStreamRequest(start=1, page_size=size).SerializeToString()
    next_page = parts.service.verifier_stream(wanted)
    page = await next_page()
    while page is not None:
        answers["verifier log"] = answers.get("verifier log", b"") + page
        page = await next_page()
    entries = parts.log.read(1, parts.log.status().committed_index + 1, 2**62)
    answers[LOG] = b"".join(entry.payload for entry in entries)
    position = parts.replica.position
    answers[f"{DIGEST} {position.index}"] = position.digest
    return answers


def differences(kept: Answers, answers: Answers) -> list[str]:
    """Which answers are not those of `kept`. Who has lost the last thing done does it again: the log may go
    on, and the digest is of another entry then; all else is the same.
    """
    wrong = []
    for name, known in kept.items():
        answer = answers.get(name, known if name.startswith(DIGEST) else b"")
        if not (answer.startswith(known) if name == LOG else answer == known):
            wrong.append(name)
    return wrong


def _answer(ask: Callable[[bytes, str], bytes], request: bytes) -> bytes:
    try:
        return ask(request, HERE)
    except Refused as refused:
        return refused.reason.value.encode()
