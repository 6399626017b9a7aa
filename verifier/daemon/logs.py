"""Logs: one JSON object a line on stderr. Verifiers know no user ids; keys and signatures are never
logged.
"""

from __future__ import annotations

import sys

import structlog


def log_json_to_stderr() -> None:
    """For the process that runs a verifier."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
