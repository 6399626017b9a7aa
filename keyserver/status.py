"""How a replica is: one record for people and scripts, and the one question whether it should be asked at
all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from keyserver import quarantine
from keyserver.machine import views
from keyserver.machine.rows import known_head_row
from keyserver.proposer import Clock
from keyserver.replica import Replica
from keyserver.signer import Signer
from keyserver.tls_files import DAY_MS
from replication.interface import ReplicatedLog
from verifier.realm import fingerprint
from verifier.types import QuorumExpr, Verifier

SCHEMA = "e2eks.status/1"


class Status:
    """Read on the trio thread. `caught_up_at` is the log index that was committed when this process
    started.
    """

    def __init__(
        self,
        name: str,
        replica: Replica,
        signer: Signer,
        log: ReplicatedLog,
        clock: Clock,
        seconds: Callable[[], float] = time.monotonic,
        held: Callable[[], str] = str,
        *,
        alone: Callable[[], str] = str,
        peers: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        """`held` says why the replica takes nothing new, and `alone` that it has no majority, or "". `peers`:
        the records of the other members.
        """
        self._name = name
        self._replica = replica
        self._signer = signer
        self._log = log
        self._clock = clock
        self._seconds = seconds
        self._held = held
        self._alone = alone
        self._peers = peers
        self._started = seconds()
        self._caught_up_at = log.status().committed_index
        self._fingerprint = fingerprint(replica.machine.realm)
        self.listening: Mapping[str, int] = {}  # listener -> port, once bound
        self.certificates_ms: Mapping[str, int] = {}  # holder -> when its TLS certificate ends
        self.disk: Callable[[], dict[str, int]] = dict  # bytes: what is left, and what is kept free
        self.stopping = False
        self.diagnostic = ""  # why this replica takes part in nothing

    @property
    def quarantined(self) -> bool:
        """Whether this replica must not sign."""
        return bool(self._signer.quarantined)

    def not_ready(self) -> str:
        """Why callers should go elsewhere, or "" if they need not."""
        if self.stopping:
            return "the replica is stopping"
        if self.diagnostic:
            return self.diagnostic
        if not self._log.status().running:
            return "the log is not running"
        if not self.listening:
            return "the listeners are not open yet"
        if self._replica.position.index < self._caught_up_at:
            return "the log is still being applied"
        if self._signer.quarantined:
            return f"in quarantine, this replica only reads: {self._signer.quarantined}"
        if self._replica.state.signed_epoch == 0:
            return "no epoch is signed yet"
        outside = quarantine.outside(self._replica.state, self._signer.key_id)
        if outside:
            return outside
        return self._held()

    def gauges(self) -> Iterator[tuple[str, float, *tuple[str, ...]]]:
        """What is measured only when somebody asks: attribute of Metrics, value, labels."""
        log = self._log.status()
        yield "ready", not self.not_ready()
        yield "quarantined", self.quarantined
        yield "alone", bool(self._alone())
        yield "leads", log.leader
        yield "term", log.term
        yield "committed", log.committed_index
        yield "log_warnings", len(log.warnings)
        for member in log.members:
            yield "connected", member.connected, member.name

    def record(self) -> dict[str, Any]:
        """The status document, schema e2eks.status/1."""
        replica, reason = self._replica, self.not_ready()
        state = replica.state
        return {
            "schema": SCHEMA,
            "realm": replica.machine.realm.name,
            "fingerprint": self._fingerprint,
            "replica": self._name,
            "key_id": self._signer.key_id.hex(),
            "ready": not reason,
            "reason": reason,
            "alone": self._alone(),
            "quarantined": self._signer.quarantined,
            "diagnostic": bool(self.diagnostic),
            **self._log_record(),
            "applied_index": replica.position.index,
            "state_digest": replica.position.digest.hex(),
            "epoch": state.epoch,
            "signed_epoch": state.signed_epoch,
            "pending_updates": state.pending_updates,
            "verifier_log_size": state.verifier_log_size,
            "waiting_updates": len(replica.waiters),
            "peers": self._peers(),
            "disk": self.disk(),
            "uptime_s": round(self._seconds() - self._started, 1),
            "listening": dict(self.listening),
            "certificates": {
                holder: {"not_after_ms": end_ms, "days_left": (end_ms - self._clock()) // DAY_MS}
                for holder, end_ms in self.certificates_ms.items()
            },
            "head": self._head() if state.signed_epoch else None,
        }

    def _log_record(self) -> dict[str, Any]:
        """How the log stands; without a cluster, role, term and leader say nothing."""
        log = self._log.status()
        return {
            "engine": log.engine,
            "role": log.role,
            "term": log.term,
            "leader": log.leader_name,
            "committed_index": log.committed_index,
            "stored_index": log.stored_index,
            "lag": max(log.committed_index - self._replica.position.index, 0),
            "warnings": list(log.warnings),
            "members": [
                {
                    "name": member.name,
                    "connected": member.connected,
                    "heard_s": None if member.heard_s is None else round(member.heard_s, 3),
                    "match_index": member.match_index,
                    "problem": member.problem,
                }
                for member in log.members
            ],
        }

    def _head(self) -> dict[str, Any]:
        replica, realm = self._replica, self._replica.machine.realm
        published = replica.published
        epoch = published.state.signed_epoch
        head = views.head_at(replica.store, epoch)
        not_before_ms = max(self._clock() - realm.epoch_ttl_ms, 0)
        return {
            "epoch": epoch,
            "head_hash": head.hash.hex(),
            "root_hash": head.root_hash.hex(),
            "issue_time_ms": head.issue_time_ms,
            "log_index": known_head_row(replica.store, epoch).log_index,
            "replicas": sorted(key_id.hex() for key_id in views.replica_signers(replica.store, epoch)),
            "verifiers": [self._verifier(verifier, epoch, not_before_ms) for verifier in realm.verifiers],
        }

    def _verifier(self, verifier: Verifier, epoch: int, not_before_ms: int) -> dict[str, Any]:
        """How far one verifier is; `lag` in epochs."""
        quorum = QuorumExpr(1, (verifier.key_id,))
        ratified = self._replica.published.newest(quorum, not_before_ms) or 0
        return {
            "name": verifier.name,
            "key_id": verifier.key_id.hex(),
            "ratified_epoch": ratified,
            "lag": epoch - ratified,
        }
