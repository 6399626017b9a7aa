"""Clusters of replicated logs in one process: what every engine shows to the checks in `clusters.checks`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from replication.interface import ReplicatedLog
from replication.testing import OpenLog


class Cluster(Protocol):
    """Members by name, each with a log on a directory of its own. Leaving the context stops all."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def can_cut(self) -> bool:
        """Whether cut() and heal() work; checks that need them are left out otherwise."""
        ...

    async def start(self, name: str, lo: int = 1) -> ReplicatedLog:
        """Open a member's log, for the first time or again, and start it at `lo`."""
        ...

    async def stop(self, name: str) -> None:
        """Stop a member in order."""
        ...

    async def kill(self, name: str) -> None:
        """End a member, and what it alone needs, as SIGKILL does."""
        ...

    async def cut(self, *groups: Collection[str]) -> None:
        """Let nothing pass but within each group; who is in none is alone. Undoes earlier cuts."""
        ...

    async def heal(self) -> None:
        """Let everything pass again."""
        ...


# Called with the number of members; none is started on entering. Each call is a new cluster.
OpenCluster = Callable[[int], AbstractAsyncContextManager[Cluster]]


def stopping(make: Callable[[], ReplicatedLog]) -> OpenLog:
    """Opens the log of one member as `make` does, and stops it in the end."""

    @asynccontextmanager
    async def open_log() -> AsyncIterator[ReplicatedLog]:
        log = make()
        try:
            yield log
        finally:
            await log.stop()

    return open_log
