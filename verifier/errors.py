"""What can go wrong, as types. Every refusal carries a stable reason; no message carries a user id or a
secret."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Stable reasons, the same in gRPC ErrorInfo, in HTTP problems and on the command line."""

    MALFORMED = "MALFORMED"
    TOO_LARGE = "TOO_LARGE"
    UNKNOWN_REALM = "UNKNOWN_REALM"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    NOT_AUTHORIZED = "NOT_AUTHORIZED"
    WRONG_INDEX = "WRONG_INDEX"
    COMMITMENT_MISMATCH = "COMMITMENT_MISMATCH"
    UPDATE_PENDING = "UPDATE_PENDING"
    REVOKED = "REVOKED"
    PROOF_REQUIRED = "PROOF_REQUIRED"
    PROOF_INVALID = "PROOF_INVALID"
    PROOF_EXPIRED = "PROOF_EXPIRED"
    PROOF_REPLAYED = "PROOF_REPLAYED"
    DOMAIN_NOT_SERVED = "DOMAIN_NOT_SERVED"
    QUORUM_UNSATISFIABLE = "QUORUM_UNSATISFIABLE"
    NOT_RATIFIED_IN_TIME = "NOT_RATIFIED_IN_TIME"
    NO_SUCH_EPOCH = "NO_SUCH_EPOCH"
    EPOCH_PENDING = "EPOCH_PENDING"
    RATE_LIMITED = "RATE_LIMITED"
    NOT_READY = "NOT_READY"


class E2eksError(Exception):
    """Base of all errors of this project that a caller may meet; `str()` is safe to show."""


class ConfigError(E2eksError):
    """A configuration, an option, a file it names or a folder is not usable; the text says what to do."""


class Refused(E2eksError):
    """Deterministic refusal of an input, with its reason."""

    def __init__(self, reason: Reason, what: str) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what


class Malformed(Refused):
    """Bytes that are not a value of their type, or exceed its limits (MALFORMED or TOO_LARGE)."""

    def __init__(self, what: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(reason, what)


class VerificationError(E2eksError):
    """Something received does not prove what it claims.

    `check` names the rule that failed: one of realm, user-id, vrf, tree, entry, commitment, head,
    signature, policy, history, notice.
    """

    def __init__(self, check: str, what: str) -> None:
        super().__init__(f"{check}: {what}")
        self.check = check
        self.what = what


class NotRatified(E2eksError):
    """Valid as far as it goes, but too few, too old or older-than-pinned ratifications.

    `cause` is one of quorum, stale, future, rollback, notice.
    """

    def __init__(self, cause: str, what: str) -> None:
        super().__init__(f"{cause}: {what}")
        self.cause = cause
        self.what = what


class HistoryConflict(E2eksError):
    """Two validly signed heads that no single history contains: a fork, provable to anybody.

    `first` and `second` are the exact bytes of both SignedEpochHeads, the evidence.
    """

    def __init__(self, what: str, first: bytes, second: bytes) -> None:
        super().__init__(what)
        self.what = what
        self.first = first
        self.second = second
