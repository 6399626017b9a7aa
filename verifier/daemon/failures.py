"""Why a verifier does not start or stops, each with the exit code of contract section 4. `str()` is safe to
show."""

from __future__ import annotations

from pathlib import Path

from verifier.daemon.evidence import Evidence
from verifier.errors import E2eksError

# How every doubt about what this verifier's key has signed ends.
REKEY = (
    "This key must not sign again. Stop this verifier, run `verifier rekey -c FILE`, and have the realm list "
    "its new verifier-info.json in place of the old one"
)


class DaemonError(E2eksError):
    """A verifier cannot go on; `exit_code` is what its process ends with."""

    exit_code = 1


class Quarantined(DaemonError):
    """Register, database, key and realm do not belong together, so nothing may be signed with this key."""

    exit_code = 2


class UpgradeNeeded(DaemonError):
    """The realm follows a rules level this version does not know."""

    exit_code = 2


class Unreachable(DaemonError):
    """Nobody answered in time, or the connection broke."""

    exit_code = 5


class CallRefused(DaemonError):
    """The server answered with a refusal; `reason` is its stable reason, or the gRPC status without one."""

    exit_code = 6

    def __init__(self, reason: str) -> None:
        super().__init__(f"the server refused: {reason}")
        self.reason = reason


class Misbehaved(DaemonError):
    """Something broke the law; the evidence is not on the disk yet."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(evidence.what)
        self.evidence = evidence
        self.exit_code = evidence.exit_code


class Halted(DaemonError):
    """Something broke the law, and its evidence is kept at `path`."""

    def __init__(self, what: str, path: Path, exit_code: int) -> None:
        super().__init__(
            f"{what}. Nothing more is ratified. Evidence: {path}. "
            "Show it to the other verifiers; move it out of its folder before this verifier may start again"
        )
        self.path = path
        self.exit_code = exit_code


class Unlawful(DaemonError):
    """An audit found something that broke the law, and its evidence is kept at `path`."""

    def __init__(self, what: str, path: Path, exit_code: int) -> None:
        super().__init__(f"{what}. Evidence: {path}. Show it to the realm's verifiers")
        self.exit_code = exit_code
