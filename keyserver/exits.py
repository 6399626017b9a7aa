"""With which exit code an error ends the command (contract section 4)."""

from __future__ import annotations

from kv.interface import StorageInUse
from verifier.errors import ConfigError, E2eksError, HistoryConflict, NotRatified, Refused, VerificationError

UNEXPECTED = 1
USAGE = 2
NOT_VERIFIED = 3
UNREACHABLE = 5
REFUSED = 6
NOT_RATIFIED = 7
CONFLICT = 8


class Unreachable(E2eksError):
    """Nobody answered in time, or not as a keyserver does."""


_CODES: tuple[tuple[type[Exception], int], ...] = (
    (VerificationError, NOT_VERIFIED),
    (HistoryConflict, CONFLICT),
    (NotRatified, NOT_RATIFIED),
    (Unreachable, UNREACHABLE),
    (Refused, REFUSED),
    (ConfigError, USAGE),
    (StorageInUse, USAGE),
)


def exit_code(error: Exception) -> int:
    """The code of contract section 4 for an error; UNEXPECTED for one that is not of this table."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), UNEXPECTED)


def innermost(error: Exception) -> Exception:
    """The error that a group of errors is about: one with a code of its own, if there is one."""
    leaves = [error]
    while any(isinstance(leaf, ExceptionGroup) for leaf in leaves):
        leaves = [
            inner
            for leaf in leaves
            for inner in (leaf.exceptions if isinstance(leaf, ExceptionGroup) else (leaf,))
        ]
    return next((leaf for leaf in leaves if exit_code(leaf) != UNEXPECTED), leaves[0])
