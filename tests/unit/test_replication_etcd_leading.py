"""One replica leads, for as long as it is certain to; members of etcd may fail in any way."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from etcd_members import EtcdMembers
from etcd_members.cluster import QUICK_ELECTIONS
from etcd_members.fixtures import running_members
from etcd_members.logs import QUICK, Place, until

import replication.etcd.keeper as keeper_module
from replication.testing import HANGS_AFTER_S, numbered, propose_all, take

members = running_members(3, *QUICK_ELECTIONS)


@pytest.fixture
def place(members: EtcdMembers, tmp_path: Path) -> Place:
    return Place(members, tmp_path, ("r1", "r2"))


async def test_one_leads_and_another_when_it_stops(place: Place) -> None:
    async with place.running("r1") as one:
        await until(one.leader_hint)
        async with place.running("r2") as two:
            await until(lambda: two.status().leader_name == "r1")
            assert not two.leader_hint()
            assert two.status().role == "follower"
            await one.stop()
            assert not one.leader_hint()
            await until(lambda: two.leader_hint() and two.status().leader_name == "r2")


async def test_one_leads_and_another_when_it_is_asked_to_hand_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "REST_S", HANGS_AFTER_S)
    async with place.running("r1") as one:
        await until(one.leader_hint)
        async with place.running("r2") as two:
            await until(lambda: two.status().leader_name == "r1")
            two.hand_over()  # of what it does not have
            one.hand_over()
            await until(two.leader_hint)
            assert not one.leader_hint()


async def test_a_leader_that_loses_its_lease_knows_at_once(place: Place) -> None:
    """It is told; it does not find out the next time that it looks."""
    never_looks = replace(QUICK, tick_s=10 * HANGS_AFTER_S, lease_s=int(20 * HANGS_AFTER_S))
    async with place.running("r1", timing=never_looks) as log:

        def leads() -> bool:
            if log._view.attached.is_set() and not log.leader_hint():
                log._keeper.wake()
            return log.leader_hint()

        await until(leads)
        lost = log._keeper._lease
        with place.members.client() as client:
            client.revoke_lease(lost)
        await until(lambda: log._keeper._lease != lost and log.leader_hint())


async def test_a_leader_cut_off_from_etcd_stops_leading_by_its_own_clock(tmp_path: Path) -> None:
    with EtcdMembers(tmp_path / "etcd", 1).running() as etcd:
        async with Place(etcd, tmp_path).running(timing=replace(QUICK, lease_s=2)) as log:
            await until(log.leader_hint)
            etcd.pause("e1", signal.SIGSTOP)
            await until(lambda: not log.leader_hint())
            etcd.pause("e1", signal.SIGCONT)
            await until(lambda: log.leader_hint() and log.status().leader_name == "r1")


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_member_of_etcd_that_fails_is_left_for_another(place: Place, how: str) -> None:
    payloads = [b"%d" % number for number in range(60)]
    async with place.running("r1") as log:
        await propose_all(log, payloads[:20])
        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(propose_all, log, payloads[20:])
                if how == "killed":
                    place.members.kill("e1")
                else:
                    place.members.pause("e1", signal.SIGSTOP)
        assert await take(log, 60) == numbered(payloads)
        assert log.status().committed_index == 60
        if how == "killed":
            address = place.members.endpoints("e1")[0].removeprefix("https://")
            await until(lambda: any(address in warning for warning in log.status().warnings))
        else:
            place.members.pause("e1", signal.SIGCONT)
        await trio.to_thread.run_sync(place.members.start)
        await propose_all(log, [b"all are back"])
        assert len(await take(log, 61)) == 61
