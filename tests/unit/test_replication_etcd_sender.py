"""Proposals reach etcd once, whatever the network does; who waits for one is told what is known."""

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from e2eks.etcd import api_pb2 as api
from etcd_members import EtcdMembers
from etcd_members.fixtures import running_members
from etcd_members.flaky import FlakyClient
from etcd_members.logs import QUICK, Place

from kv.leveldb import LevelDBStore
from replication.chain import FIRST_LINK
from replication.etcd.client import EtcdError, NoSpace, Pem, Refused
from replication.etcd.keyspace import Base, Keyspace, decode_batch
from replication.etcd.log import EtcdLog
from replication.etcd.sender import BATCH_BYTES_MAX, Proposal, Sender
from replication.etcd.view import Timing, View
from replication.testing import HANGS_AFTER_S, public_half, take_until
from replication.types import (
    PAYLOAD_BYTES_MAX,
    RUN_ENTRIES_MAX,
    LogNotRunning,
    LogOverloaded,
    NoLeader,
    ProposalLost,
    ReplicationError,
)

BASE = Base(0, FIRST_LINK, 0, ("r1",))
HASTY = replace(QUICK, send_s=3, retry_s=0.001)
KEYS = Keyspace("/unit/")
Answer = api.TxnResponse | EtcdError


