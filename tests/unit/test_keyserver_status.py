"""What a replica says of itself in a cluster: its role, how far it is, and that it is alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keyserver.machine.state import Machine, genesis_state
from keyserver.metrics import Metrics
from keyserver.peers.giving_way import HAND_OVER_EVERY_S, GivingWay
from keyserver.peers.majority import HOLDER, LEADERLESS_S, Majority
from keyserver.run import Parts
from keyserver.status import Status
from keyserver.testing import Disk, Person, running, small_realm
from replication.types import LogStatus, MemberStatus
from verifier.errors import Reason, Refused

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
    """A log of which nothing is asked but its status, and that another replica leads."""

    def __init__(self) -> None:
        self.shown = FOLLOWING
        self.handed_over = 0

    def status(self) -> LogStatus:
        return self.shown

    def hand_over(self) -> None:
        self.handed_over += 1


def status_of(parts: Parts, log: Any, alone: Callable[[], str] = str) -> Status:
    status = Status("r1", parts.replica, parts.signer, log, lambda: 0, alone=alone)
    status.listening = {"public": 1}
    return status


async def test_a_member_shows_its_role_its_term_its_lag_and_the_others(tmp_path: Path) -> None:
    async with running(SMALL, Disk(tmp_path)) as parts:
        record = status_of(parts, Log()).record()
        shown = [record[name] for name in ("engine", "role", "term", "leader")]
        assert shown == ["raft", "follower", 7, "r2"]
        assert record["lag"] == 90 - parts.replica.position.index
        assert [member["name"] for member in record["members"]] == ["r2", "r3"]
        assert record["members"][0]["heard_s"] == 0.012
        assert record["members"][1]["problem"] == "refused"


async def test_a_member_is_measured_when_it_is_asked(tmp_path: Path) -> None:
    log, metrics = Log(), Metrics()
    async with running(SMALL, Disk(tmp_path)) as parts:
        for why in ("", "no majority"):
            for attribute, value, *labels in status_of(parts, log, lambda why=why: why).gauges():  # type: ignore[misc]
                metrics.set(attribute, value, *labels)
            shown = metrics.text().decode().splitlines()
            assert f"e2eks_alone {float(bool(why))}" in shown
    assert "e2eks_log_leader 0.0" in shown
    assert "e2eks_log_term 7.0" in shown
    assert "e2eks_log_committed_index 90.0" in shown
    assert 'e2eks_member_connected{member="r2"} 1.0' in shown
    assert 'e2eks_member_connected{member="r3"} 0.0' in shown


async def test_without_a_majority_it_takes_nothing_and_says_how_old_its_answers_are(tmp_path: Path) -> None:
    log, now = Log(), [0.0]
    unused: Any = log
    async with running(SMALL, Disk(tmp_path)) as parts:
        watch = Majority(unused, parts.proposer, parts.replica, lambda: 0, lambda: now[0])
        watch.look()
        assert parts.proposer.held == ""
        log.shown = replace(FOLLOWING, role="candidate", leader_name="")
        now[0] = LEADERLESS_S / 2  # an election
        watch.look()
        assert parts.proposer.held == ""
        now[0] = LEADERLESS_S
        watch.look()
        assert parts.proposer.held.startswith("no majority")
        assert f"epoch {parts.replica.state.signed_epoch}" in watch.missing()
        assert status_of(parts, log, watch.missing).record()["alone"] == watch.missing()
        assert parts.proposer.held_but(HOLDER) == ""
        with pytest.raises(Refused, match="no majority"):
            await parts.service.update(Person.named("alice", SMALL).update({"ssh": b"1"}), "here")
        assert parts.service.lookup(Person.named("alice", SMALL).lookup(), "here")
        anew = Majority(unused, parts.proposer, parts.replica, lambda: 0, lambda: now[0])
        assert "no leader was heard of since the start" in anew.missing()
        log.shown = FOLLOWING
        watch.look()
        assert parts.proposer.held == ""


def test_a_member_that_knows_no_epoch_yet_speaks_of_none() -> None:
    log = Log()
    log.shown = replace(FOLLOWING, role="candidate", leader_name="")
    replica: Any = SimpleNamespace(state=genesis_state(Machine(SMALL.realm, 1)))
    unused: Any = log
    why = Majority(unused, unused, replica, lambda: 1_795_370_051_000, lambda: 0.0).missing()
    assert why == "no majority: no leader was heard of since the start. No epoch is known here yet"


async def test_who_leads_and_may_not_propose_lets_another_one_lead(tmp_path: Path) -> None:
    log, now, why = Log(), [0.0], [""]
    unused: Any = log
    async with running(SMALL, Disk(tmp_path)) as parts:
        watch = GivingWay(unused, parts.proposer, parts.replica, lambda: why[0], lambda: now[0])
        log.shown = replace(FOLLOWING, role="leader", leader=True, leader_name="r1")
        watch.look()
        assert log.handed_over == 0
        why[0] = "not among the replicas"
        for now[0] in (0.0, 0.25, HAND_OVER_EVERY_S, HAND_OVER_EVERY_S + 0.25):
            watch.look()
        assert log.handed_over == 2
        log.shown, now[0] = FOLLOWING, 9.0
        watch.look()
        why[0] = ""
        log.shown = replace(FOLLOWING, role="leader", leader=True, leader_name="r1")
        watch.look()
        assert log.handed_over == 2
        parts.proposer.hold("a test", "the disk is full")
        watch.look()
        assert log.handed_over == 3


@pytest.mark.parametrize("alone", [True, False])
async def test_who_waits_for_a_decision_that_will_not_come_is_told_at_once(
    tmp_path: Path, alone: bool
) -> None:
    """A client, or a verifier with a ratification, would wait out its deadline before it asks another."""
    log = Log()
    unused: Any = log
    async with running(SMALL, Disk(tmp_path)) as parts:
        watch: Majority | GivingWay
        watch = GivingWay(unused, parts.proposer, parts.replica, lambda: "not a replica")
        if alone:
            log.shown = replace(FOLLOWING, role="candidate", leader_name="")
            watch = Majority(unused, parts.proposer, parts.replica, lambda: 0)
        with (
            parts.replica.waiters.expect(bytes(32)) as decision,
            parts.replica.waiters.expect(b"x") as decided,
        ):
            decided.decide(0, 7)
            watch.look()
            assert await decided.wait() == (0, 7)
            with pytest.raises(Refused, match="ask another one") as refused:
                await decision.wait()
        assert refused.value.reason is Reason.NOT_READY
