"""How entries travel to followers: in order, no more often than needed, whatever the link does to them."""

import random
from collections import Counter, deque
from collections.abc import Callable

from raft_members import Cluster

from replication.raft.engine import NEWS_S
from replication.raft.events import Received
from replication.raft.messages import Message

Loses = Callable[[Message], bool]
LAG = 10  # answers that are on the way at any time


def others(cluster: Cluster, name: str) -> list[str]:
    return [other for other in cluster.names if other != name]


def stream(cluster: Cluster, leader: str, loses: Loses = lambda message: False) -> Counter[int]:
    """Propose in every turn while answers lag; return how often each entry was sent to one follower."""
    follower = others(cluster, leader)[0]
    times: Counter[int] = Counter()
    answers: deque[Message] = deque()

    def keep(sender: str, receiver: str, message: Message) -> bool:
        if (sender, receiver) == (follower, leader):
            answers.append(message)
            return False
        if receiver == follower and message["type"] == "append_entries":
            times.update(index for _, index, _ in message["entries"])
            return not loses(message)
        return True

    cluster.keep = keep
    for number in range(200):
        cluster.propose(leader, *[b"%d %d" % (number, place) for place in range(5)])
        while len(answers) > LAG:
            cluster.nodes[leader].inbox.append(Received(follower, answers.popleft()))
        cluster.step()
    cluster.nodes[leader].inbox.extend(Received(follower, answer) for answer in answers)
    cluster.keep = lambda sender, receiver, message: (
        (sender, receiver) == (follower, leader) or keep(sender, receiver, message)
    )
    assert len(cluster.agree()) == 1000
    return times


def test_on_a_link_that_loses_nothing_every_entry_is_sent_once(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    times = stream(cluster, cluster.elect())
    assert set(times.values()) == {1}
    assert len(times) >= 1000


def test_after_a_loss_only_what_was_on_the_way_is_sent_again(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    lost: list[Message] = []

    def loses(message: Message) -> bool:
        if message["entries"] and len(lost) < 1 and message["prevLogIdx"] > 300:
            lost.append(message)
            return True
        return False

    times = stream(cluster, cluster.elect(), loses)
    assert lost
    assert max(times.values()) == 2
    again = sum(1 for count in times.values() if count == 2)
    assert 5 <= again <= 150


def test_a_new_link_is_asked_first_and_then_sent_what_is_missing(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    away = others(cluster, leader)[0]
    cluster.kill(away)
    cluster.propose(leader, *[b"%d" % number for number in range(5000)])
    cluster.run(1.0, lambda: len(cluster.settled) == 5000)
    times: Counter[int] = Counter()
    asked: list[Message] = []

    def keep(sender: str, receiver: str, message: Message) -> bool:
        if receiver == away and message["type"] == "append_entries":
            times.update(index for _, index, _ in message["entries"])
            asked.extend([] if message["entries"] else [message])
        return True

    cluster.keep = keep
    cluster.start(away)
    assert len(cluster.agree()) == 5000
    assert set(times.values()) == {1}
    assert asked
    assert len(asked) <= 10


def test_a_follower_that_keeps_up_is_never_read_for_from_the_disk(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    journal = cluster.nodes[leader].journal
    for number in range(50):
        cluster.propose(leader, *[b"%d %d" % (number, place) for place in range(20)])
        cluster.step()
    assert journal._cached_from <= 3
    assert cluster.agree()


def test_news_of_a_commit_are_not_answered_but_heartbeats_are(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.run(1.0)
    answers: list[Message] = []

    def keep(sender: str, receiver: str, message: Message) -> bool:
        answers.extend([message] if message["type"] == "next_node_idx" else [])
        return True

    cluster.keep = keep
    began = cluster.now
    for number in range(10):
        (token,) = cluster.propose(leader, b"%d" % number)
        cluster.run(1.0, lambda token=token: token in cluster.settled)
        for _ in range(3):
            cluster.step()
    beats = (cluster.now - began) / cluster.timing.heartbeat_s
    assert len(answers) <= 2 * (10 + beats + 2)
    answers.clear()
    cluster.run(2.0)
    assert 2 * 15 <= len(answers) <= 2 * 22
    assert cluster.leaders == {1: leader}


def test_both_followers_are_sent_the_same_objects(rng: random.Random) -> None:
    """So that a codec need not encode them twice."""
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.agree()
    cluster.propose(leader, *[b"%d" % number for number in range(100)])
    turn = cluster.turn(leader)
    one, other = [message["entries"] for _, message in turn.outgoing if message["type"] == "append_entries"]
    assert len(one) == 100
    assert one is other


def commit_at(cluster: Cluster, leader: str, proposer: str) -> list[Message]:
    """Have something committed that was proposed at a member; return what the leader sends in that turn."""
    cluster.run(0.05)
    (token,) = cluster.propose(proposer, b"x")
    before = cluster.nodes[leader].journal.committed_to
    for _ in range(10):
        for name in (proposer, leader, *others(cluster, leader)):
            outgoing = cluster.turn(name).outgoing
            if name == leader and cluster.nodes[leader].journal.committed_to > before:
                assert proposer != leader or token in cluster.settled
                return [message for _, message in outgoing if message["type"] == "append_entries"]
    raise AssertionError("nothing was committed")


def test_news_of_a_commit_wait_for_entries_to_go_with_but_not_long(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    assert commit_at(cluster, leader, leader) == []
    assert cluster.nodes[leader].driver.wait_s() < 3 * NEWS_S
    cluster.propose(leader, b"y")
    (first, second) = cluster.turn(leader).outgoing
    assert [len(message["entries"]) for _, message in (first, second)] == [1, 1]
    assert first[1]["commit_index"] == cluster.nodes[leader].journal.commit
    cluster.agree()
    assert commit_at(cluster, leader, leader) == []
    cluster.now += 2 * NEWS_S
    (first, second) = cluster.turn(leader).outgoing
    assert first[1]["commit_index"] == second[1]["commit_index"] == cluster.nodes[leader].journal.commit
    assert cluster.nodes[leader].driver.wait_s() > 2 * NEWS_S


def test_a_follower_that_waits_for_a_commit_hears_of_it_at_once(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    news = commit_at(cluster, leader, others(cluster, leader)[0])
    assert len(news) == 2
