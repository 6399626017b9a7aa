"""The three outcomes of a step, and the numbers that verdicts have.

* A verdict is a `Code`: deterministic, equal on every replica, part of the state digest. Numbers are fixed
  for ever.
* `Halt` is no verdict: the environment failed (a read error, a damaged row, a broken invariant). Nothing
  advances and the process ends. A read error is never "not found".
"""

from enum import IntEnum
from typing import Final

from verifier.errors import Reason


class Halt(Exception):
    """This replica cannot go on: its storage failed, or its rows contradict each other."""


def invariant(holds: bool, why: str) -> None:
    """Raise Halt unless `holds`. Unlike an assert it survives -O."""
    if not holds:
        raise Halt(f"broken invariant: {why}")


class Code(IntEnum):
    """The verdict on one command, or on a whole entry that was refused."""

    APPLIED = 0
    # One for each public reason, in the order of contract section 1. Some are given by the edge only.
    MALFORMED = 1
    TOO_LARGE = 2
    UNKNOWN_REALM = 3
    VERSION_MISMATCH = 4
    NOT_AUTHORIZED = 5
    WRONG_INDEX = 6
    COMMITMENT_MISMATCH = 7
    UPDATE_PENDING = 8
    REVOKED = 9
    PROOF_REQUIRED = 10
    PROOF_INVALID = 11
    PROOF_EXPIRED = 12
    PROOF_REPLAYED = 13
    DOMAIN_NOT_SERVED = 14
    QUORUM_UNSATISFIABLE = 15
    NOT_RATIFIED_IN_TIME = 16
    NO_SUCH_EPOCH = 17
    EPOCH_PENDING = 18
    RATE_LIMITED = 19
    NOT_READY = 20
    # From 64 on: what replicas and verifiers did wrong; no user causes it. Whole entries.
    BAD_ENVELOPE = 64  # not a log entry in its deterministic encoding, or beyond a limit
    WRONG_RULES = 65
    UNKNOWN_REPLICA = 66  # not a key of P(epoch + 1), nor one that leaves and still owes its signature
    BAD_SIGNATURE = 67  # also of one head or ratification
    DELIMITER_NOT_ALONE = 68
    # Single commands.
    UNKNOWN_COMMAND = 69
    DELIMITER_EPOCH = 70  # not the last epoch + 1
    DELIMITER_EARLY = 71  # not after the last issue time, or within the min interval
    DELIMITER_DRIFT = 72  # too far from the log's time
    HEAD_MISMATCH = 73
    DUPLICATE = 74  # the first of its kind stands; the command asks for nothing more
    KEY_IN_USE = 75  # a verifier's key is a replica's, or the other way round
    TOO_MANY_VERIFIERS = 76
    CHANGE_UNLAWFUL = 77  # of replicas: not one key added, removed or replaced, or no majority of its keys
    CHANGE_OUTDATED = 78  # made for another policy than the present one, or its time has passed
    CHANGE_PENDING = 79  # another one takes effect at the next delimiter


CODE_OF: Final = {reason: Code[reason.value] for reason in Reason}

_REASON_OF: Final = {code: reason for reason, code in CODE_OF.items()} | {
    Code.BAD_SIGNATURE: Reason.NOT_AUTHORIZED,
    Code.KEY_IN_USE: Reason.NOT_AUTHORIZED,
    Code.UNKNOWN_REPLICA: Reason.NOT_AUTHORIZED,
    Code.CHANGE_OUTDATED: Reason.VERSION_MISMATCH,
    Code.CHANGE_PENDING: Reason.EPOCH_PENDING,
    Code.DELIMITER_EARLY: Reason.EPOCH_PENDING,
    Code.DELIMITER_EPOCH: Reason.NO_SUCH_EPOCH,
    Code.TOO_MANY_VERIFIERS: Reason.TOO_LARGE,
    Code.WRONG_RULES: Reason.NOT_READY,
}


def reason_of(code: Code) -> Reason:
    """The public reason of a refusal; an internal code without one is MALFORMED to an outsider."""
    return _REASON_OF.get(code, Reason.MALFORMED)
