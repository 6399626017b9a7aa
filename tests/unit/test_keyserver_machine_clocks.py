"""Clocks that are a day off, stand still or jump: a minority of them neither stops epochs nor moves their
time.

A cluster in virtual time: every replica reads its own clock, derives what it owes from the rows, and its
proposals are committed at once. One replica leads throughout, also where its clock is the wrong one.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from random import Random

import pytest
from workload.cast import Key, User
from workload.replica import START_MS, Replica

from keyserver.machine import obligations
from keyserver.machine.commands import Command, Delimiter, SignHead, Tick
from keyserver.machine.obligations import Facts, Obligation, OweDelimiter, OweSignature, wanted
from keyserver.proposer import Attempts
from verifier import limits

TURN_MS = 100
MAX_INTERVAL_MS = 5_000
DAY_MS = limits.DAY_MS

# What a clock shows when so many milliseconds have passed.
Clock = Callable[[int], int]
CLOCKS: Mapping[str, Clock] = {
    "a day ahead": lambda passed: START_MS + passed + DAY_MS,
    "a day behind": lambda passed: START_MS + passed - DAY_MS,
    "frozen": lambda _: START_MS + 3_000,
    "20 s ahead": lambda passed: START_MS + passed + 20_000,
    "9 s behind": lambda passed: START_MS + passed - 9_000,
    "jumping forth and back": lambda passed: START_MS + passed + (passed // 7_000 % 2) * 3_600_000,
    "jumping ahead for good": lambda passed: START_MS + passed + (passed > 20_000) * DAY_MS,
    "twice as fast": lambda passed: START_MS + 2 * passed,
}


def right(passed: int) -> int:
    return START_MS + passed


class Cluster:
    """Replicas over one log. Each proposes what it owes, tried again as `Attempts` says."""

    def __init__(self, rng: Random, clocks: list[Clock], leader: int) -> None:
        self.log = Replica(len(clocks))
        self.clocks = dict(zip(self.log.replicas, clocks, strict=True))
        self.leader = self.log.replicas[leader]
        self.attempts = {key: Attempts(200, rng.random) for key in self.clocks}
        self.due: dict[Key, tuple[int, int]] = {}
        self.passed = 0
        self.issued: list[tuple[int, int]] = []  # (when a delimiter was accepted, the time it says)

    def run(self, seconds: int, *, update_every_ms: int = 0) -> None:
        for _ in range(seconds * 1000 // TURN_MS):
            self.passed += TURN_MS
            if update_every_ms and self.passed % update_every_ms == 0:
                user = User.named(f"user {self.passed}")
                self.log.clock_ms = right(self.passed) - DAY_MS  # says nothing about the time
                self.log.register(user)
            for key in self.clocks:
                self.turn(key)

    def turn(self, key: Key) -> None:
        log, now_ms = self.log, self.clocks[key](self.passed)
        facts = Facts(now_ms, key.id, key is self.leader, MAX_INTERVAL_MS, (), self.due_for_ms(key, now_ms))
        owed = {
            (type(duty).__name__, getattr(duty, "epoch", 0)): duty
            for duty in wanted(log.store, log.machine, log.state, facts)
        }
        for duty in self.attempts[key].due(owed, self.passed):
            epoch = log.state.epoch
            log.run(self.command(key, owed[duty], now_ms), by=key, time_ms=now_ms)
            if log.state.epoch > epoch:
                self.issued.append((right(self.passed), log.state.issue_time_ms))

    def due_for_ms(self, key: Key, now_ms: int) -> int:
        state, facts = self.log.state, Facts(now_ms, key.id, False, MAX_INTERVAL_MS)
        if not obligations.is_due(state, facts):
            self.due.pop(key, None)
            return 0
        if self.due.get(key, (state.epoch, 0))[0] != state.epoch:
            del self.due[key]
        return self.passed - self.due.setdefault(key, (state.epoch, self.passed))[1]

    def command(self, key: Key, duty: Obligation, now_ms: int) -> Command:
        if isinstance(duty, OweSignature):
            made: SignHead = self.log.signature(key, duty.epoch)
            return made
        return Delimiter(duty.epoch, now_ms) if isinstance(duty, OweDelimiter) else Tick()

    def largest_pause_ms(self) -> int:
        """Between two epochs, up to now."""
        times = [START_MS, *(at for at, _ in self.issued), right(self.passed)]
        return max(after - before for before, after in pairwise(times))


@pytest.mark.parametrize("wrong_one_leads", [True, False])
@pytest.mark.parametrize("replicas", [3, 5])
@pytest.mark.parametrize("name", CLOCKS)
def test_a_minority_of_wrong_clocks_neither_stops_nor_post_dates_epochs(
    rng: Random, name: str, replicas: int, wrong_one_leads: bool
) -> None:
    few = replicas // 2
    clocks = [CLOCKS[name]] * few + [right] * (replicas - few)
    cluster = Cluster(rng, clocks, leader=0 if wrong_one_leads else replicas - 1)
    cluster.run(60)
    assert cluster.largest_pause_ms() <= MAX_INTERVAL_MS + limits.DELIMITER_DRIFT_MS
    assert all(abs(said - at) <= limits.DELIMITER_DRIFT_MS + TURN_MS for at, said in cluster.issued)
    assert len(cluster.log.log) <= len(cluster.issued) * 6 * replicas


@pytest.mark.parametrize("name", CLOCKS)
def test_updates_are_published_soon_whoever_leads_with_whatever_clock(rng: Random, name: str) -> None:
    for leader in (0, 2):
        cluster = Cluster(rng, [CLOCKS[name], right, right], leader)
        cluster.run(40, update_every_ms=1_000)
        assert len(cluster.issued) >= 8
        assert cluster.log.state.signed_epoch >= cluster.log.state.epoch - 1


def test_right_clocks_give_epochs_on_time_by_the_leader_alone(rng: Random) -> None:
    cluster = Cluster(rng, [right] * 3, leader=1)
    cluster.run(60)
    assert len(cluster.issued) >= 60_000 // (MAX_INTERVAL_MS + 2 * TURN_MS)
    assert all(said == at for at, said in cluster.issued)


def test_a_leader_that_is_gone_is_waited_for_no_longer_than_the_grace(rng: Random) -> None:
    cluster = Cluster(rng, [right] * 3, leader=0)
    cluster.run(10)
    del cluster.clocks[cluster.leader]
    cluster.run(30)
    grace_ms = obligations.takeover_ms(cluster.log.state, cluster.log.replicas[1].id)
    assert cluster.largest_pause_ms() <= MAX_INTERVAL_MS + grace_ms + 4 * TURN_MS
