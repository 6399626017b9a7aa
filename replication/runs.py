"""The iterator that committed() returns, for every engine."""

from collections.abc import Awaitable, Callable

from replication.types import LogEntry


class Runs:
    """Runs of entries from `lo` on. A class, because a generator would end with its first cancelled wait.

    `next_run(index)` waits for the entry `index` to be committed and returns a run that begins with it, or
    () once the log has stopped.
    """

    def __init__(self, lo: int, next_run: Callable[[int], Awaitable[tuple[LogEntry, ...]]]) -> None:
        self._next = lo
        self._next_run = next_run

    def __aiter__(self) -> "Runs":
        return self

    async def __anext__(self) -> tuple[LogEntry, ...]:
        run = await self._next_run(self._next)
        if not run:
            raise StopAsyncIteration
        self._next = run[-1].index + 1
        return run
