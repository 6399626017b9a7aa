"""How often this replica ended without being told to, kept in a file beside its data.

A replica that crashes again and again, each time on the same entry or row, would be restarted for ever. After
CRASHES_MAX crashes within WINDOW_MS it starts in diagnostic mode: it answers lookups and can be looked into,
but takes part in nothing, until a person has looked and says so. Starts that were refused (a wrong
configuration, a port in use) are no crashes: nothing had begun.

The file is a help, not a promise: it is not synced, and if it cannot be read or written, the replica starts
as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
import trio

from verifier.errors import ConfigError
from verifier.files import read_file, replace_unsynced

FILE = "crashes.json"
SCHEMA = "e2eks.crashes/1"
FILE_BYTES = 4096
CRASHES_MAX = 5
WINDOW_MS = 10 * 60_000


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    schema: str
    starts_ms: list[int]  # of those that have not ended as told; the running one is the last
    diagnostic: bool = False


class CrashCounter:
    """The counter of the replica whose data is in `folder`; `clock` tells Unix milliseconds."""

    def __init__(self, folder: Path, clock: Callable[[], int]) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._began_ms: int | None = None  # counted by this process
        self._log = structlog.get_logger("crashes")

    def begin(self) -> str:
        """Note that the replica begins to work. Why it must only read, or "" if it need not."""
        record, now_ms = self._read(), self._clock()
        recent = [start for start in record.starts_ms if now_ms - WINDOW_MS < start <= now_ms]
        if record.diagnostic or len(recent) >= CRASHES_MAX:
            self._write(_Record(SCHEMA, recent[-CRASHES_MAX:], diagnostic=True))
            return (
                f"diagnostic mode: this replica crashed {CRASHES_MAX} times within "
                f"{WINDOW_MS // 60_000} minutes, so it only reads. Find the cause in its log, then start it "
                "with `keyserver serve --leave-diagnostic`"
            )
        self._began_ms = now_ms
        self._write(_Record(SCHEMA, [*recent, now_ms]))
        return ""

    def take_back(self) -> None:
        """This start was refused: it is no crash. What was counted before stays, and diagnostic mode too."""
        if self._began_ms is None:
            return
        record = self._read()
        starts_ms = [start for start in record.starts_ms if start != self._began_ms]
        self._write(_Record(SCHEMA, starts_ms, record.diagnostic))

    def clear(self) -> None:
        """Forget what was counted, and leave diagnostic mode at the next start."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._log.warning("the crash counter cannot be cleared", error=error.strerror)

    async def clear_when_steady(self) -> None:
        """Forget what was counted once this start has lasted."""
        await trio.sleep(WINDOW_MS / 1000)
        self.clear()

    def _read(self) -> _Record:
        if not self._path.exists():
            return _Record(SCHEMA, [])
        try:
            return msgspec.json.decode(read_file(self._path, FILE_BYTES, "crash counter"), type=_Record)
        except (ConfigError, msgspec.MsgspecError) as error:
            self._log.warning("the crash counter cannot be read", error=type(error).__name__)
            return _Record(SCHEMA, [])

    def _write(self, record: _Record) -> None:
        try:
            replace_unsynced(self._path, msgspec.json.encode(record) + b"\n")
        except ConfigError as error:
            self._log.warning("the crash counter cannot be written", error=str(error))
