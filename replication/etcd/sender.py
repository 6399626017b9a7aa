"""The thread that puts proposals into etcd: all that wait, as much as fits one key, one key at a time.

A key is made at most once: the transaction demands that it is not there, and that the base row, which every
trimming changes, is what this replica knows it to be. So a proposal may be sent again after any failure. When
the base row has changed and the key is not there, it was never made and never will be under the former base
row; or it was trimmed, and then the follower has seen it: nothing is trimmed before this replica stored it.
So before each attempt the base row is looked at, and then whether the key was seen: in this order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from e2eks.etcd import api_pb2 as api

from replication.etcd.client import EtcdClient, EtcdError, NoSpace, Refused
from replication.etcd.keyspace import Base, Keyspace, encode_batch, get, only, put, unchanged
from replication.etcd.view import Timing, View
from replication.types import (
    PAYLOAD_BYTES_MAX,
    RUN_ENTRIES_MAX,
    WAITING_BYTES_MAX,
    LogNotRunning,
    LogOverloaded,
    NoLeader,
    ProposalLost,
    ReplicationError,
)

# etcd takes requests of 1.5 MiB, unless told otherwise. The largest payload and what frames it must fit.
BATCH_BYTES_MAX = PAYLOAD_BYTES_MAX + 256 * 1024
FRAME_BYTES = 8  # of one payload in a batch, at most

Settled = Callable[["Sequence[Proposal]", ReplicationError | None], None]


class Proposal:
    """A payload on its way, and whoever waits for it."""

    __slots__ = ("payload", "settle")

    def __init__(self, payload: bytes, settle: Callable[[ReplicationError | None], None]) -> None:
        """`settle` is called once, in the sender's thread: None when the payload is committed."""
        self.payload = payload
        self.settle = settle


class Sender:
    """Call run() in a thread of its own; submit() and withdraw() in any."""

    def __init__(
        self, client: EtcdClient, keyspace: Keyspace, view: View, session: str, timing: Timing
    ) -> None:
        """`session` has never been used before, by anybody."""
        self._client = client
        self._keys = keyspace
        self._view = view
        self._session = session
        self._timing = timing
        self._changed = threading.Condition()
        self._queue: OrderedDict[Proposal, None] = OrderedDict()
        self._waiting_bytes = 0
        self._number = 0
        self._seen = b""  # the newest key of ours that the follower has got
        self._stopping = threading.Event()

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal. Raises LogOverloaded, LogNotRunning."""
        with self._changed:
            if self._stopping.is_set():
                raise LogNotRunning("the log is stopping")
            if self._view.full:
                raise LogOverloaded(self._view.full)
            if self._waiting_bytes + len(proposal.payload) > WAITING_BYTES_MAX:
                raise LogOverloaded("too many proposals wait for etcd")
            self._queue[proposal] = None
            self._waiting_bytes += len(proposal.payload)
            self._changed.notify()

    def withdraw(self, proposal: Proposal) -> None:
        """Forget a proposal, if it was not sent yet."""
        with self._changed:
            self._remove(proposal)

    def seen(self, keys: Sequence[bytes]) -> None:
        """The follower has got what is under these keys."""
        own = self._keys.entries + self._session.encode() + b"."
        self._seen = next((key for key in reversed(keys) if key.startswith(own)), self._seen)

    def stop(self) -> None:
        """Refuse what waits. What is being sent is settled when the client is closed, or before."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()

    def run(self) -> None:
        """Send until told to stop."""
        batch: list[Proposal] = []
        try:
            while batch := self._take():
                outcome = self._send([proposal.payload for proposal in batch])
                for proposal in batch:
                    proposal.settle(outcome)
        finally:
            self.stop()
            with self._changed:
                for proposal in (*batch, *self._queue):
                    proposal.settle(LogNotRunning("the log is stopping"))

    def _take(self) -> list[Proposal]:
        """Wait for proposals; return as many as fit one key, none when it is time to stop."""
        batch: list[Proposal] = []
        size = 0
        with self._changed:
            while not self._queue and not self._stopping.is_set():
                self._changed.wait()
            if self._stopping.is_set():
                return []
            for proposal in self._queue:
                size += len(proposal.payload) + FRAME_BYTES
                if len(batch) == RUN_ENTRIES_MAX or (batch and size > BATCH_BYTES_MAX):
                    break
                batch.append(proposal)
            for proposal in batch:
                self._remove(proposal)
        return batch

    def _remove(self, proposal: Proposal) -> None:
        if proposal in self._queue:
            del self._queue[proposal]
            self._waiting_bytes -= len(proposal.payload)

    def _send(self, payloads: Sequence[bytes]) -> ReplicationError | None:
        """Put some payloads under a new key; None when they are there for certain."""
        self._number += 1
        key = self._keys.entry(self._session, self._number)
        value = encode_batch(payloads)
        deadline = self._view.clock() + self._timing.send_s
        sent = False  # an attempt may have been carried out
        refusal: ReplicationError | None = None
        while self._view.clock() < deadline and not self._stopping.is_set():
            if not self._view.attached.is_set():  # nothing is known of etcd yet
                self._stopping.wait(self._timing.retry_s)
                continue
            try:
                if self._attempt(key, value):
                    return None
                sent = False  # the base row has changed: what came before it came to nothing
            except NoSpace as error:
                self._view.full = f"etcd is full: {error}"
                refusal = LogOverloaded(self._view.full)
                break
            except Refused as error:
                refusal = NoLeader(f"etcd refuses: {error}")
                break
            except EtcdError as error:
                sent, self._view.problem = True, str(error)
                self._stopping.wait(self._timing.retry_s)
        if self._seen == key:
            return None
        if self._stopping.is_set():
            return LogNotRunning("the log is stopping")
        if sent:
            return ProposalLost(f"no answer from etcd: {self._view.problem}")
        return refusal or NoLeader(f"etcd cannot be reached: {self._view.problem}")

    def _attempt(self, key: bytes, value: bytes) -> bool:
        """Make the key, or find it made; False when the base row has changed. Raises EtcdError, NoSpace."""
        fence = self._view.base_revision
        if self._seen == key:  # AFTER reading the fence: what was trimmed before that fence stood was seen
            return True
        answer = self._client.txn(
            api.TxnRequest(
                compare=[unchanged(self._keys.base, fence), unchanged(key, 0)],
                success=[put(key, value)],
                failure=[get(key), get(self._keys.base)],
            )
        )
        if answer.succeeded or only(answer.responses[0]) is not None:
            return True
        base = only(answer.responses[1])
        if base is not None:  # else the follower will halt this replica
            self._view.learn_base(Base.decode(base.value), base.mod_revision)
        return False
