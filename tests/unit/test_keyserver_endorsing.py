"""Whom a replica asks to endorse a registration: as many as are needed, and the rest when these fail."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from keyserver.endorsing import HURRY_S, Endorsed, Endorser, Private
from keyserver.machine.commands import Endorsement
from keyserver.peer_lines import PeerLine, Unreached
from verifier.errors import Malformed, Reason, Refused

OWN = Endorsed(b"proof", Endorsement(b"r1", 1, b""))


class Line:
    """A line to a member that answers after so many seconds, or never comes through."""

    def __init__(self, name: str, after_s: float = 0.0, fails: bool = False) -> None:
        self.name = name
        self._after_s = after_s
        self._fails = fails
        self.asked_at: list[float] = []

    async def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        self.asked_at.append(trio.current_time())
        await trio.sleep(self._after_s)
        if self._fails:
            raise Unreached(f"{self.name}: UNAVAILABLE")
        return self.name.encode()


class Asking(Endorser):
    """What is endorsed is no matter here; an answer is the name of who gave it."""

    def __init__(self, lines: Sequence[Line]) -> None:
        unused: Any = None
        super().__init__(unused, unused, unused, unused, cast(Sequence[PeerLine], lines))

    def endorse(self, asked: object, private: object) -> Endorsed:
        return OWN

    def _checked(self, answer: bytes, *_: object) -> Endorsement:
        if answer == b"liar":
            raise Malformed("it found another proof")
        return Endorsement(answer, 1, b"")

    async def names(self, needed: int) -> set[bytes]:
        unused: Any = None
        proof_id, given = await self.gather(b"", unused, Private(), keys={}, needed=needed)
        assert (proof_id, given[0]) == (OWN.proof_id, OWN.endorsement)
        assert len(given) == needed
        return {made.key_id for made in given}


async def test_only_as_many_as_are_needed_are_asked_and_all_take_turns(autojump_clock: MockClock) -> None:
    lines = [Line(name) for name in ("r2", "r3", "r4", "r5")]
    asking = Asking(lines)
    for _ in range(4):
        assert len(await asking.names(3)) == 3
    assert [len(line.asked_at) for line in lines] == [2, 2, 2, 2]
    assert await asking.names(1) == {b"r1"}
    assert sum(len(line.asked_at) for line in lines) == 8


async def asked_when(lines: Sequence[Line], needed: int = 2) -> list[float]:
    """Seconds after the first at which each was asked; the second line is asked first."""
    begun = trio.current_time()
    await Asking(lines).names(needed)
    return [at - begun for line in lines for at in line.asked_at]


@pytest.mark.parametrize(
    ("first", "waited_s"),
    [
        (lambda: Line("r3", fails=True), 0.0),
        (lambda: Line("liar"), 0.0),
        (lambda: Line("r3", after_s=60.0), HURRY_S),
        (lambda: Line("r3", after_s=60.0, fails=True), HURRY_S),
    ],
)
async def test_the_rest_are_asked_when_one_fails_or_is_slow(
    first: Callable[[], Line], waited_s: float, autojump_clock: MockClock
) -> None:
    assert await asked_when([Line("r2"), first()]) == pytest.approx([waited_s, 0.0])


async def test_what_all_said_is_told_when_too_few_endorse(autojump_clock: MockClock) -> None:
    with pytest.raises(Refused, match=r"1 of 2 replicas.*another proof; r2: UNAVAILABLE") as refused:
        await Asking([Line("r2", fails=True), Line("liar")]).names(2)
    assert refused.value.reason is Reason.NOT_READY
    with pytest.raises(Refused, match="there are none"):
        await Asking([]).names(2)
