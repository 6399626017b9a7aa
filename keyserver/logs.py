"""Structured logs: one JSON object a line on stderr, with the replica's own clock.

No event ever carries a user id, an index, a nonce, a proof or a secret. Exceptions are named by type and
place, never by their text or values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog


def configure(clock: Callable[[], int], replica: str) -> None:
    """Send every structlog event of this process to stderr. `clock`: Unix milliseconds."""

    def stamped(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        moment = datetime.fromtimestamp(clock() / 1000, UTC)
        return {"time": moment.isoformat(timespec="milliseconds"), "replica": replica, **event}

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            stamped,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
