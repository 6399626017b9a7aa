"""The thread of a member's turns: what is done comes back, errors too, and nobody leaves before."""

import threading
from functools import partial

import pytest
import trio
import trio.testing

from replication.raft.turn_thread import TurnThread


async def test_work_is_done_elsewhere_and_its_result_or_error_comes_back() -> None:
    thread: TurnThread[int] = TurnThread()
    try:
        assert await thread.do(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await thread.do(lambda: 1 // 0)
        for number in range(10):
            assert await thread.do(partial(abs, number)) == number
    finally:
        thread.end()


async def test_cancelling_waits_until_the_work_is_done() -> None:
    thread: TurnThread[str] = TurnThread()
    may_end, ended = threading.Event(), trio.Event()
    outcomes: list[str] = []

    async def work() -> None:
        outcomes.append(await thread.do(lambda: "done" if may_end.wait() else "never"))
        ended.set()
        await trio.lowlevel.checkpoint()
        outcomes.append("went on")

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                assert not outcomes
                may_end.set()
                await ended.wait()
        assert outcomes == ["done"]
        assert await thread.do(lambda: "again") == "again"
    finally:
        may_end.set()
        thread.end()


async def test_its_end_gives_everything_free() -> None:
    thread: TurnThread[threading.Thread] = TurnThread()
    worker = await thread.do(threading.current_thread)
    thread.end()
    await trio.to_thread.run_sync(worker.join)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await thread.do(threading.current_thread)
