"""The thread that reads the log from etcd and stores it here, in the order of the revisions that made it.

It meets etcd (join), then watches from the position stored with the newest entry. If etcd's history does not
reach back that far, it takes what is there, in the order of creation. Nothing can be missing: trimming waits
for the reports of all replicas, and joining tells how far this one really is.

Any doubt about the order ends the replica: another etcd, an etcd that forgot, a replica with other links.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import structlog
from e2eks.etcd import api_pb2 as api

from kv.interface import StorageError
from replication.etcd.client import KEYS_AT_ONCE, LISTING_S, Compacted, EtcdClient, EtcdError
from replication.etcd.copy import Arrival, LogCopy
from replication.etcd.keyspace import Base, Keyspace, Report, decode_batch, every, get, only, put, unchanged
from replication.etcd.view import View
from replication.types import RUN_BYTES_MAX, RUN_ENTRIES_MAX, LogEntry

_Put, _Delete = api.Event.PUT, api.Event.DELETE
_MISSING = "etcd has the log from entry {} on, but here it ends at {}: copy the log of another replica"


class Follower:
    """Call run() in a thread of its own; it ends when `stopping` is set and the client closed."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        copy: LogCopy,
        view: View,
        replicas: Sequence[str],
        *,
        retry_s: float,
        seen: Callable[[Sequence[bytes]], None],
        stored: Callable[[tuple[LogEntry, ...]], None],
        leaderless: Callable[[], None],
    ) -> None:
        """`seen` is told the keys of entries BEFORE these are on the disk, `stored` new entries AFTER.
        `leaderless` is called when a leader is gone.
        """
        self._client = client
        self._keys = keyspace
        self._copy = copy
        self._view = view
        self._founders = tuple(replicas)
        self._retry_s = retry_s
        self._seen = seen
        self._stored = stored
        self._leaderless = leaderless
        self._base: tuple[Base, int] | None = None  # as read here, and its revision
        self._unchecked: dict[str, Report] = {}
        self._known = 0  # revision of the newest reading: rows that changed before are not news
        self._logger = structlog.get_logger("etcd")

    def run(self, stopping: threading.Event) -> None:
        """Follow until told to stop. Raises StorageError: the log cannot go on."""
        joined = False
        while not stopping.is_set():
            try:
                if not joined:
                    self._join()
                    joined = True
                self._watch()
            except Compacted:
                self._take_what_is_there_patiently()
            except EtcdError as error:
                if not stopping.is_set():
                    self._trouble(str(error))
                    stopping.wait(self._retry_s)

    # Meeting etcd

    def _join(self) -> None:
        """Be one of the replicas that trimming waits for. Raises EtcdError, StorageError."""
        while True:
            answer = self._client.range(api.RangeRequest(key=self._keys.base))
            self._require_same_etcd(answer.header)
            if not answer.kvs:
                self._found_log()
            elif self._sign_in(Base.decode(answer.kvs[0].value), answer.kvs[0].mod_revision, answer.header):
                break
        if self._copy.cursor.index < self._copy.last:
            self._take_what_is_there()
            if self._copy.cursor.index < self._copy.last:
                raise StorageError(f"the log in etcd ends before entry {self._copy.last}, which is here")

    def _require_same_etcd(self, header: api.ResponseHeader) -> None:
        copy = self._copy
        if copy.cluster_id not in (0, header.cluster_id):
            raise StorageError("this is not the etcd cluster that the log was written to")
        if header.revision < copy.cursor.revision:
            raise StorageError("etcd has lost the end of the log: it was restored, or is another one")

    def _found_log(self) -> None:
        """Begin a log in etcd after what is here: a local log goes on as a replicated one."""
        if self._copy.cluster_id:
            raise StorageError("etcd has lost the log: its base row is gone")
        last = self._copy.last
        base = Base(last, self._copy.link_at(last), 0, self._founders)
        ops = [put(self._keys.base, base.encode())]
        ops += [put(self._keys.report(name), Report().encode()) for name in self._founders]
        self._client.txn(api.TxnRequest(compare=[unchanged(self._keys.base, 0)], success=ops))

    def _sign_in(self, base: Base, revision: int, header: api.ResponseHeader) -> bool:
        copy, view = self._copy, self._view
        if copy.last < base.index:
            raise StorageError(_MISSING.format(base.index + 1, copy.last))
        if copy.link_at(base.index) != base.link:
            raise StorageError(f"entry {base.index} here is not that of the log in etcd")
        if not copy.cluster_id:
            copy.begin(base.index, base.revision, header.cluster_id)
        # The base row changes although its contents may not: whoever trims by an older report of ours fails.
        members = Base(base.index, base.link, base.revision, tuple({*base.replicas, view.member}))
        answer = self._client.txn(
            api.TxnRequest(
                compare=[unchanged(self._keys.base, revision)],
                success=[
                    put(self._keys.base, members.encode()),
                    put(self._keys.report(view.member), copy.cursor.encode()),
                    *self._asked(),
                ],
            )
        )
        if answer.succeeded:
            self._learn(answer.header.revision, answer.responses[2:])
        return answer.succeeded

    def _asked(self) -> tuple[api.RequestOp, ...]:
        """Everything beside the entries, as _learn takes it."""
        replicas = api.RequestOp(request_range=every(self._keys.replicas))
        return get(self._keys.base), get(self._keys.leader), replicas

    def _learn(self, revision: int, responses: Sequence[api.ResponseOp]) -> None:
        """Take over everything beside the entries as it was at `revision`."""
        base, leader = only(responses[0]), only(responses[1])
        if base is None:
            raise StorageError("etcd has lost the log: its base row is gone")
        self._take_base(base)
        self._view.leader_name = "" if leader is None else leader.value.decode(errors="replace")
        for row in responses[2].response_range.kvs:
            self._on_report(row)
        self._view.followed = self._base
        self._known = revision

    # Following

    def _watch(self) -> None:
        # Whoever was away may come back as another one, or restored; a watch would wait for its revisions.
        self._require_same_etcd(self._client.range(api.RangeRequest(key=self._keys.base)).header)
        for answer in self._client.watch(self._keys.root, self._copy.cursor.revision + 1):
            if self._view.problem:
                self._view.problem = ""
                self._logger.info("etcd is followed", log_index=self._copy.last)
            self._take(self._arrivals(answer.events))
            if not answer.fragment:  # else there is more of the same revisions
                self._view.followed = self._base
            self._compare_reports()

    def _arrivals(self, events: Sequence[api.Event]) -> Iterator[Arrival]:
        """The entries among some events; the other events take effect at once."""
        for event in events:
            row = event.kv
            if row.key.startswith(self._keys.entries):
                fresh = row.create_revision == row.mod_revision > self._copy.cursor.revision
                if event.type == _Put and fresh:  # else rewritten, trimmed, or seen already
                    yield Arrival(row.key, row.create_revision, decode_batch(row.value))
            elif row.mod_revision <= self._known:
                continue
            elif row.key == self._keys.base:
                self._on_base(event)
            elif row.key == self._keys.leader:
                self._on_leader(event)
            elif row.key.startswith(self._keys.replicas) and event.type == _Put:
                self._on_report(row)

    def _take(self, arrivals: Iterator[Arrival]) -> None:
        """Store arrivals in bounded batches."""
        waiting: list[Arrival] = []
        entries = size = 0
        for arrival in arrivals:
            if waiting and (entries >= RUN_ENTRIES_MAX or size + _size(arrival) > RUN_BYTES_MAX):
                self._extend(waiting)
                waiting, entries, size = [], 0, 0
            waiting.append(arrival)
            entries += len(arrival.payloads)
            size += _size(arrival)
        if waiting:
            self._extend(waiting)

    def _extend(self, arrivals: Sequence[Arrival]) -> None:
        self._seen([arrival.key for arrival in arrivals])
        self._stored(self._copy.extend(arrivals))
        self._view.arrived += sum(map(_size, arrivals))

    def _on_base(self, event: api.Event) -> None:
        if event.type == _Delete:
            raise StorageError("the base row of the log was deleted in etcd")
        self._take_base(event.kv)

    def _take_base(self, row: api.KeyValue) -> None:
        base = Base.decode(row.value)
        if self._view.member not in base.replicas:
            raise StorageError("an operator has removed this replica from the log in etcd")
        self._base = base, row.mod_revision
        self._view.learn_base(*self._base)
        self._copy.forget_keys(min(base.index, self._copy.cursor.index))
        reports = self._view.reports
        self._view.reports = {name: reports[name] for name in base.replicas if name in reports}

    def _on_leader(self, event: api.Event) -> None:
        if event.type == _Put:
            self._view.leader_name = event.kv.value.decode(errors="replace")
            return
        self._view.leader_name = ""
        self._view.leader_until = 0.0
        self._leaderless()

    def _on_report(self, row: api.KeyValue) -> None:
        name, report = self._keys.member_of(row.key), Report.decode(row.value)
        self._view.reports = {**self._view.reports, name: (report, self._view.clock())}
        self._unchecked[name] = report

    def _compare_reports(self) -> None:
        """Check that the others hold what is here, as far as both have come."""
        for name, report in sorted(self._unchecked.items()):
            if report.index <= self._copy.cursor.index:
                del self._unchecked[name]
                if report.link != self._copy.link_at(report.index):
                    raise StorageError(f"replica {name} holds another order of the entries to {report.index}")

    # Where etcd's history does not reach back

    def _take_what_is_there_patiently(self) -> None:
        try:
            self._take_what_is_there()
        except Compacted:
            self._logger.info("etcd compacts faster than this replica reads; trying again")
        except EtcdError as error:
            self._trouble(str(error))

    def _take_what_is_there(self) -> None:
        """Store all entries created after the cursor, as etcd holds them now. Raises EtcdError, Compacted."""
        while self._take_some_that_are_there():
            pass
        self._compare_reports()

    def _take_some_that_are_there(self) -> bool:
        """Store the next of them; tell whether there are more."""
        since = self._copy.cursor
        listing = every(self._keys.entries)
        listing.keys_only, listing.limit = True, KEYS_AT_ONCE
        listing.min_create_revision = since.revision + 1
        listing.sort_order, listing.sort_target = api.RangeRequest.ASCEND, api.RangeRequest.CREATE
        asked = [*self._asked(), api.RequestOp(request_range=listing)]
        answer = self._client.txn(api.TxnRequest(success=asked), LISTING_S)
        now = answer.header.revision
        self._learn(now, answer.responses)
        base = self._view.base
        if base is not None and base.index > since.index:
            raise StorageError(_MISSING.format(base.index + 1, since.index))
        listed = answer.responses[3].response_range
        self._take(self._fetched([row.key for row in listed.kvs], now))
        if not listed.more:
            self._copy.skip(now)
        return listed.more

    def _fetched(self, keys: Sequence[bytes], revision: int) -> Iterator[Arrival]:
        for key in keys:
            (row,) = self._client.range(api.RangeRequest(key=key, revision=revision)).kvs
            yield Arrival(key, row.create_revision, decode_batch(row.value))

    def _trouble(self, what: str) -> None:
        if not self._view.problem:
            self._logger.warning("etcd cannot be followed", why=what)
        self._view.problem = what


def _size(arrival: Arrival) -> int:
    return sum(map(len, arrival.payloads))
