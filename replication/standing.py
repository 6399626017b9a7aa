"""Where a log is in its life, for every engine, and what it refuses there."""

import trio

from kv.interface import StorageError
from replication.types import LogNotRunning


class Standing:
    """Not started, running, stopping; failed for ever, and that comes before all else: what is on the disk is
    known only after opening it again. Any thread may ask; the rest is for the trio thread.
    """

    __slots__ = ("_changed", "_failure", "lo", "stopping")

    def __init__(self) -> None:
        self.lo: int | None = None  # of start(); None before
        self.stopping = False
        self._failure: str | None = None
        self._changed = trio.Event()  # set and replaced by announce

    @property
    def is_running(self) -> bool:
        """Whether the log is started, not stopping, not failed."""
        return self.lo is not None and not self.stopping and self._failure is None

    @property
    def has_failed(self) -> bool:
        """Whether fail() was called."""
        return self._failure is not None

    def require_startable(self, lo: int) -> None:
        """Raises ValueError, LogNotRunning as ReplicatedLog.start does."""
        if lo < 1:
            raise ValueError("the first index of a log is 1")
        if self.lo is not None or self.stopping:
            raise LogNotRunning("a log is started once")

    def require_started(self) -> int:
        """Return the first index that committed() hands out. Raises LogNotRunning."""
        if self.lo is None:
            raise LogNotRunning("the log is not started")
        return self.lo

    def require_sound(self) -> None:
        """Raises StorageError when the log has failed."""
        if self._failure is not None:
            raise self.refusal()

    def require_running(self) -> None:
        """Raises StorageError when the log has failed, LogNotRunning when it is not running."""
        if not self.is_running:
            self.require_sound()
            raise LogNotRunning("the log is not running")

    def refusal(self) -> StorageError:
        """Return what a failed log says to everybody."""
        return StorageError(self._failure)

    def fail(self, error: BaseException) -> None:
        """Refuse everything from now on, because of the first error that came."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self._failure is None:
            self._failure = f"the log failed: {str(error) or type(error).__name__}"
        self.announce()

    def announce(self) -> None:
        """Let everybody who waits look again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def changed(self) -> None:
        """Wait for the next announcement."""
        await self._changed.wait()
