"""The keeper does what is left to do, whoever left it, and says what it knows when it does not know all."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import QUICK, Place, until

import replication.etcd.client as client_module
import replication.etcd.keeper as keeper_module
from kv.memory import MemoryDisk, MemoryStore
from replication.chain import FIRST_LINK
from replication.etcd.client import CALL_S, EtcdClient, EtcdError, Refused
from replication.etcd.copy import Arrival, LogCopy
from replication.etcd.keeper import Keeper
from replication.etcd.keyspace import Base, Keyspace
from replication.etcd.view import Timing, View
from replication.testing import HANGS_AFTER_S, propose_all, public_half

SOME = [b"some %d" % number for number in range(30)]

members = running_members(1)


@pytest.fixture
def place(members: EtcdMembers, tmp_path: Path) -> Place:
    return Place(members, tmp_path)


def unattached(client: Any, timing: Timing = QUICK) -> tuple[Keeper, View]:
    """A keeper that has not met etcd: it only surveys."""
    view = View("r1", lambda: 0.0)
    copy = LogCopy(MemoryStore(MemoryDisk()), public_half)
    return Keeper(client, Keyspace("/unit/"), copy, view, timing=timing, quota_bytes=10**9), view


class Failing:
    """Transactions that delete entries fail, as long as one says so."""

    def __init__(self, client: EtcdClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self._txn = client.txn
        self.fails = True
        monkeypatch.setattr(client, "txn", self.txn)

    def txn(self, request: api.TxnRequest, timeout_s: float = CALL_S) -> api.TxnResponse:
        if self.fails and any(op.HasField("request_delete_range") for op in request.success):
            raise EtcdError("no answer")
        return self._txn(request, timeout_s)


async def test_what_a_trimming_left_leaves_etcd_without_a_further_entry(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full etcd takes none: it would stay full."""
    with place.members.client() as client:
        async with place.running() as log:
            failing = Failing(log._client, monkeypatch)
            await propose_all(log, SOME)
            await until(lambda: place.base(client).index == 30)
            assert place.entries(client)
            failing.fails = False
            await until(lambda: place.entries(client) == [])
            failing.fails = True
            await propose_all(log, SOME)
            await until(lambda: place.base(client).index == 60)
        assert place.entries(client)
        async with place.running(lo=61):
            await until(lambda: place.entries(client) == [])


async def test_what_piled_up_may_take_long_to_list(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Etcd reads the values, too, of all keys it lists, and answers too late for an ordinary call."""
    with place.members.client() as client:
        async with place.running() as log:
            in_time = log._client.range

            def late(request: api.RangeRequest, timeout_s: float = CALL_S) -> api.RangeResponse:
                if request.keys_only and timeout_s <= CALL_S:
                    raise EtcdError("deadline exceeded")
                return in_time(request, timeout_s)

            monkeypatch.setattr(log._client, "range", late)
            await propose_all(log, SOME)
            await until(lambda: place.base(client).index == 30 and place.entries(client) == [])


async def test_more_keys_than_fit_one_answer_leave_etcd_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "KEYS_AT_ONCE", 7)
    with place.members.client() as client:
        async with place.running() as log:
            honest = log._client.range

            def bounded(request: api.RangeRequest, timeout_s: float = CALL_S) -> api.RangeResponse:
                answer = honest(request, timeout_s)
                if len(answer.kvs) > 7:
                    raise Refused("Received message larger than max")
                return answer

            monkeypatch.setattr(log._client, "range", bounded)
            await propose_all(log, SOME)
            await until(lambda: place.base(client).index == 30 and place.entries(client) == [])


def test_who_trims_has_read_the_reports_that_came_with_the_base_row() -> None:
    """The sender learns of a base row from a refusal: perhaps before the follower has read that a replica is
    back with an older copy. Trimming on that replica's former word must fail.
    """
    requests: list[api.TxnRequest] = []

    def txn(request: api.TxnRequest) -> api.TxnResponse:
        requests.append(request)
        return api.TxnResponse()

    keeper, view = unattached(SimpleNamespace(txn=txn), replace(QUICK, trim_entries=1))
    keeper._copy.begin(0, 0, 1)
    keeper._copy.extend([Arrival(b"key", 5, (b"a", b"b"))])
    base = Base(0, FIRST_LINK, 0, ("r1", "r2"))
    view.reports = dict.fromkeys(base.replicas, (keeper._copy.cursor, 0.0))
    view.learn_base(base, 6)
    view.followed = base, 6
    view.learn_base(base, 9)
    view.leader_until = 1.0
    keeper._trim()
    assert [request.compare[0].mod_revision for request in requests] == [6]  # which etcd refuses


def test_without_a_majority_the_members_that_are_missing_are_named() -> None:
    """Who is left says that there is no leader; nobody can tell which alarms are raised."""

    def status(endpoint: str) -> api.StatusResponse:
        if endpoint == "b:1":
            raise EtcdError("b:1: connection refused")
        return api.StatusResponse(version="3.5.14", dbSize=1, errors=["etcdserver: no leader"])

    def alarms() -> Sequence[api.AlarmMember]:
        raise EtcdError("a:1: no leader")

    keeper, view = unattached(SimpleNamespace(endpoints=("a:1", "b:1"), status=status, alarms=alarms))
    keeper._survey()
    assert any("b:1: connection refused" in warning for warning in view.warnings)
    assert view.full == ""


def test_the_lead_is_kept_while_members_that_are_gone_are_asked() -> None:
    now, led = 100.0, []

    def status(_endpoint: str) -> api.StatusResponse:
        nonlocal now
        now += client_module.STATUS_S
        led.append(view.leads)
        raise EtcdError("deadline exceeded")

    def holder(_: api.RangeRequest) -> api.RangeResponse:
        return api.RangeResponse(kvs=[api.KeyValue(lease=7)])

    gone = SimpleNamespace(endpoints=("a:1", "b:1"), status=status, range=holder, keep_lease=lambda _: 2)
    keeper, view = unattached(gone)
    view.clock = lambda: now
    view.attached.set()
    keeper._lease = 7
    keeper._lead()
    keeper._survey()
    assert led == [True, True]


def test_who_is_told_to_stop_just_before_it_looks_does_not_wait_first() -> None:
    keeper, _ = unattached(SimpleNamespace(endpoints=()), replace(QUICK, tick_s=10 * HANGS_AFTER_S))

    class Due(threading.Event):
        def clear(self) -> None:
            keeper.stop()
            super().clear()

    keeper._due = Due()
    thread = threading.Thread(target=keeper.run, daemon=True)
    thread.start()
    thread.join(HANGS_AFTER_S)
    assert not thread.is_alive()
