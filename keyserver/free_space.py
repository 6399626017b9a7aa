"""A replica stops accepting anything new while its disk still has room, and goes on answering lookups."""

from __future__ import annotations

from collections.abc import Callable

import trio

from keyserver.metrics import Metrics
from keyserver.proposer import Proposer
from kv.free_space import LOOK_S, Watermark

HOLDER = "free space"


async def watch(
    watermark: Watermark,
    proposer: Proposer,
    metrics: Metrics,
    changed: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Look for ever; started after the first look. `changed` is called when writing stops or resumes.

    Raises StorageError when a folder is gone.
    """
    while True:
        free = await trio.to_thread.run_sync(watermark.measure)
        metrics.set("free_bytes", free)
        if watermark.judge(free):
            hold(watermark, proposer)
            changed()
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        await trio.sleep(LOOK_S)


def hold(watermark: Watermark, proposer: Proposer) -> None:
    """Hold the proposer while there is too little room, or let it go."""
    if watermark.why:
        proposer.hold(HOLDER, f"this replica only reads: {watermark.why}")
    else:
        proposer.release(HOLDER)
