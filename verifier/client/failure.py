"""Errors in words and as one JSON object: what happened, what was compared, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from verifier.client.outcome import Exit, exit_of_error
from verifier.client.show import ADVICE
from verifier.errors import HistoryConflict, NotRatified, Refused, VerificationError

SCHEMA = "e2eks.error/1"

_HAPPENED = {
    Exit.NOT_VERIFIED: "a proof does not verify",
    Exit.CONFLICT: "the history of the realm is forked",
    Exit.NOT_RATIFIED: "the answer is not ratified as it must be",
    Exit.UNREACHABLE: "no keyserver answered",
    Exit.REFUSED: "the request was refused",
}


def reason_of(error: Exception) -> str:
    """The stable word for an error: its reason, cause or check, or its kind."""
    match error:
        case Refused(reason=reason):
            return reason.value
        case NotRatified(cause=cause):
            return cause
        case VerificationError(check=check):
            return check
    return type(error).__name__


def words(error: Exception, evidence: Sequence[Path]) -> str:
    """The error for a person, over several lines."""
    code = exit_of_error(error)
    if code is Exit.BUG:
        return f"unexpected {type(error).__name__}; this is a bug, set E2EKS_DEBUG=1 to see where"
    happened = _HAPPENED.get(code)
    lines = [f"{happened}: {error}" if happened else str(error)]
    if isinstance(error, Refused) and code is not Exit.USAGE:
        lines[0] += f" ({error.reason})"
    lines += [f"evidence saved: {path}" for path in evidence]
    if advice := _advice(error):
        lines.append(advice)
    return "\n  ".join(lines)


def document(error: Exception, evidence: Sequence[Path]) -> dict[str, object]:
    """The error for a program."""
    return {
        "schema": SCHEMA,
        "error": reason_of(error),
        "exit": int(exit_of_error(error)),
        "message": words(error, ()) if exit_of_error(error) is Exit.BUG else str(error),
        "evidence": [str(path) for path in evidence],
    }


def _advice(error: Exception) -> str:
    if isinstance(error, VerificationError):
        return ADVICE["VerificationError"]
    if isinstance(error, HistoryConflict):
        return ADVICE["HistoryConflict"]
    return ADVICE.get(reason_of(error), "")
