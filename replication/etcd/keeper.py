"""The thread that keeps house: the lease of the leader, reports, trimming, and an eye on etcd's space.

Only what costs nothing when done twice is done by every replica; the rest is done by the one that leads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import structlog
from e2eks.etcd import api_pb2 as api

from kv.interface import StorageError
from replication.etcd.client import KEYS_AT_ONCE, LISTING_S, Compacted, EtcdClient, EtcdError
from replication.etcd.copy import LogCopy
from replication.etcd.keyspace import Base, Keyspace, Report, delete, every, put, unchanged
from replication.etcd.space import Advice, advise
from replication.etcd.view import Surveyed, Timing, View

REST_S = 2.0  # others look at the lead several times meanwhile
LAGGING_S = 300.0  # a replica that restarts is back by then
SURVEY_AT = 0.05  # of the quota: when that much has arrived, sizes are looked at sooner
DELETES_AT_ONCE = 100  # etcd takes 128 operations in a transaction, unless told otherwise


class Keeper:
    """Call run() in a thread of its own."""

    def __init__(
        self,
        client: EtcdClient,
        keyspace: Keyspace,
        copy: LogCopy,
        view: View,
        *,
        timing: Timing,
        quota_bytes: int,
    ) -> None:
        """`quota_bytes`: of etcd's members, for those that do not tell it (before 3.6)."""
        self._client = client
        self._keys = keyspace
        self._copy = copy
        self._view = view
        self._timing = timing
        self._quota_bytes = quota_bytes
        self._due = threading.Event()
        self._stopping = False
        self._lease = 0
        self._held = False
        self._rests_until = 0.0  # until then the lead is left to others
        self._reported = Report()
        self._cleared_to = 0  # entries created up to this revision are surely no longer in etcd
        self._last = {"trim": view.clock()}  # when each duty was done; what is not named is due at once
        self._logger = structlog.get_logger("etcd")

    def wake(self) -> None:
        """Look at everything now."""
        self._due.set()

    def hand_over(self) -> None:
        """Give up the lead, if it is held, and leave it to others for some time."""
        if self._view.leads:
            self._rests_until = self._view.clock() + REST_S
            self.wake()

    def stop(self) -> None:
        """End run(), after giving up the lead."""
        self._stopping = True
        self._due.set()

    def run(self) -> None:
        """Keep house until told to stop. Raises StorageError."""
        while True:
            self._due.clear()  # BEFORE looking: whoever wakes us meanwhile is heard
            if self._stopping:
                break
            for duty in (self._lead, self._report, self._trim, self._clear, self._survey):
                try:
                    duty()
                except EtcdError as error:  # the next duty may fare better: without space some calls work
                    self._logger.debug("etcd does not answer", why=str(error))
            self._due.wait(self._timing.tick_s)
        with contextlib.suppress(EtcdError):
            self._leave()

    # Leading

    def _lead(self) -> None:
        """Keep the lease, and the lead if nobody else has it."""
        if not self._view.attached.is_set():
            return
        if self._view.clock() < self._rests_until:
            self._leave()
            return
        sent = self._view.clock()  # BEFORE the call: etcd counts from a later moment
        ttl_s = self._client.keep_lease(self._lease) if self._lease else 0
        if not ttl_s:
            self._held, self._view.leader_until = False, 0.0
            self._lease = self._client.grant_lease(self._timing.lease_s)
            ttl_s = self._timing.lease_s
        self._held = self._holds()
        self._view.leader_until = sent + ttl_s if self._held else 0.0

    def _leave(self) -> None:
        """Give up the lead with its lease, if it is held."""
        if self._held:
            self._held, self._view.leader_until = False, 0.0
            lease, self._lease = self._lease, 0
            self._client.revoke_lease(lease)

    def _holds(self) -> bool:
        """Take the lead if it is free; tell whether it is ours."""
        key = self._keys.leader
        holders = self._client.range(api.RangeRequest(key=key)).kvs  # a reading costs etcd's disk nothing
        if holders:
            return holders[0].lease == self._lease
        name = put(key, self._view.member.encode(), self._lease)
        taken = self._client.txn(api.TxnRequest(compare=[unchanged(key, 0)], success=[name])).succeeded
        if taken:
            self._logger.info("this replica leads")
        return taken

    # What all have stored

    def _report(self) -> None:
        """Tell the others how far this replica has stored the log, when it is news."""
        if not self._view.attached.is_set():
            return
        cursor, reported = self._copy.cursor, self._reported
        many = cursor.index >= reported.index + self._timing.trim_entries
        # An etcd without writes does not measure itself: while it is said to be full, a report is a probe.
        news = cursor.index > reported.index or bool(self._view.full)
        if news and (many or self._is_due("report", self._timing.report_s)):
            row = put(self._keys.report(self._view.member), cursor.encode())
            self._client.txn(api.TxnRequest(success=[row]))
            self._reported = cursor

    def _trim(self) -> None:
        """Raise the base row to what every replica has stored."""
        followed = self._view.followed if self._view.leads else None
        if followed is None:
            return
        base, fence = followed  # BEFORE the reports, which are thus no older
        reports = [self._view.reports.get(name, (Report(), 0.0))[0] for name in base.replicas]
        floor = min(reports, key=lambda report: (report.index, report.revision), default=None)
        if floor is None or not base.index < floor.index <= self._copy.cursor.index:
            return
        if floor.index < base.index + self._timing.trim_entries and not self._is_due(
            "trim", self._timing.trim_s
        ):
            return
        if floor.link != self._copy.link_at(floor.index):
            raise StorageError(f"another replica holds another order of the entries to {floor.index}")
        raised = Base(floor.index, floor.link, floor.revision, base.replicas)
        answer = self._client.txn(
            api.TxnRequest(
                compare=[unchanged(self._keys.base, fence)],
                success=[put(self._keys.base, raised.encode())],
            )
        )
        if answer.succeeded:
            self._view.learn_base(raised, answer.header.revision)

    def _clear(self) -> None:
        """Delete from etcd what the base row says has left it, be it what somebody else did not come to: an
        etcd that is full takes nothing that would be a reason to trim again.

        Then their history goes, and with it that of newer entries: who still needs it reads what is there.
        """
        base = self._view.base if self._view.leads else None
        if base is None or base.revision <= self._cleared_to:
            return
        listing, revision, deleted = every(self._keys.entries), base.revision, 0
        listing.keys_only, listing.max_create_revision, listing.limit = True, revision, KEYS_AT_ONCE
        has_more = True
        while has_more:
            answer = self._client.range(listing, LISTING_S)
            keys, has_more = [row.key for row in answer.kvs], answer.more
            for first in range(0, len(keys), DELETES_AT_ONCE):
                ops = [delete(key) for key in keys[first : first + DELETES_AT_ONCE]]
                revision = self._client.txn(api.TxnRequest(success=ops)).header.revision
            deleted += len(keys)
        self._forget_history(revision)
        self._cleared_to = base.revision
        self._logger.info("trimmed", log_index=base.index, keys=deleted)

    def _forget_history(self, revision: int) -> None:
        with contextlib.suppress(Compacted):
            self._client.compact_history(revision)

    # Space

    def _survey(self) -> None:
        """Look at all members, say what is wrong, and make room."""
        if self._view.arrived < SURVEY_AT * self._quota_bytes and not self._is_due(
            "survey", self._timing.survey_s
        ):
            return
        self._view.arrived = 0
        members = [self._surveyed(endpoint) for endpoint in self._client.endpoints]
        raised: list[api.AlarmMember] = []
        if any(member.alarmed for member in members):
            with contextlib.suppress(EtcdError):  # only a majority tells; the rest is said all the same
                raised = [alarm for alarm in self._client.alarms() if alarm.alarm == api.NOSPACE]
        advice = advise(members, no_space=bool(raised))
        self._view.full = advice.full
        warnings = (*advice.warnings, *self._lagging())
        for warning in sorted({*warnings} - {*self._view.warnings}):
            self._logger.warning("etcd needs attention", what=warning)
        self._view.warnings = warnings
        if self._view.leads or (raised and not self._view.leader_name):  # without space there are no leases
            self._make_room(advice, raised)

    def _surveyed(self, endpoint: str) -> Surveyed:
        with contextlib.suppress(EtcdError):  # members that are gone take longer together than a lease lasts
            self._lead()
        try:
            status = self._client.status(endpoint)
        except EtcdError as error:
            return Surveyed(endpoint, problem=str(error))
        return Surveyed(
            endpoint,
            version=status.version,
            size=status.dbSize,
            size_in_use=status.dbSizeInUse,
            quota=status.dbSizeQuota or self._quota_bytes,
            alarmed=bool(status.errors),
        )

    def _make_room(self, advice: Advice, alarms: Sequence[api.AlarmMember]) -> None:
        if alarms:
            self._forget_history(self._copy.cursor.revision)
        if advice.defragment:
            self._logger.warning("defragmenting a member of etcd", endpoint=advice.defragment)
            self._client.defragment(advice.defragment)
        if advice.disarm:
            for alarm in alarms:
                self._client.disarm(alarm)
            self._logger.warning("there is room again: etcd's alarm is taken back")

    def _lagging(self) -> list[str]:
        """Name the replicas for which entries have to stay in etcd for long."""
        base, now = self._view.base, self._view.clock()
        sentences = []
        for name in () if base is None else base.replicas:
            report, heard = self._view.reports.get(name, (Report(), 0.0))
            if report.index < self._reported.index and now - heard > LAGGING_S:
                sentences.append(
                    f"replica {name} has stored nothing since entry {report.index}: etcd fills up"
                )
        return sentences

    def _is_due(self, duty: str, every_s: float) -> bool:
        now = self._view.clock()
        if now - self._last.get(duty, -every_s) < every_s:
            return False
        self._last[duty] = now
        return True
