"""A notice that the realm's history ends, judged by what this client knows of the realm (docs/operations/
cluster.md). Its head is remembered as those of saved proofs are: another one of the same epoch is a fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifier import history_break
from verifier.client.historian import BadAnswer, Historian, judging
from verifier.errors import NotRatified
from verifier.history_break import Notice
from verifier.types import Realm

# All servers may be gone for good, and with them the proof of who the replicas were at the end.
KNOWN_HERE = (
    "as far as it is known here. If the realm has changed its replicas and no server answers, judge the "
    "notice where a lookup was verified after that"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A notice that holds: `signed_by` are key ids of its `replicas` replicas; `seen_epoch` is the newest
    seen of the realm before, 0 for none. What epochs after the notice's changed is lost.
    """

    notice: Notice
    signed_by: frozenset[bytes]
    replicas: int
    seen_epoch: int


def judge(realm: Realm, historian: Historian, addresses: Sequence[str], data: bytes) -> Ended:
    """What the notice in the bytes of a file is worth.

    If the policies known here do not fit, `addresses` are asked for newer ones. Raises VerificationError,
    HistoryConflict, NotRatified.
    """
    with judging("notice", data):
        notice = history_break.decode(realm, data)
    try:
        signers = _signers(realm, historian, notice, data)
    except (BadAnswer, NotRatified) as error:
        if not any(historian.learn_policy(address) for address in addresses):
            if isinstance(error, BadAnswer) and error.check == "signature":
                raise BadAnswer(error.check, f"{error.what}, {KNOWN_HERE}", "notice", (data,)) from None
            raise
        signers = _signers(realm, historian, notice, data)
    before = historian.hold(notice.head)
    law = history_break.successors(historian.trust(notice.epoch).replicas, notice)
    return Ended(notice, signers, len(law.keys), before.newest_epoch)


def _signers(realm: Realm, historian: Historian, notice: Notice, data: bytes) -> frozenset[bytes]:
    with judging("notice", data):
        return history_break.verify(realm, historian.trust(notice.epoch).replicas, notice)
