"""What a leader sends to others: acknowledged entries stay, contradicting ones go, memory is bounded."""

import random
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
from raft_members import Cluster, outcomes

from kv.interface import StorageError, Store
from kv.memory import MemoryDisk, MemoryStore
from kv.testing import Fault, FaultyStore
from replication.raft.events import Outcome, Received
from replication.raft.messages import BATCH_BYTES_MAX, Message
from replication.raft.progress import WINDOW_BYTES
from replication.raft.rows import open_log
from replication.testing import public_half


def others(cluster: Cluster, name: str) -> list[str]:
    return [other for other in cluster.names if other != name]


def of_kind(cluster: Cluster, sender: str, receiver: str, kind: str) -> list[Message]:
    return [message for message in cluster.links[sender, receiver] if message["type"] == kind]


def test_acknowledged_entries_survive_a_message_that_is_heard_again(rng: random.Random) -> None:
    """The schedule in which stock pysyncobj loses one: see test_replication_raft_stock.py."""
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, away = others(cluster, leader)
    cluster.isolate(away)
    tokens = cluster.propose(leader, *[b"e%d" % number for number in range(4)])
    cluster.turn(leader)
    (sent,) = [m for m in of_kind(cluster, leader, follower, "append_entries") if m["entries"]]
    assert cluster.run(1.0, lambda: len(cluster.settled) == 4)
    cluster.nodes[follower].inbox.append(Received(leader, {**sent, "entries": sent["entries"][:2]}))
    cluster.turn(follower)
    cluster.kill(leader)
    cluster.heal()
    cluster.elect(among=[follower, away])
    assert outcomes(cluster, tokens) == [Outcome.COMMITTED] * 4
    assert cluster.agree() == [b"e0", b"e1", b"e2", b"e3"]


