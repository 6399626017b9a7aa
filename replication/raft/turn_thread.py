"""A thread for turns alone. Handing work to it costs a third of what a thread of trio's pool costs, and a
member hands over some hundreds of times a second.
"""

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class TurnThread(Generic[T]):
    """Does one piece of work after the other for one task, under trio."""

    def __init__(self) -> None:
        # Read by the task itself: trio's own way back from a thread takes a socket and a second task.
        self._done, self._tell = os.pipe()
        self._work: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._result: T | None = None
        self._error: BaseException | None = None
        # Like those of trio's pool: a program that ends without stop() does not wait for it.
        threading.Thread(target=self._run, name="raft turns", daemon=True).start()

    async def do(self, work: Callable[[], T]) -> T:
        """Do the work in the thread; return or raise what it does. Cancelling waits until it is done."""
        self._work.put(work)
        try:
            await trio.lowlevel.wait_readable(self._done)
        except trio.Cancelled:  # delivered again by the next step that can be cancelled
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._done)
        os.read(self._done, 1)
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
            os.write(self._tell, b"!")
        os.close(self._tell)
        os.close(self._done)
