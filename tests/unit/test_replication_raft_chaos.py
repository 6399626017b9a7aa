"""Members under random crashes, cuts, losses, doublings and disorder: what was said to be committed stays."""

import contextlib
import random
from collections.abc import Callable

import pytest
from raft_members import Cluster

from kv.interface import StorageError, Store
from kv.testing import Fault, FaultyStore
from replication.raft import engine, progress
from replication.raft.events import Connected, Disconnected, HandOver, Outcome
from replication.raft.journal import JournalConflict

ROUNDS = 60


class Chaos:
    """One seeded schedule over a cluster, and what must hold at its end."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng = rng
        self.fragile = False
        self.cluster = Cluster(count, rng, wrap=self.wrap, cache_bytes=rng.choice([0, 1000, 2**20]))
        self.loss = rng.choice([0.0, 0.0, 0.05, 0.3])
        self.disorder = rng.random() < 0.5
        self.breaks = rng.choice([0.0, 0.05, 0.3])
        self.cluster.keep = lambda *_: rng.random() >= self.loss
        self.longest: list[bytes] = []

    def wrap(self, name: str, store: Store) -> Store:
        if not self.fragile or self.rng.random() < 0.5:
            return store
        fault = self.rng.choice([Fault.WRITE_ERROR_AND_APPLIED, Fault.WRITE_ERROR_AND_NOT_APPLIED])
        return FaultyStore(store, fault, after=self.rng.randint(0, 12))

    def round(self) -> None:
        cluster, rng = self.cluster, self.rng
        action = rng.choice(
            [self.crash, self.start, self.cut, self.heal, self.hand_over, self.propose, self.propose]
        )
        action()
        if self.disorder:
            self.shuffle_links()
        for _ in range(rng.randint(1, 60)):
            cluster.now += rng.choice([0.0, 0.01, 0.05])
            if rng.random() < self.breaks:
                self.relink()
            for name in list(cluster.nodes):
                self.turn(name)
        self.check()

    def turn(self, name: str) -> None:
        try:
            self.cluster.turn(name)
        except JournalConflict:
            raise
        except StorageError:
            self.cluster.kill(name)

    def crash(self) -> None:
        if len(self.cluster.nodes) > 1:
            self.cluster.kill(self.rng.choice(sorted(self.cluster.nodes)))

    def start(self) -> None:
        self.fragile = True
        down = [name for name in self.cluster.names if name not in self.cluster.nodes]
        if down:
            with contextlib.suppress(StorageError):
                self.cluster.start(self.rng.choice(down))
        self.fragile = False

    def cut(self) -> None:
        pairs = [(a, b) for a in self.cluster.names for b in self.cluster.names if a != b]
        self.cluster.cut |= set(self.rng.sample(pairs, self.rng.randint(0, len(pairs))))

    def relink(self) -> None:
        """A link breaks under one that sends on it; what comes the other way still arrives."""
        for one in self.cluster.nodes.values():
            other = self.rng.choice(self.cluster.names)
            if other in self.cluster.nodes and other != one.name:
                one.inbox += [Disconnected(other), Connected(other)]

    def hand_over(self) -> None:
        if (leader := self.cluster.leader()) is not None:
            self.cluster.nodes[leader].inbox.append(HandOver())

    def heal(self) -> None:
        self.cluster.heal()

    def propose(self) -> None:
        if not self.cluster.nodes:
            return
        name = self.rng.choice(sorted(self.cluster.nodes))
        first = len(self.cluster.payloads)
        count = self.rng.randint(1, 20)
        self.cluster.propose(name, *[b"%d|" % number for number in range(first, first + count)])

    def shuffle_links(self) -> None:
        for queue in self.cluster.links.values():
            messages = [message for message in queue for _ in range(self.rng.choice([1, 1, 1, 2]))]
            self.rng.shuffle(messages)
            queue.clear()
            queue.extend(messages)

    def check(self) -> None:
        """What one member has committed is the beginning of what another has, and never changes."""
        for node in self.cluster.nodes.values():
            log = node.log()
            shorter, longer = sorted((log, self.longest), key=len)
            assert longer[: len(shorter)] == shorter
            self.longest = longer

    def finish(self) -> None:
        self.cluster.keep = lambda *_: True
        self.disorder = False
        self.cluster.heal()
        for name in self.cluster.names:
            if name in self.cluster.nodes:
                self.cluster.kill(name)
            self.cluster.start(name)
        self.cluster.elect()
        log = self.cluster.agree()
        self.check()
        assert len(set(log)) == len(log), "an entry is there twice"
        settled = self.cluster.settled
        for token, payload in self.cluster.payloads.items():
            if settled.get(token) is Outcome.COMMITTED:
                assert payload in log, "acknowledged and lost"
            if settled.get(token) is Outcome.REFUSED:
                assert payload not in log, "refused and yet committed"
        for node in self.cluster.nodes.values():
            node.journal.verify_chain(1, 2**40)


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_nothing_that_was_committed_is_lost_doubled_or_reordered(
    members: int, rng: random.Random, count: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BATCH_ENTRIES_MAX", rng.choice([2, 10, engine.BATCH_ENTRIES_MAX]))
    monkeypatch.setattr(progress, "WINDOW_BYTES", rng.choice([100, 1000, progress.WINDOW_BYTES]))
    for _ in range(count(8)):
        chaos = Chaos(random.Random(rng.random()), members)
        for _ in range(ROUNDS):
            chaos.round()
        chaos.finish()