class Script:
    """A client that answers from a list, and its last answer for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[api.TxnRequest] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def txn(self, request: api.TxnRequest) -> api.TxnResponse:
        self.requests.append(request)
        self.meanwhile()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, EtcdError):
            raise answer
        return answer


MADE = api.TxnResponse(succeeded=True)
GONE = EtcdError("no answer")


def refused(base_revision: int, *, found: bool = False) -> api.TxnResponse:
    """The fence has fallen; the key is there or not."""
    answer = api.TxnResponse(responses=[api.ResponseOp(), api.ResponseOp()])
    if found:
        answer.responses[0].response_range.kvs.add()
    answer.responses[1].response_range.kvs.add(value=BASE.encode(), mod_revision=base_revision)
    return answer


class Bench:
    """A sender in its thread, and what became of its proposals."""

    def __init__(self, client: Any, timing: Timing = HASTY, *, attached: bool = True) -> None:
        ticks = iter(range(10**9))
        self.view = View("r1", lambda: next(ticks) * 0.01)
        if attached:
            self.view.learn_base(BASE, 5)
        self.sender = Sender(client, KEYS, self.view, "r1.s", timing)
        self.outcomes: list[ReplicationError | None] = []
        self._settled = threading.Semaphore(0)
        self._thread = threading.Thread(target=self.sender.run)

    def submit(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.sender.submit(Proposal(payload, self._settle))

    def run(self, count: int = 1) -> Sequence[ReplicationError | None]:
        """Start sending; return what became of the first `count`."""
        self._thread.start()
        for _ in range(count):
            assert self._settled.acquire(timeout=HANGS_AFTER_S)
        self.sender.stop()
        self._thread.join()
        return self.outcomes

    def _settle(self, outcome: ReplicationError | None) -> None:
        self.outcomes.append(outcome)
        self._settled.release()


def sent_keys(client: Script) -> set[bytes]:
    return {request.success[0].request_put.key for request in client.requests}


def test_what_waits_is_sent_together_under_a_new_key() -> None:
    client = Script(MADE)
    bench = Bench(client)
    bench.submit(b"a", b"", b"c")
    assert bench.run(3) == [None, None, None]
    (request,) = client.requests
    assert decode_batch(request.success[0].request_put.value) == (b"a", b"", b"c")
    assert [(one.key, one.mod_revision) for one in request.compare] == [
        (KEYS.base, 5),
        (KEYS.entry("r1.s", 1), 0),
    ]


def test_no_key_is_larger_than_etcd_takes() -> None:
    client = Script(MADE)
    bench = Bench(client)
    payloads = [b"x" * PAYLOAD_BYTES_MAX, b"y" * 1000, *[b"z" * 100_000] * 20, *[b""] * (RUN_ENTRIES_MAX + 1)]
    bench.submit(*payloads)
    bench.run(len(payloads))
    assert max(request.ByteSize() for request in client.requests) < BATCH_BYTES_MAX + 1000 < 1.5 * 1024**2
    values = [decode_batch(request.success[0].request_put.value) for request in client.requests]
    assert [payload for value in values for payload in value] == payloads
    assert max(map(len, values)) <= RUN_ENTRIES_MAX
    assert len(sent_keys(client)) == len(client.requests)


@pytest.mark.parametrize(
    "answers",
    [
        (GONE, MADE),
        (GONE, GONE, refused(5, found=True)),
        (refused(6), MADE),
        (GONE, refused(6), refused(9), MADE),
    ],
)
def test_an_attempt_that_failed_is_repeated_under_the_same_key(answers: tuple[Answer, ...]) -> None:
    client = Script(*answers)
    bench = Bench(client)
    bench.submit(b"a")
    assert bench.run() == [None]
    assert len(client.requests) == len(answers)
    assert sent_keys(client) == {KEYS.entry("r1.s", 1)}


def test_a_key_that_was_made_and_trimmed_is_not_made_again() -> None:
    client = Script(GONE, MADE)
    bench = Bench(client)

    def make_and_trim() -> None:
        own, others = KEYS.entry("r1.s", 1), [b"/unit/entries/r2.s.9", b"/unit/entries/r1.t.3"]
        bench.sender.seen([others[0], own, others[1]])
        bench.sender.seen(others)
        bench.view.learn_base(BASE, 6)

    client.meanwhile = make_and_trim
    bench.submit(b"a")
    assert bench.run() == [None]
    assert len(client.requests) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GONE, ProposalLost),
        (refused(6), NoLeader),
        (NoSpace("quota"), LogOverloaded),
        (Refused("too large"), NoLeader),
    ],
)
def test_who_waits_is_told_what_is_known(answer: Answer, expected: type[ReplicationError]) -> None:
    client = Script(answer)
    bench = Bench(client)
    bench.submit(b"a")
    (outcome,) = bench.run()
    assert type(outcome) is expected
    if expected is LogOverloaded:
        another = Bench(client)
        another.view.full = bench.view.full
        with pytest.raises(LogOverloaded, match="quota"):
            another.submit(b"b")


@pytest.mark.parametrize("refusal", [NoSpace("quota"), Refused("another certificate")])
def test_a_refusal_says_nothing_of_the_attempts_before(refusal: EtcdError) -> None:
    bench = Bench(Script(GONE, refusal))
    bench.submit(b"a")
    (outcome,) = bench.run()
    assert type(outcome) is ProposalLost


def test_before_etcd_is_reached_nothing_is_sent() -> None:
    client = Script(MADE)
    bench = Bench(client, attached=False)
    bench.submit(b"a")
    (outcome,) = bench.run()
    assert type(outcome) is NoLeader
    assert not client.requests


def test_what_is_withdrawn_is_not_sent_and_stopping_settles_the_rest() -> None:
    bench = Bench(Script(MADE))
    bench.submit(b"a")
    (proposal,) = bench.sender._queue
    bench.submit(b"b")
    bench.sender.withdraw(proposal)
    bench.sender.stop()
    (outcome,) = bench.run()
    assert type(outcome) is LogNotRunning
    with pytest.raises(LogNotRunning):
        bench.submit(b"late")


members = running_members(1)


async def test_nothing_is_doubled_or_lost_however_the_network_fails(
    members: EtcdMembers, tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    """Trimming all the while: an attempt that comes back from the dead finds its key gone, and is refused."""
    timing = replace(QUICK, tick_s=0.005, trim_s=0.01, report_s=0.005, retry_s=0.03, send_s=60)
    place = Place(members, tmp_path)
    client = FlakyClient(members.endpoints(), Pem.read(members.tls), rng=rng)
    log = EtcdLog(
        LevelDBStore(tmp_path / "log"),
        public_half,
        client,
        place.keys,
        member="r1",
        replicas=["r1"],
        tls=members.tls,
        timing=timing,
    )
    await log.start(1)
    try:
        numbers, proposed = itertools.count(), 0

        def has_met_enough() -> bool:
            base = log._view.base
            return client.failed > 20 and client.late > 10 and base is not None and base.index > 0

        async def propose() -> None:
            nonlocal proposed
            while proposed < count(150) or not has_met_enough():
                await log.propose(b"%d" % next(numbers))
                proposed += 1

        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(propose)
            await log.propose(b"last")
        seen = [entry.payload for entry in await take_until(log, b"last")]
        assert sorted(seen) == sorted([*(b"%d" % number for number in range(proposed)), b"last"])
    finally:
        await log.stop()
