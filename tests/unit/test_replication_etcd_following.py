"""Who follows etcd finds out what happened while it did not: another etcd, and an operator's word."""

import time
from pathlib import Path

import pytest
import trio
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import NEVER_TRIM, Place

import replication.etcd.follower as follower_module
from kv.interface import StorageError
from kv.memory import MemoryDisk, MemoryStore
from replication.etcd.client import CALL_S, EtcdClient, EtcdError, Refused
from replication.etcd.copy import LogCopy
from replication.etcd.follower import Follower
from replication.etcd.operators import forget_replica
from replication.etcd.view import View
from replication.testing import NO_LIMIT, propose_all, public_half, take

SOME = [b"some %d" % number for number in range(50)]

members = running_members(1)


@pytest.fixture
def place(members: EtcdMembers, tmp_path: Path) -> Place:
    return Place(members, tmp_path, ("r1", "r2"))


def follower(place: Place, client: EtcdClient) -> Follower:
    """The follower of r2, to be driven by hand."""
    return Follower(
        client,
        place.keys,
        LogCopy(MemoryStore(MemoryDisk()), public_half),
        View("r2", time.monotonic),
        place.replicas,
        retry_s=0.0,
        seen=lambda _: None,
        stored=lambda _: None,
        leaderless=lambda: None,
    )


def test_who_was_removed_while_it_could_not_watch_stops(place: Place) -> None:
    with place.members.client() as client:
        removed = follower(place, client)
        removed._join()
        forget_replica(place.members.endpoints(), place.members.tls, place.prefix, "r2")
        with pytest.raises(StorageError, match="an operator has removed this replica"):
            removed._take_what_is_there()


def test_reports_are_read_before_anybody_trims_by_them(place: Place) -> None:
    with place.members.client() as client:
        one = follower(place, client)
        one._join()
        view = one._view
        assert view.followed == (view.base, view.base_revision)
        assert set(view.reports) == {"r1", "r2"}


def test_what_piled_up_may_take_long_to_list(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Etcd reads the values, too, of all keys it lists, and answers too late for an ordinary call."""
    with place.members.client() as client:
        txn = client.txn

        def slow(request: api.TxnRequest, timeout_s: float = CALL_S) -> api.TxnResponse:
            if timeout_s <= CALL_S and any(op.request_range.keys_only for op in request.success):
                raise EtcdError("deadline exceeded")
            return txn(request, timeout_s)

        monkeypatch.setattr(client, "txn", slow)
        late = follower(place, client)
        late._join()
        late._take_what_is_there()


async def test_more_keys_than_fit_one_answer_are_read_in_parts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "KEYS_AT_ONCE", 7)
    async with place.running("r1", timing=NEVER_TRIM) as log:
        await propose_all(log, SOME)
        expected = await take(log, len(SOME))
    with place.members.client() as client:
        txn = client.txn

        def bounded(request: api.TxnRequest, timeout_s: float = CALL_S) -> api.TxnResponse:
            answer = txn(request, timeout_s)
            if any(len(part.response_range.kvs) > 7 for part in answer.responses):
                raise Refused("Received message larger than max")
            return answer

        monkeypatch.setattr(client, "txn", bounded)
        late = follower(place, client)
        late._join()
        late._take_what_is_there()
        assert list(late._copy.read(1, 100, NO_LIMIT)) == expected


async def test_an_etcd_that_comes_back_with_a_lost_end_ends_who_is_running(tmp_path: Path) -> None:
    """A watch would wait until the revisions are reached again, and miss what is made until then."""
    etcd = EtcdMembers(tmp_path / "etcd", 1)
    place = Place(etcd, tmp_path)
    with etcd.running():
        async with place.running(timing=NEVER_TRIM) as log:
            await propose_all(log, SOME[:6])
        etcd.keep_copy("e1", tmp_path / "older")
        etcd.start()
        async with place.running(timing=NEVER_TRIM) as log:
            await propose_all(log, SOME[6:])
            await take(log, len(SOME))
            etcd.put_back("e1", tmp_path / "older")
            await trio.to_thread.run_sync(etcd.start)
            with pytest.raises(StorageError, match="etcd has lost the end of the log"):
                await take(log, len(SOME) + 1)
