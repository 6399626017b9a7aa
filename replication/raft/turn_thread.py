"""A thread for turns alone. Handing work to it costs half of what a thread of trio's pool costs, and a
member hands over some hundreds of times a second.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class TurnThread(Generic[T]):
    """Does one piece of work after the other for one task. Made and used on the trio thread."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._work: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._task: trio.lowlevel.Task | None = None
        self._result: T | None = None
        self._error: BaseException | None = None
        # Like those of trio's pool: a program that ends without stop() does not wait for it.
        threading.Thread(target=self._run, name="raft turns", daemon=True).start()

    async def do(self, work: Callable[[], T]) -> T:
        """Do the work in the thread; return or raise what it does. Cancelling waits until it is done."""
        self._task = trio.lowlevel.current_task()
        self._work.put(work)
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # there is a result, or there was an error

    def end(self) -> None:
        """Let the thread end once it has nothing to do."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._result = work()
            except BaseException as error:  # whatever it is belongs to whoever asked
                self._error = error
            try:
                self._token.run_sync_soon(self._wake)
            except trio.RunFinishedError:
                return

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)
