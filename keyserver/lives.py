"""The moment up to which former lives of this replica may have signed log entries.

A cluster may commit what was proposed long after its proposer died. A replica that starts again must know
such an entry for its own, and an entry that a copy of it makes beside it for somebody else's. The clock at
the start tells them apart only if it never goes back; so each life writes down, ahead of its clock, a ceiling
of all times it signs, in a file beside the sign-once register.

A life whose clock was a day ahead leaves a ceiling that makes the next one blind to such entries of copies
for a day; heads that a copy signs are found out all the same.
"""

from __future__ import annotations

from pathlib import Path

import trio

from kv.interface import StorageError
from verifier.errors import ConfigError
from verifier.files import find_file, replace_file

CEILING = "clock-ceiling"  # the file's name
AHEAD_MS = 10_000  # one synced write in so long
TEXT_BYTES = 32


class Lives:
    """The ceiling of former lives, and that of this one. `path` None keeps no file."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises ConfigError for a file that cannot be read or holds no time."""
        self._path = path
        self.former_ms = _read(path) if path is not None else 0
        self._ceiling_ms = self.former_ms

    async def cover(self, time_ms: int) -> None:
        """Return once `time_ms` may be signed: it is below the ceiling on the disk. Raises StorageError."""
        if time_ms <= self._ceiling_ms or self._path is None:
            return
        ceiling_ms = time_ms + AHEAD_MS
        try:
            await trio.to_thread.run_sync(replace_file, self._path, f"{ceiling_ms}\n".encode("ascii"))
        except ConfigError as error:
            raise StorageError(str(error)) from error
        self._ceiling_ms = ceiling_ms


def _read(path: Path) -> int:
    text = find_file(path, TEXT_BYTES, "clock ceiling")
    if text is None:
        return 0
    if not text.strip().isdigit():
        raise ConfigError(f"{path} does not hold a time in milliseconds. Remove it if this key has no copy")
    return int(text)
