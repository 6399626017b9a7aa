"""The status file: where a running verifier stands, for `verifier status`. May be lost; the database
decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kv.free_space import is_full
from verifier.errors import ConfigError
from verifier.files import find_file, replace_unsynced

SCHEMA = "e2eks.verifier-status/1"
REFRESH_MS = 10_000  # written at least this often, even when nothing changed
ALIVE_MS = 3 * REFRESH_MS
STATUS_BYTES = 64 * 1024


class StatusFile:
    """The file of one verifier."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._written: Mapping[str, Any] = {}
        self._written_ms = 0

    def write(self, standing: Mapping[str, Any], now_ms: int) -> None:
        """Write when something changed or the file grows old. Raises ConfigError."""
        if standing == self._written and abs(now_ms - self._written_ms) < REFRESH_MS:
            return
        self._written, self._written_ms = dict(standing), now_ms
        status = {"schema": SCHEMA, "name": self._name, "updated_ms": now_ms, **standing}
        text = json.dumps(status, indent=2, sort_keys=True).encode() + b"\n"
        try:
            replace_unsynced(self._path, text)
        except ConfigError as error:
            if not is_full(error) or not self._overwrite(text):
                raise

    def _overwrite(self, text: bytes) -> bool:
        """Where there is no room for a second file, there mostly is in the one that is there."""
        try:
            with self._path.open("r+b") as file:
                file.write(text)
                file.truncate()
        except OSError:
            return False
        return True


def read_status(path: Path, now_ms: int) -> dict[str, Any]:
    """The content of a status file, with `running`; little of one that is not there. Raises ConfigError."""
    data = find_file(path, STATUS_BYTES, "status file")
    if data is None:
        return {"schema": SCHEMA, "running": False, "stopped": "it never did; start it with `verifier run`"}
    status: dict[str, Any] = {}
    try:
        status = json.loads(data)
        valid = status["schema"] == SCHEMA and type(status["updated_ms"]) is int
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ConfigError(f"{path} is not a status file of this version")
    fresh = abs(now_ms - status["updated_ms"]) < ALIVE_MS
    return status | {"running": fresh and "stopped" not in status}
