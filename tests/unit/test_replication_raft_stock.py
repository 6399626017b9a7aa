"""The schedule in which stock pysyncobj loses an acknowledged entry: why its handling of entries is replaced.

Stock objects of the pinned release, linked by queues that lose nothing and keep their order, as TCP does.
Elections and heartbeats are hurried; what is said, and in which order, is pysyncobj's own. Should a later
release pass, docs/adr/0007 is to be read again.
"""

from collections import deque
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

FRAME_BYTES = 250  # two entries to a message; as shipped it is 65536, and it takes more entries


class Links:
    """What is on the way between the members, and who is heard."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], deque[Any]] = {}
        self.members: dict[str, Stock] = {}

    def connect(self, *names: str) -> None:
        for sender in names:
            for receiver in names:
                if sender != receiver:
                    self.queues[sender, receiver] = deque()
                    self.members[sender].link.connected(receiver)

    def disconnect(self, name: str) -> None:
        for pair in [pair for pair in self.queues if name in pair]:
            del self.queues[pair]
            self.members[pair[0]].link.disconnected(pair[1])

    def deliver(self, sender: str, receiver: str, count: int = 1) -> None:
        for _ in range(count):
            message = self.queues[sender, receiver].popleft()
            self.members[receiver].link.received(sender, message)


class Link(Transport):  # type: ignore[misc]  # untyped
    """One member's end of the links."""

    def __init__(self, links: Links, name: str) -> None:
        super().__init__(None, None, [])
        self.links = links
        self.name = name

    def send(self, node: Node, message: Any) -> bool:
        queue = self.links.queues.get((self.name, node.id))
        if queue is not None:
            queue.append(message)
        return queue is not None

    def connected(self, name: str) -> None:
        self._onNodeConnected(Node(name))

    def disconnected(self, name: str) -> None:
        self._onNodeDisconnected(Node(name))

    def received(self, name: str, message: Any) -> None:
        self._onMessageReceived(Node(name), message)


class Stock(SyncObj):  # type: ignore[misc]  # untyped
    """A stock member that applies entries to a list."""

    def __init__(self, links: Links, name: str, names: str) -> None:
        self.link = Link(links, name)
        conf = SyncObjConf(
            autoTick=False, appendEntriesUseBatch=False, raftMinTimeout=900, raftMaxTimeout=901
        )
        conf.appendEntriesBatchSizeBytes = FRAME_BYTES
        conf.connectionTimeout = 999
        conf.leaderFallbackTimeout = 999
        others = [Node(other) for other in names if other != name]
        super().__init__(Node(name), others, conf, transport=self.link, nodeClass=Node)
        links.members[name] = self
        self.applied: list[str] = []

    @replicated  # type: ignore[untyped-decorator]
    def add(self, entry: str) -> None:
        self.applied.append(entry)

    def tick(self) -> None:
        self.doTick(0.0)

    def campaign(self) -> None:
        self._SyncObj__raftElectionDeadline = 0
        self.tick()

    def heartbeat(self) -> None:
        self._SyncObj__newAppendEntriesTime = 0
        self.tick()


def exchange(links: Links, *names: str, rounds: int = 6) -> None:
    """Let the named members talk until nothing is on the way."""
    for _ in range(rounds):
        for pair in [pair for pair in links.queues if set(pair) <= set(names)]:
            links.deliver(*pair, count=len(links.queues[pair]))
        for name in names:
            links.members[name].tick()


def test_stock_pysyncobj_loses_what_it_acknowledged() -> None:
    links = Links()
    a, b, c = (Stock(links, name, "abc") for name in "abc")
    links.connect("a", "b")  # c is away
    a.campaign()
    exchange(links, "a", "b")
    a.heartbeat()
    exchange(links, "a", "b")
    acknowledged: list[str] = []
    for number in range(4):
        entry = f"e{number} " + "x" * 120
        a.add(
            entry, callback=lambda _, failed, entry=entry: acknowledged.append(entry) if not failed else None
        )
    a.tick()  # one message for each entry
    links.deliver("a", "b", count=4)  # b stores and acknowledges all four
    links.deliver("b", "a")  # a hears the first answer, and plans to send the rest again
    a.heartbeat()  # which it does, in two messages
    links.deliver("b", "a", count=3)
    a.tick()
    assert len(acknowledged) == 4
    links.deliver("a", "b")  # of the two messages the first: b drops its tail, and now lacks the last entry
    links.disconnect("a")  # a's machine dies
    links.connect("b", "c")
    b.campaign()
    exchange(links, "b", "c")
    b.add("new")
    exchange(links, "b", "c")
    assert b.applied[-1] == "new"
    assert b.applied == c.applied
    assert [entry for entry in acknowledged if entry not in b.applied] == acknowledged[3:]
