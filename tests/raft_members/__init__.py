"""A Raft cluster in one process: shipped drivers, memory disks, first-in-first-out links, a clock of our own.

Nothing happens but what a test asks for: `step` gives every member one turn with what its links hold, `run`
lets time pass as well. A member that is killed loses what its journal has not synced.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence

from kv.interface import StorageError, Store
from kv.memory import MemoryDisk, MemoryStore
from replication.raft.driver import Driver
from replication.raft.events import (
    Connected,
    Disconnected,
    Event,
    Outcome,
    Proposed,
    Received,
    Role,
    Timing,
    Turn,
)
from replication.raft.journal import CACHE_BYTES, Journal
from replication.raft.messages import Message, check_message
from replication.testing import public_half

TIMING = Timing()
STEP_S = 0.005  # how long a message takes, and at least a turn
Filter = Callable[[str, str, Message], bool]


class Node:
    """One running member."""

    def __init__(self, name: str, driver: Driver, journal: Journal, store: Store) -> None:
        self.name = name
        self.store = store
        self.driver = driver
        self.journal = journal
        self.inbox: list[Event] = []
        self.last: Turn | None = None

    def log(self) -> list[bytes]:
        """Return the committed payloads."""
        entries = self.journal.read(1, 2**40, 2**40)
        assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
        return [entry.payload for entry in entries]


class Cluster:
    """Members "a", "b", …; all run and are connected from the start."""

    def __init__(
        self,
        count: int,
        rng: random.Random,
        *,
        timing: Timing = TIMING,
        wrap: Callable[[str, Store], Store] = lambda name, store: store,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.names = tuple("abcde"[:count])
        self.now = 100.0
        self.rng = rng
        self.timing = timing
        self.disks = {name: MemoryDisk() for name in self.names}
        self.nodes: dict[str, Node] = {}
        self.links: dict[tuple[str, str], deque[Message]] = {}
        self.cut: set[tuple[str, str]] = set()
        self.keep: Filter = lambda sender, receiver, message: True  # False: the message is lost
        self.settled: dict[int, Outcome] = {}
        self.payloads: dict[int, bytes] = {}
        self.leaders: dict[int, str] = {}  # term -> who led in it
        self.wrap = wrap
        self.cache_bytes = cache_bytes
        for name in self.names:
            self.start(name)

    def start(self, name: str) -> Node:
        """Start a member on its disk and connect it with those that run."""
        store = self.wrap(name, MemoryStore(self.disks[name]))
        journal = Journal(store, public_half, cache_bytes=self.cache_bytes)
        chance = random.Random(self.rng.random())
        driver = Driver(
            member=name,
            members=self.names,
            journal=journal,
            clock=lambda: self.now,
            chance=chance,
            timing=self.timing,
        )
        node = self.nodes[name] = Node(name, driver, journal, store)
        for other in self.nodes.values():
            if other is not node:
                self._link(name, other.name)
                self._link(other.name, name)
        return node

    def kill(self, name: str) -> None:
        """End a member at once; what it had not synced, and what its links hold, is lost."""
        node = self.nodes.pop(name)
        node.store.close()
        for other in self.nodes.values():
            other.inbox.append(Disconnected(name))
        for link in [link for link in self.links if name in link]:
            del self.links[link]

    def stop(self, name: str) -> None:
        """End a member in order: between two turns."""
        self.nodes[name].journal.close()
        self.kill(name)

    def propose(self, name: str, *payloads: bytes) -> list[int]:
        """Propose at a member; return the tokens."""
        tokens = list(range(len(self.payloads), len(self.payloads) + len(payloads)))
        for token, payload in zip(tokens, payloads, strict=True):
            self.payloads[token] = payload
            self.nodes[name].inbox.append(Proposed(token, payload))
        return tokens

    def gather(self, name: str) -> list[Event]:
        """Bring what the links hold for a member into its inbox, and return that."""
        node = self.nodes[name]
        for (sender, receiver), queue in self.links.items():
            if receiver == name and (sender, receiver) not in self.cut:
                node.inbox += [Received(sender, message) for message in queue]
                queue.clear()
        return node.inbox

    def turn(self, name: str) -> Turn:
        """Give one member a turn with what its links and its inbox hold."""
        node = self.nodes[name]
        inbox, node.inbox = self.gather(name), []
        turn = node.last = node.driver.turn(inbox)
        self.settled.update(turn.settled)
        if turn.role is Role.LEADER:
            assert self.leaders.setdefault(turn.term, name) == name, "two leaders in one term"
        for receiver, message in turn.outgoing:
            check_message(message)
            link = self.links.get((name, receiver))
            if link is not None and self.keep(name, receiver, message):
                link.append(message)
        return turn

    def step(self) -> None:
        """Give every member one turn; a little time passes."""
        for name in list(self.nodes):
            self.turn(name)
        self.now += STEP_S

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, at most so long; return whether it came true."""
        end = self.now + seconds
        while self.now < end:
            if until():
                return True
            busy = any(node.inbox for node in self.nodes.values()) or any(
                queue for link, queue in self.links.items() if link not in self.cut
            )
            if not busy:
                wait_s = min(node.driver.wait_s() for node in self.nodes.values())
                self.now = min(end, self.now + wait_s)
            self.step()
        return until()

    def leader(self, among: Sequence[str] | None = None) -> str | None:
        """Return the leader of the newest term, if it has one that runs."""
        led = {
            node.last.term: name
            for name, node in self.nodes.items()
            if node.last is not None and node.last.role is Role.LEADER and (among is None or name in among)
        }
        return led[max(led)] if led else None

    def elect(self, seconds: float = 10.0, among: Sequence[str] | None = None) -> str:
        """Let time pass until there is a leader whose term all that run (or `among`) follow; return it."""
        watched = among if among is not None else self.names

        def led() -> bool:
            leader = self.leader(watched)
            return leader is not None and all(
                node.last is not None and node.last.leader == leader
                for name, node in self.nodes.items()
                if name in watched
            )

        assert self.run(seconds, led), "no leader"
        leader = self.leader(watched)
        assert leader is not None
        return leader

    def isolate(self, *names: str) -> None:
        """Cut the named members off from all others, silently."""
        for sender in self.names:
            for receiver in self.names:
                if (sender in names) != (receiver in names):
                    self.cut.add((sender, receiver))

    def heal(self) -> None:
        """Undo every cut; what the links hold arrives."""
        self.cut.clear()

    def agree(self, seconds: float = 20.0) -> list[bytes]:
        """Let time pass until all that run have committed the same log to its end; return it."""

        def level() -> bool:
            ends = {node.journal.last for node in self.nodes.values()}
            return len(ends) == 1 and all(node.journal.commit in ends for node in self.nodes.values())

        assert self.run(seconds, level), "the members do not agree in time"
        logs = [node.log() for node in self.nodes.values()]
        assert all(log == logs[0] for log in logs)
        return logs[0]

    def _link(self, sender: str, receiver: str) -> None:
        self.links[sender, receiver] = deque()
        self.nodes[sender].inbox.append(Connected(receiver))


def outcomes(cluster: Cluster, tokens: Sequence[int]) -> list[Outcome | None]:
    """Return what became of some proposals, None for those that are not settled."""
    return [cluster.settled.get(token) for token in tokens]


__all__ = ["Cluster", "Node", "StorageError", "outcomes"]
