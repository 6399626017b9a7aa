"""What operators ask of a log in etcd from outside. Blocking; needs no replica, running or not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from e2eks.etcd import api_pb2 as api

from kv.leveldb import LevelDBStore
from replication.etcd.client import EtcdClient, EtcdError, Pem
from replication.etcd.copy import CopyTables
from replication.etcd.keyspace import Base, Keyspace, Report, delete, every, get, only, put, unchanged
from replication.types import NoLeader, PeerTls


class NoSuchReplica(Exception):
    """The log in etcd does not wait for a replica of this name."""


def forget_replica(endpoints: Sequence[str], tls: PeerTls, prefix: str, name: str) -> None:
    """Let trimming no longer wait for a replica that is dead; one that still runs stops.

    It may come back as long as etcd still has all entries behind its own copy, or with the copy of another.
    Raises NoSuchReplica, NoLeader when etcd does not answer, TlsFilesRefused.
    """
    client, keys = EtcdClient(endpoints, Pem.read(tls)), Keyspace(prefix)
    try:
        while True:
            row = only(client.txn(api.TxnRequest(success=[get(keys.base)])).responses[0])
            base = None if row is None else Base.decode(row.value)
            if row is None or base is None or name not in base.replicas:
                raise NoSuchReplica(f"the log in etcd does not wait for {name}")
            others = tuple(other for other in base.replicas if other != name)
            rest = Base(base.index, base.link, base.revision, others)
            answer = client.txn(
                api.TxnRequest(
                    compare=[unchanged(keys.base, row.mod_revision)],
                    success=[put(keys.base, rest.encode()), delete(keys.report(name))],
                )
            )
            if answer.succeeded:
                return
    except EtcdError as error:
        raise NoLeader(f"etcd does not answer: {error}") from None
    finally:
        client.close()


def replicas_in_etcd(endpoints: Sequence[str], tls: PeerTls, prefix: str) -> Mapping[str, int]:
    """Return the newest entry stored by each replica that trimming waits for, by name.

    Empty before the log's first start. Raises NoLeader when etcd does not answer, TlsFilesRefused.
    """
    client, keys = EtcdClient(endpoints, Pem.read(tls)), Keyspace(prefix)
    request = api.TxnRequest(success=[get(keys.base), api.RequestOp(request_range=every(keys.replicas))])
    try:
        answer = client.txn(request)
    except EtcdError as error:
        raise NoLeader(f"etcd does not answer: {error}") from None
    finally:
        client.close()
    row = only(answer.responses[0])
    reports = {
        keys.member_of(kv.key): Report.decode(kv.value).index for kv in answer.responses[1].response_range.kvs
    }
    return {} if row is None else {name: reports.get(name, 0) for name in Base.decode(row.value).replicas}


def begin_anew(directory: str | os.PathLike[str]) -> None:
    """Let a stopped replica's copy be the beginning of a log in another etcd, because the former is lost.

    The longest copy, and then the same for all replicas: what others have beyond it is given up. Blocks on
    the disk. Raises StorageError.
    """
    store = LevelDBStore(directory, create=False)
    try:
        keys = [key for key, _ in store.scan(*CopyTables.STORED.span())]
        store.write(dict.fromkeys([CopyTables.POSITION.key(), *keys]))
    finally:
        store.close()
