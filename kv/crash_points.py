"""Named places at which a test may end the process, to see what the next start makes of what is left.

The names are those of the crash points in the order of an update's life (P), of a head's signature (S), of
a verifier's step (V) and of an erasure (E). Nothing is armed unless the process is started with
E2EKS_CRASH_AT="P11:3": the process then ends when it reaches P11 for the third time. Off, `reach` is one
comparison. How a process ends itself is the business of who arms; this file does nothing to the world.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

VARIABLE = "E2EKS_CRASH_AT"

KEYSERVER = "keyserver"
VERIFIER = "verifier"


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """The file that reaches the point, in which processes, and what is true there."""

    file: str
    processes: tuple[str, ...]
    what: str


_SERVER = (KEYSERVER,)
_DAEMON = (VERIFIER,)
_BOTH = (KEYSERVER, VERIFIER)

POINTS: Final[Mapping[str, CrashPoint]] = {
    "P1": CrashPoint("keyserver/service.py", _SERVER, "an update passed the edge, nothing is proposed"),
    "P2": CrashPoint("keyserver/proposer.py", _SERVER, "an entry is signed, the log does not have it"),
    "P3": CrashPoint("replication/raft/driver.py", _SERVER, "a leader's entries are staged, not synced"),
    "P4": CrashPoint("replication/raft/driver.py", _SERVER, "a leader's entries are synced, not sent"),
    "P5": CrashPoint("replication/raft/driver.py", _SERVER, "a leader's message is staged, not synced"),
    "P6": CrashPoint("replication/raft/driver.py", _SERVER, "a leader's message is synced, not answered"),
    "P7": CrashPoint(
        "replication/raft/driver.py", _SERVER, "newly committed entries are known, not handed out"
    ),
    "P8": CrashPoint("keyserver/replica.py", _SERVER, "committed entries are stepped through"),
    "P9": CrashPoint("keyserver/replica.py", _SERVER, "the batch is complete, nothing of it is written"),
    "P10": CrashPoint("kv/leveldb.py", _BOTH, "a batch is written and not synced"),
    "P11": CrashPoint("keyserver/replica.py", _SERVER, "the batch is synced, nobody is told"),
    "P12": CrashPoint("keyserver/replica.py", _SERVER, "some are told of the batch, others not"),
    "P13": CrashPoint("keyserver/service.py", _SERVER, "an update is decided, its proof is waited for"),
    "P14": CrashPoint("keyserver/service.py", _SERVER, "an update's proof is made, the reply is not sent"),
    "S1": CrashPoint("keyserver/duties.py", _SERVER, "a head is composed, its signature is owed"),
    "S2": CrashPoint("verifier/signonce.py", _BOTH, "the register's record is written and not synced"),
    "S3": CrashPoint("verifier/signonce.py", _BOTH, "the register's record is synced, its signature unused"),
    "S4": CrashPoint("keyserver/signer.py", _SERVER, "the signature is about to leave the signer"),
    "S5": CrashPoint("keyserver/duties.py", _SERVER, "the signature is queued for the log"),
    "S6": CrashPoint("keyserver/replica.py", _SERVER, "the signature is written, nobody is told"),
    "V1": CrashPoint("verifier/daemon/watch.py", _DAEMON, "a message of the verifier log arrived"),
    "V2": CrashPoint("verifier/daemon/watch.py", _DAEMON, "the message is replayed, nothing is written"),
    "V3": CrashPoint("verifier/daemon/watch.py", _DAEMON, "the replayed steps are synced, nothing is signed"),
    "V4": CrashPoint("verifier/daemon/watch.py", _DAEMON, "a ratification is made and kept, not pushed"),
    "V5": CrashPoint("verifier/daemon/watch.py", _DAEMON, "a push is acknowledged, it is owed still"),
    "E1": CrashPoint("keyserver/erasure.py", _SERVER, "an erased part of the log is blanked, others are not"),
    "E2": CrashPoint("keyserver/erasure.py", _SERVER, "the log is blanked and purged, the database is not"),
    "E3": CrashPoint("keyserver/erasure.py", _SERVER, "log and database are purged, the duty still stands"),
}


class _Armed:
    """One point, and at which visit the process ends."""

    def __init__(self, name: str, visit: int, end: Callable[[], None]) -> None:
        self.name = name
        self._visit = visit
        self._end = end
        self._visits = itertools.count(1)  # `next` of it is one step for all threads

    def reach(self, before: Callable[[], None] | None) -> None:
        if next(self._visits) == self._visit:
            if before is not None:
                before()
            self._end()


_armed: _Armed | None = None


def reach(name: str, before: Callable[[], None] | None = None) -> None:
    """Do nothing, unless this is the armed point and its turn: then the process ends here.

    `before` is done just before the end: what a crash in the middle of something indivisible leaves behind.
    """
    if _armed is not None and _armed.name == name:
        _armed.reach(before)


def arm(text: str, end: Callable[[], None]) -> str:
    """Arm the point that `text` names, as in "P11" or "P11:3" for the third visit; "" disarms.

    Returns the name of the point. `end` must not return. Raises ValueError for anything else, naming it.
    """
    global _armed
    name, colon, number = text.partition(":")
    if not text:
        _armed = None
        return ""
    if name not in POINTS or (colon and not (number.isascii() and number.isdigit() and int(number))):
        raise ValueError(
            f"{VARIABLE}={text!r} names no crash point. Use one of {', '.join(POINTS)}, with the number "
            'of the visit if it is not the first, as in "P11:3"; or unset the variable, which is for tests'
        )
    _armed = _Armed(name, int(number or 1), end)
    return name
