"""How a call ends: the client's own errors, and the exit code of every error (contract section 4)."""

from __future__ import annotations

from enum import IntEnum

from verifier.errors import (
    ConfigError,
    E2eksError,
    HistoryConflict,
    Malformed,
    NotRatified,
    Reason,
    Refused,
    VerificationError,
)
from verifier.lookup import Absent, Erased, LookupResult, Present, Revoked


class Exit(IntEnum):
    """Exit codes of `e2eks`."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NOT_VERIFIED = 3
    ABSENT = 4
    UNREACHABLE = 5
    REFUSED = 6
    NOT_RATIFIED = 7
    CONFLICT = 8
    GONE = 9
    STOPPED = 130  # by the keyboard or a "no", as shells have it


class Unreachable(E2eksError):
    """No address answered in time, or what answered is no keyserver."""


# The server's words for "not enough ratifications": the same news as a proof with too few of them.
UNRATIFIED = frozenset({Reason.NOT_RATIFIED_IN_TIME, Reason.EPOCH_PENDING})

_ERRORS: tuple[tuple[type[E2eksError], Exit], ...] = (
    (VerificationError, Exit.NOT_VERIFIED),
    (HistoryConflict, Exit.CONFLICT),
    (NotRatified, Exit.NOT_RATIFIED),
    (Unreachable, Exit.UNREACHABLE),
    (ConfigError, Exit.USAGE),
    (Malformed, Exit.USAGE),  # what the user typed: malformed answers are VerificationErrors by then
    (Refused, Exit.REFUSED),
)

_RESULTS: tuple[tuple[type[LookupResult], Exit, str], ...] = (
    (Present, Exit.DONE, "present"),
    (Absent, Exit.ABSENT, "absent"),
    (Erased, Exit.GONE, "erased"),
    (Revoked, Exit.GONE, "revoked"),
)


def exit_of_error(error: Exception) -> Exit:
    """The exit code of an error; BUG for an error nobody foresaw."""
    if isinstance(error, Refused) and error.reason in UNRATIFIED:
        return Exit.NOT_RATIFIED
    return next((code for kind, code in _ERRORS if isinstance(error, kind)), Exit.BUG)


def exit_of_result(result: LookupResult) -> Exit:
    """The exit code of a verified result."""
    return next(code for kind, code, _ in _RESULTS if isinstance(result, kind))


def status_of(result: LookupResult) -> str:
    """One of present, absent, erased, revoked."""
    return next(status for kind, _, status in _RESULTS if isinstance(result, kind))
