"""Calls to etcd say what is known when they fail, and certificates may change while a replica runs."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.logs import QUICK, Place, until

from keyserver.demo.processes import free_port
from replication.etcd.client import Compacted, EtcdClient, EtcdError, Pem, Refused
from replication.etcd.keyspace import put
from replication.etcd.operators import forget_replica, replicas_in_etcd
from replication.testing import propose_all, take
from replication.types import NoLeader, PeerTls, TlsFilesRefused

NOBODY = f"https://localhost:{free_port()}"


members = running_members(1)


@pytest.fixture
def client(members: EtcdMembers) -> Iterator[EtcdClient]:
    with members.client() as opened:
        yield opened


def test_a_client_without_endpoints_is_refused(members: EtcdMembers) -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        EtcdClient([], Pem.read(members.tls))


def test_the_next_endpoint_is_tried_when_one_fails(members: EtcdMembers) -> None:
    client = EtcdClient([NOBODY, *members.endpoints()], Pem.read(members.tls))
    with pytest.raises(EtcdError):
        client.txn(api.TxnRequest())
    assert client.txn(api.TxnRequest()).header.cluster_id
    with pytest.raises(EtcdError):
        client.status(client.endpoints[0])
    assert client.txn(api.TxnRequest()).header.cluster_id  # whom one asks by name does not move the others
    client.close()
    with pytest.raises(EtcdError, match="closed"):
        client.txn(api.TxnRequest())


def test_what_etcd_does_not_take_is_told_apart(client: EtcdClient) -> None:
    for size, why in ((1700, "too large"), (2048, "larger than max")):
        with pytest.raises(Refused, match=why):
            client.txn(api.TxnRequest(success=[put(b"/big", b"x" * size * 1024)]))
    with pytest.raises(Compacted):
        client.range(api.RangeRequest(key=b"/big", revision=10**9))
    assert client.keep_lease(12345) == 0


def test_a_watch_ends_when_the_client_is_closed(client: EtcdClient) -> None:
    watch = client.watch(b"/w/", 1)
    assert next(watch).created
    client.close()
    with pytest.raises(EtcdError):
        next(watch)


def test_files_that_are_no_identity_are_refused(members: EtcdMembers, tmp_path: Path) -> None:
    good, other = members.tls, members.stranger()
    (tmp_path / "empty").touch()
    for files in (
        replace(good, key=other.key),
        replace(good, certificate=tmp_path / "missing"),
        replace(good, authority=tmp_path / "empty"),
        replace(good, key=good.certificate),
    ):
        with pytest.raises(TlsFilesRefused, match="do not make an identity"):
            Pem.read(files)


async def test_certificates_are_renewed_while_a_replica_runs(members: EtcdMembers, tmp_path: Path) -> None:
    own = PeerTls(tmp_path / "own.pem", tmp_path / "own.key", members.tls.authority)
    shutil.copyfile(members.tls.certificate, own.certificate)
    shutil.copyfile(members.tls.key, own.key)
    place = Place(members, tmp_path)
    honest, members.tls = members.tls, own
    try:
        async with place.running() as log:
            await propose_all(log, [b"before"])
            await until(log.leader_hint)
            own.key.write_bytes(b"half written")
            with pytest.raises(TlsFilesRefused):
                log.renew_tls()
            await propose_all(log, [b"with the former"])
            shutil.copyfile(honest.key, own.key)
            log.renew_tls()
            await propose_all(log, [b"after"])
            assert len(await take(log, 3)) == 3
            await until(log.leader_hint)
    finally:
        members.tls = honest


def test_operators_are_told_when_nobody_answers(members: EtcdMembers) -> None:
    for ask in (
        lambda: forget_replica([NOBODY], members.tls, "/p/", "r1"),
        lambda: replicas_in_etcd([NOBODY], members.tls, "/p/"),
    ):
        with pytest.raises(NoLeader):
            ask()
    assert replicas_in_etcd(members.endpoints(), members.tls, "/never/started/") == {}


def test_times_fit_each_other() -> None:
    for timing in (QUICK, type(QUICK)()):
        assert 2 * timing.tick_s < timing.lease_s  # a call may be lost without the lead
        assert timing.report_s < timing.trim_s
