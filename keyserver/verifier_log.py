"""The verifier log as pages: read from the rows, followed as it grows.

A page is read in a thread, from the rows of one moment; between two pages nothing is held, neither rows nor
a thread, however slowly the verifier reads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from keyserver.machine import views
from keyserver.replica import Replica

PAGE_BYTES = 32 * 1024  # of the 1 MiB allowed: what an unread stream holds; some 100 updates
STEPS_PER_PAGE = 10_000  # what a verifier decodes at once; bytes bound most pages before this does
READERS = 4  # pages being read at one time: more would only queue at the disk

STEPS_TAG = b"\x0a"  # field 1 of VerifierSteps, length-delimited


class VerifierLog:
    """Reads the verifier log of one replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._readers = trio.CapacityLimiter(READERS)

    def pages(self, start: int, steps: int) -> Callable[[], Awaitable[bytes | None]]:
        """What returns the next page from step `start` on, for ever; or None after `steps` or at the end, if
        `steps` is not 0.
        """
        position, left = start, steps

        async def next_page() -> bytes | None:
            nonlocal position, left
            if steps and left == 0:
                return None
            found = await self._read(position, left or STEPS_PER_PAGE, follow=not steps)
            position += len(found)
            left -= len(found) if steps else 0
            return encode_page(found) if found else None

        return next_page

    async def _read(self, start: int, most: int, *, follow: bool) -> list[bytes]:
        """Encoded steps, at least one if `follow`: then it waits for it."""
        most = min(most, STEPS_PER_PAGE)
        while True:
            turn = self._replica.waiters.verifier_log.turn()  # BEFORE reading
            if start <= self._replica.state.verifier_log_size:
                read = partial(views.verifier_steps, self._replica.store, start, PAGE_BYTES, most)
                return await trio.to_thread.run_sync(read, limiter=self._readers)
            if not follow:
                return []
            await turn.wait()


def encode_page(steps: list[bytes]) -> bytes:
    """The VerifierSteps of encoded steps, without decoding them again."""
    pieces: list[bytes] = []
    for step in steps:
        pieces += (STEPS_TAG, _varint(len(step)), step)
    return b"".join(pieces)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
