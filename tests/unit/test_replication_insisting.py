"""The checks of every log: proposals may be lost, as the interface says; nothing else may go wrong unseen."""

import random
from collections.abc import Awaitable, Callable

import pytest
from clusters import stopping

from kv.memory import MemoryDisk, MemoryStore
from replication.local import LocalLog
from replication.testing import (
    OpenLog,
    check_cancelled_proposals_harm_nobody,
    check_concurrent_proposals_are_committed_once,
    check_runs_are_bounded,
    public_half,
)
from replication.types import NoLeader, ProposalLost

CHECKS = (
    check_cancelled_proposals_harm_nobody,
    check_concurrent_proposals_are_committed_once,
    check_runs_are_bounded,
)
EVERY = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
CHOSEN = (b"7", b"3/7", b"kept 7")  # one of each check


def opener(make: Callable[[MemoryStore], LocalLog]) -> OpenLog:
    disk = MemoryDisk()
    return stopping(lambda: make(MemoryStore(disk)))


@EVERY
async def test_what_is_lost_is_repeated(
    check: Callable[[OpenLog], Awaitable[None]], rng: random.Random
) -> None:
    lost: list[bool] = []

    class Busy(LocalLog):
        """Members miss their leader: before a proposal is sent, or after it was stored."""

        async def propose(self, payload: bytes) -> None:
            chance = rng.random()
            if chance < 0.1:
                raise NoLeader
            if chance < 0.4:
                lost.append(chance < 0.2)
                if lost[-1]:
                    await super().propose(payload)
                raise ProposalLost
            await super().propose(payload)

    await check(opener(lambda store: Busy(store, public_half)))
    assert set(lost) == {False, True}


@EVERY
@pytest.mark.parametrize("copies", [0, 2])
async def test_what_is_missing_or_doubled_without_a_word_is_found(
    check: Callable[[OpenLog], Awaitable[None]], copies: int
) -> None:
    class Lying(LocalLog):
        async def propose(self, payload: bytes) -> None:
            for _ in range(copies if payload in CHOSEN else 1):
                await super().propose(payload)

    with pytest.raises(AssertionError, match=r"missing|more often|not so often"):
        await check(opener(lambda store: Lying(store, public_half)))
