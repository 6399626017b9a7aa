"""What a replica says of itself in a cluster: its role, how far it is, and that it is alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyserver.run import Parts
from keyserver.status import LEADERLESS_S, Status
from keyserver.testing import Disk, running, small_realm
from replication.types import LogStatus, MemberStatus

SMALL = small_realm()
FOLLOWING = LogStatus(
    engine="raft",
    running=True,
    leader=False,
    first_index=1,
    committed_index=90,
    stored_index=91,
    role="follower",
    term=7,
    leader_name="r2",
    members=(
        MemberStatus(name="r2", connected=True, heard_s=0.01234),
        MemberStatus(name="r3", connected=False, heard_s=None, problem="refused"),
    ),
)


class Log:
    """A log of which nothing but the status is asked."""

    def __init__(self) -> None:
        self.shown = FOLLOWING

    def status(self) -> LogStatus:
        return self.shown


def status_of(parts: Parts, log: Log, now: list[float], *, ready_alone: bool = False) -> Status:
    own: Any = log
    status = Status(
        "r1", parts.replica, parts.signer, own, lambda: 0, lambda: now[0], ready_alone=ready_alone
    )
    status.listening = {"public": 1}
    status._caught_up_at = 0
    return status


async def test_a_member_shows_its_role_its_term_its_lag_and_the_others(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        record = status_of(parts, Log(), [0.0]).record()
        assert (record["engine"], record["role"], record["term"], record["leader"]) == (
            "raft",
            "follower",
            7,
            "r2",
        )
        assert record["lag"] == 90 - parts.replica.position.index
        assert [member["name"] for member in record["members"]] == ["r2", "r3"]
        assert record["members"][0]["heard_s"] == 0.012
        assert record["members"][1]["problem"] == "refused"


@pytest.mark.parametrize("ready_alone", [False, True])
async def test_without_a_majority_it_says_so_and_how_old_its_answers_are(
    tmp_path: Path, ready_alone: bool
) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        log, now = Log(), [0.0]
        status = status_of(parts, log, now, ready_alone=ready_alone)
        assert status.not_ready() == ""
        log.shown = replace(FOLLOWING, role="candidate", leader_name="")
        now[0] = LEADERLESS_S / 2  # an election
        assert status.not_ready() == ""
        now[0] = LEADERLESS_S + 1
        assert "no majority" in status.alone()
        assert f"epoch {parts.replica.state.signed_epoch}" in status.alone()
        assert status.record()["ready"] is ready_alone
        assert status.record()["alone"] == status.alone()
        log.shown = FOLLOWING
        assert status.not_ready() == ""
