"""Every metric of a replica, in one table. No label ever carries a user id, an index or an address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
COUNTS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

# Attribute -> name, help, labels.
Table = dict[str, tuple[str, str, tuple[str, ...]]]

COUNTERS: Table = {
    "calls": ("e2eks_calls", "Calls ended, by outcome: OK, CANCELLED or reason.", ("method", "outcome")),
    "vrf": ("e2eks_vrf_lookups", "VRF results, by source.", ("source",)),
    "commands": ("e2eks_commands", "Commands applied, by verdict.", ("verdict",)),
    "entries_refused": ("e2eks_entries_refused", "Log entries refused whole.", ("verdict",)),
    "rate_limited": ("e2eks_rate_limited", "Calls refused and connections cut, by limit.", ("limit",)),
    "contradictions": ("e2eks_fork_detected", "A replica or verifier signed another head.", ()),
}
GAUGES: Table = {
    "applied": ("e2eks_applied_index", "Newest log entry applied and written.", ()),
    "epoch": ("e2eks_epoch_current", "Newest epoch composed.", ()),
    "signed_epoch": ("e2eks_epoch_signed", "Newest epoch with its majority.", ()),
    "issue_time": ("e2eks_epoch_issue_time_seconds", "Issue time of the newest epoch, Unix time.", ()),
    "ratified": ("e2eks_ratified_epoch", "Newest epoch a verifier ratified.", ("verifier",)),
    "pending": ("e2eks_pending_updates", "Updates accepted for the next epoch.", ()),
    "certificate_end": (
        "e2eks_tls_certificate_not_after_seconds",
        "When a TLS certificate ends, Unix time: the replica's own, and each verifier's that may push.",
        ("holder",),
    ),
    "ready": ("e2eks_ready", "1 if callers should be sent here.", ()),
    "quarantined": ("e2eks_quarantined", "1 while this replica must not sign.", ()),
    "alone": ("e2eks_alone", "1 while no majority of the cluster is known.", ()),
    "leads": ("e2eks_log_leader", "1 while this replica leads the log.", ()),
    "term": ("e2eks_log_term", "Number of the leadership; rises with every election.", ()),
    "committed": ("e2eks_log_committed_index", "Newest log entry known to be committed.", ()),
    "log_warnings": ("e2eks_log_warnings", "What about the log an operator should see to.", ()),
    "connected": ("e2eks_member_connected", "1 while this other member is reached.", ("member",)),
    "diagnostic": ("e2eks_diagnostic", "1 while this replica only reads, after repeated crashes.", ()),
    "blanking": ("e2eks_blanking_entries", "Log entries with erased parts still to be blanked.", ()),
    "free_bytes": ("e2eks_free_bytes", "Room left on the disk.", ()),
    "waiters": ("e2eks_waiting_updates", "Updates that wait for a decision.", ()),
}
HISTOGRAMS: dict[str, tuple[str, str, tuple[str, ...], tuple[float, ...]]] = {
    "call_seconds": ("e2eks_call_seconds", "Duration of calls.", ("method",), SECONDS),
    "batch_entries": ("e2eks_batch_entries", "Log entries in one batch.", (), COUNTS),
    "batch_seconds": ("e2eks_batch_seconds", "Step and write of one batch.", (), SECONDS),
}


class Metrics:
    """The metrics of one replica, in a registry of its own. For any thread."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._made: dict[str, Any] = {}
        self._made |= {key: Counter(*row, registry=registry) for key, row in COUNTERS.items()}
        self._made |= {key: Gauge(*row, registry=registry) for key, row in GAUGES.items()}
        for key, (name, text, labels, buckets) in HISTOGRAMS.items():
            self._made[key] = Histogram(name, text, labels, registry=registry, buckets=buckets)

    def count(self, attribute: str, *labels: str, by: int = 1) -> None:
        """Add to a counter."""
        made = self._made[attribute]
        (made.labels(*labels) if labels else made).inc(by)

    def set(self, attribute: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        made = self._made[attribute]
        (made.labels(*labels) if labels else made).set(value)

    def set_all(self, attribute: str, values: Mapping[str, float]) -> None:
        """Set a gauge of one label to these values by label; others that it had are gone."""
        self._made[attribute].clear()
        for label, value in values.items():
            self.set(attribute, value, label)

    def observe(self, attribute: str, value: float, *labels: str) -> None:
        """Add an observation to a histogram."""
        made = self._made[attribute]
        (made.labels(*labels) if labels else made).observe(value)

    def call_ended(self, method: str, outcome: str, seconds: float) -> None:
        """One call of a front."""
        self.count("calls", method, outcome)
        self.observe("call_seconds", seconds, method)

    def text(self) -> bytes:
        """All of them, in the form that Prometheus reads."""
        return generate_latest(self._registry)
