"""Waiters: everybody who waits is answered once, nobody is missed, and there are never too many."""

import pytest
import trio

from keyserver.waiters import Signal, Waiters
from verifier.errors import Reason, Refused

PATIENCE = 30.0


async def test_all_who_wait_for_a_command_get_its_outcome() -> None:
    waiters = Waiters()
    answers: list[tuple[int, int]] = []

    async def wait(task_status: trio.TaskStatus[None]) -> None:
        with waiters.expect(b"one") as decision:
            task_status.started()
            answers.append(await decision.wait())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(wait)
            await nursery.start(wait)
            assert len(waiters) == 2
            waiters.decided(b"other", 1, 1)
            waiters.decided(b"one", 0, 7)
    assert answers == [(0, 7), (0, 7)]
    assert len(waiters) == 0


async def test_a_decision_made_before_the_wait_is_not_missed() -> None:
    waiters = Waiters()
    with waiters.expect(b"one") as decision:
        waiters.decided(b"one", 3, 0)
        waiters.decided(b"one", 0, 9)  # the first one stands
        assert await decision.wait() == (3, 0)


def test_a_decision_that_nobody_waits_for_is_dropped() -> None:
    waiters = Waiters()
    waiters.decided(b"one", 0, 1)
    assert len(waiters) == 0


async def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    waiters = Waiters()
    with trio.CancelScope() as scope, waiters.expect(b"one") as decision:
        scope.cancel()
        await decision.wait()
    assert len(waiters) == 0


def test_more_waiters_than_fit_are_refused_and_room_comes_back() -> None:
    waiters = Waiters(capacity=1)
    with waiters.expect(b"one"):
        with pytest.raises(Refused) as caught, waiters.expect(b"two"):
            pass
        assert caught.value.reason is Reason.RATE_LIMITED
    with waiters.expect(b"two"):
        assert len(waiters) == 1


async def test_a_signal_wakes_whoever_took_the_turn_before_looking() -> None:
    signal = Signal()
    turn = signal.turn()
    signal.wake()
    with trio.fail_after(PATIENCE):
        await turn.wait()
    assert not signal.turn().is_set()
