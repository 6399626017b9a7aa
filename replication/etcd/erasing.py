"""Erasure where the entries lie in etcd. Blocking; for a worker thread.

What the copy holds takes the place of what is under the same key, public parts equal. Replicas that have not
read the key yet read the new value; it does not move in the order, which is that of creation. Then etcd's
history is compacted. Every replica that erases does the same, so the last one leaves everything erased.
What etcd's files hold on until they are defragmented, and its journal, is told in docs/operations/etcd.md.
"""

from __future__ import annotations

from collections.abc import Collection

from e2eks.etcd import api_pb2 as api

from replication.etcd.client import Compacted, EtcdClient, EtcdError
from replication.etcd.copy import LogCopy
from replication.etcd.keyspace import decode_batch, encode_batch, put, unchanged


def erase_in_etcd(client: EtcdClient, copy: LogCopy, indices: Collection[int]) -> bool:
    """Give etcd the payloads of these entries as they are here; False when it could not be done now.

    Entries that are no longer in etcd need nothing. Raises StorageError.
    """
    revision = 0
    try:
        for index in sorted(indices):
            place = copy.key_of(index)
            if place is not None:
                revision = max(revision, _rewrite(client, copy, index, *place))
        if revision:
            client.compact_history(revision)
    except Compacted:
        return True
    except EtcdError:
        return False
    return True


def _rewrite(client: EtcdClient, copy: LogCopy, index: int, key: bytes, place: int) -> int:
    """Replace one payload under a key; return the revision from which on it is gone."""
    while True:
        answer = client.range(api.RangeRequest(key=key))
        if not answer.kvs:
            return answer.header.revision
        row = answer.kvs[0]
        payloads = list(decode_batch(row.value))
        (entry,) = copy.read(index, index + 1, 0)
        if payloads[place] == entry.payload:
            return row.mod_revision
        payloads[place] = entry.payload
        request = api.TxnRequest(
            compare=[unchanged(key, row.mod_revision)], success=[put(key, encode_batch(payloads))]
        )
        written = client.txn(request)
        if written.succeeded:
            return written.header.revision