def test_a_lost_leaders_entries_give_way_in_a_few_messages(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    old = cluster.elect()
    cluster.isolate(old)
    tokens = cluster.propose(old, *[b"old %d" % number for number in range(2000)])
    cluster.turn(old)
    left = others(cluster, old)
    new = cluster.elect(among=left)
    cluster.propose(new, *[b"new %d" % number for number in range(5)])
    cluster.run(3.0)
    for link, queue in cluster.links.items():
        if old in link:
            queue.clear()
    refusals: list[Message] = []

    def keep(sender: str, receiver: str, message: Message) -> bool:
        if message["type"] == "next_node_idx" and not message["success"]:
            refusals.append(message)
        return True

    cluster.keep = keep
    cluster.heal()
    assert cluster.agree() == [b"new %d" % number for number in range(5)]
    assert set(outcomes(cluster, tokens)) == {Outcome.UNKNOWN}
    assert len(refusals) <= 5


def test_a_commit_reaches_no_further_than_what_was_shown_to_match(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    old = cluster.elect()
    new = others(cluster, old)[0]
    cluster.isolate(old)
    cluster.propose(old, b"never committed", b"this neither")
    cluster.turn(old)
    shown = {"prevLogIdx": 2, "prevLogTerm": 1, "entries": (), "term": 2, "commit_index": 99}
    cluster.nodes[old].inbox.append(Received(new, {"type": "append_entries", **shown}))
    turn = cluster.turn(old)
    assert (cluster.nodes[old].journal.commit, turn.committed_to) == (2, 0)


def test_an_answer_to_an_earlier_leadership_counts_for_nothing(rng: random.Random) -> None:
    cluster = Cluster(5, rng)
    leader = cluster.elect()
    cluster.isolate(leader)
    (token,) = cluster.propose(leader, b"x")
    cluster.turn(leader)
    journal = cluster.nodes[leader].journal
    stale = {"type": "next_node_idx", "prevLogIdx": journal.last, "next_node_idx": journal.last + 1}
    for term in (journal.term - 1, journal.term + 1):
        for follower in others(cluster, leader):
            answer = {**stale, "term": term, "reset": False, "success": True}
            cluster.nodes[leader].inbox.append(Received(follower, answer))
    cluster.turn(leader)
    cluster.turn(leader)
    assert token not in cluster.settled


def test_an_answer_that_acknowledges_more_than_there_is_counts_for_nothing(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.isolate(leader)
    journal = cluster.nodes[leader].journal
    answer = {"prevLogIdx": 1, "next_node_idx": journal.last + 2, "reset": False, "success": True}
    message = {"type": "next_node_idx", "term": journal.term, **answer}
    cluster.nodes[leader].inbox.append(Received(others(cluster, leader)[0], message))
    cluster.propose(leader, b"x")
    cluster.turn(leader)
    assert cluster.turn(leader).committed_to == 0


@pytest.mark.parametrize(("refused", "wanted"), [(1, 1), (1, 2), (2, 1)])
def test_no_member_can_ask_for_what_is_before_the_first_entry(
    refused: int, wanted: int, rng: random.Random
) -> None:
    """All logs begin alike: whoever refuses that is mistaken or lies, and no reason for a leader to end."""
    cluster = Cluster(3, rng)
    cluster.keep = lambda sender, receiver, message: message["type"] != "next_node_idx"
    leader = cluster.elect()  # which does not know yet what anybody has
    answer = {"prevLogIdx": refused, "next_node_idx": wanted, "reset": True, "success": False}
    message = {"type": "next_node_idx", "term": cluster.nodes[leader].journal.term, **answer}
    cluster.nodes[leader].inbox.append(Received(others(cluster, leader)[0], message))
    cluster.turn(leader)
    cluster.turn(leader)
    cluster.keep = lambda sender, receiver, message: True
    cluster.propose(leader, b"x")
    assert cluster.agree() == [b"x"]
    assert cluster.leaders == {1: leader}


def test_a_leader_counts_its_own_entries_only_once_they_are_stored(rng: random.Random) -> None:
    cluster = Cluster(2, rng)
    leader = cluster.elect()
    store = cluster.disks[leader]
    cluster.propose(leader, b"x")
    turn = cluster.turn(leader)
    assert turn.committed_to == 0
    assert any(message["type"] == "append_entries" for _, message in turn.outgoing)
    assert any(b"\0x" in value for value in store.view.changes.values() if value)


def durable(disk: MemoryDisk) -> tuple[int, int, str | None]:
    """Return last index, term and vote as the next start would find them."""
    copy = MemoryDisk()
    copy.view = disk.view
    opened = open_log(MemoryStore(copy), public_half)
    return opened.last, opened.term, opened.vote


def test_nothing_leaves_before_it_is_durable(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    spoken: list[str] = []

    def keep(sender: str, receiver: str, message: Message) -> bool:
        last, term, vote = durable(cluster.disks[sender])
        spoken.append(message["type"])
        if message["type"] == "response_vote":
            assert (message["term"], receiver) == (term, vote)
        elif message["type"] == "request_vote":
            assert (message["term"], sender) == (term, vote)
        elif message["type"] == "next_node_idx" and message["success"]:
            assert message["next_node_idx"] <= last + 1
        elif message["type"] == "append_entries":
            assert message["prevLogIdx"] + len(message["entries"]) <= last
        if message["type"] not in {"pre_vote", "pre_vote_ok"}:  # these speak of a term to come
            assert message["term"] <= term
        return rng.random() < 0.9

    cluster.keep = keep
    for number in range(30):
        name = rng.choice(cluster.names)
        if name not in cluster.nodes:
            cluster.start(name)
        elif rng.random() < 0.2 and len(cluster.nodes) > 1:
            cluster.kill(name)
        else:
            cluster.propose(name, b"%d" % number)
        cluster.run(0.4)
    assert {"response_vote", "request_vote", "next_node_idx", "append_entries"} <= set(spoken)


@pytest.mark.parametrize("fault", [Fault.WRITE_ERROR_AND_APPLIED, Fault.WRITE_ERROR_AND_NOT_APPLIED])
def test_a_member_may_die_at_any_sync(fault: Fault, rng: random.Random) -> None:
    for after in range(1, 9):  # the first batch makes the log
        for victim in "abc":
            seed = rng.random()
            fragile = {victim: after}

            def wrap(name: str, store: Store, fragile: dict[str, int] = fragile) -> Store:
                return FaultyStore(store, fault, after=fragile.pop(name)) if name in fragile else store

            die_and_return(random.Random(seed), wrap)


def die_and_return(rng: random.Random, wrap: Callable[[str, Store], Store]) -> None:
    """Propose while a member's store fails once; it is started again at once, and nothing may be lost."""
    cluster = Cluster(3, rng, wrap=wrap)
    for number in range(12):
        leader = cluster.leader()
        if leader is not None:
            cluster.propose(leader, b"%d" % number)
        for _ in range(60):
            cluster.now += 0.02
            for name in list(cluster.nodes):
                try:
                    cluster.turn(name)
                except StorageError:
                    cluster.kill(name)
                    cluster.start(name)
    log = cluster.agree()
    settled = cluster.settled.items()
    committed = [cluster.payloads[token] for token, outcome in settled if outcome is Outcome.COMMITTED]
    assert committed
    assert set(committed) <= set(log)
    assert len(set(log)) == len(log)


def test_a_leader_holds_little_for_a_follower_that_does_not_answer(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    slow = others(cluster, leader)[0]
    cluster.cut = {(leader, slow), (slow, leader)}
    for _ in range(20):
        cluster.propose(leader, bytes(10**6), bytes(10**6))
        cluster.run(0.05)
    waiting = cluster.links[leader, slow]
    sizes = [sum(len(command) for command, _, _ in m["entries"]) for m in waiting if "entries" in m]
    assert sum(sizes) <= WINDOW_BYTES + BATCH_BYTES_MAX
    assert max(sizes) <= BATCH_BYTES_MAX
    cluster.heal()
    assert len(cluster.agree()) == 40


class Counting(MemoryStore):
    """A store that counts its batches."""

    batches = 0

    def write(self, puts: Mapping[bytes, bytes | None]) -> None:
        self.batches += 1
        super().write(puts)


def test_a_turn_of_which_it_was_said_does_not_wait_for_the_disk(rng: random.Random) -> None:
    stores: dict[str, Counting] = {}

    def counting(name: str, store: Store) -> Store:
        store.close()
        stores[name] = Counting(cluster_disks[name])
        return stores[name]

    cluster_disks: dict[str, MemoryDisk] = {name: MemoryDisk() for name in "abc"}
    cluster = Cluster(3, rng, wrap=counting)
    spared = Counter[bool]()
    for step in range(600):
        if step % 4 == 0 and cluster.leader() is not None:
            cluster.propose(cluster.leader() or "", b"%d" % step)
        for name, node in cluster.nodes.items():
            inbox = cluster.gather(name)
            waits = node.driver.waits_for_disk(inbox)
            before = stores[name].batches
            cluster.turn(name)
            assert waits or stores[name].batches == before
            if inbox:
                spared[waits] += 1
        cluster.now += 0.005
    assert spared[False] > spared[True] / 2
    assert len(cluster.agree()) > 100


def test_how_far_entries_are_committed_is_found_again_without_a_leader(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.propose(leader, b"x", b"y")
    cluster.agree()
    cluster.run(2.0)  # within a second the commit index is written, even if nothing else is
    for name in cluster.names:
        cluster.kill(name)
        assert cluster.start(name).journal.committed_to == 2
        cluster.kill(name)


def test_what_was_applied_is_known_to_be_committed(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.propose(leader, b"x", b"y", b"z")
    cluster.run(1.0, lambda: len(cluster.settled) == 3)
    for name in cluster.names:
        cluster.kill(name)
    node = cluster.start(leader)
    node.driver.know_committed(2)
    assert len(node.log()) in (2, 3)
    with pytest.raises(StorageError, match="ends at 3"):
        node.driver.know_committed(4)
    for name in others(cluster, leader):
        cluster.start(name)
    cluster.elect()
    assert cluster.agree() == [b"x", b"y", b"z"]


def test_a_member_knows_how_the_others_stand(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.propose(leader, b"x", b"y")
    cluster.agree()
    cluster.run(1.0)
    follower, gone = others(cluster, leader)
    cluster.kill(gone)
    cluster.run(1.0)
    near, far = sorted(cluster.nodes[leader].driver.peers(), key=lambda peer: peer.member == gone)
    assert (near.member, near.connected, near.matched_to) == (follower, True, 2)
    assert near.heard_s is not None
    assert near.heard_s <= 0.2
    assert (far.member, far.connected) == (gone, False)
    assert far.heard_s is not None
    assert far.heard_s >= 0.8
    assert [peer.matched_to for peer in cluster.nodes[follower].driver.peers()] == [None, None]
