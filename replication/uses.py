"""Uses of a log's store in threads, for every engine: the store is closed after the last of them."""

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakMethod

import trio

from kv.interface import StorageError

T = TypeVar("T")


class Uses:
    """Counts what is under way. `halt`, a method of the log, is told when a use fails: what is on the disk is
    no longer known. It is held weakly, so that a log that nobody keeps gives its store free at once.
    """

    def __init__(self, halt: Callable[[BaseException], None]) -> None:
        self._halt = WeakMethod(halt)
        self._under_way = 0
        self._ended = trio.Event()  # set and replaced whenever nothing is under way any more

    async def in_thread(self, use: Callable[[], T]) -> T:
        """Use the store in a thread; cancelling waits until it is done. Raises what `use` raises."""
        self._under_way += 1
        try:
            return await trio.to_thread.run_sync(use)
        except StorageError as error:
            halt = self._halt()
            if halt is not None:
                halt(error)
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                ended, self._ended = self._ended, trio.Event()
                ended.set()

    async def wait_for_end(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            await self._ended.wait()
