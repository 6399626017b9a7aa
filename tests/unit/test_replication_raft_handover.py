"""A leader lets another member lead: at once, without an election to wait for, and nothing is lost by it."""

import random
from collections.abc import Callable

from raft_members import Cluster, outcomes

from replication.raft.events import HandOver, Outcome, Received, Role

AT_ONCE_S = 0.1  # some messages; the shortest election takes 0.3 s


def hand_over(cluster: Cluster, leader: str) -> None:
    cluster.nodes[leader].inbox.append(HandOver())


def test_a_leader_that_is_told_to_hand_over_is_followed_at_once(
    rng: random.Random, count: Callable[[int], int]
) -> None:
    cluster = Cluster(rng.choice((2, 3, 5)), rng)
    leader = cluster.elect()
    for _ in range(count(20)):
        began = cluster.now
        hand_over(cluster, leader)
        left = [name for name in cluster.names if name != leader]
        assert cluster.run(5.0, lambda left=left: cluster.leader(left) is not None)
        leader = cluster.elect()
        assert cluster.now - began <= AT_ONCE_S
        cluster.run(rng.uniform(0, 0.2))


def test_what_is_proposed_meanwhile_is_not_lost(rng: random.Random, count: Callable[[int], int]) -> None:
    cluster = Cluster(3, rng)
    cluster.elect()
    tokens: list[int] = []
    for _ in range(count(20)):
        for _ in range(rng.randrange(20)):
            tokens += cluster.propose(rng.choice(cluster.names), b"%d" % len(tokens))
            cluster.step()
        hand_over(cluster, cluster.elect())
    cluster.run(2 * cluster.timing.settle_s)
    kept = cluster.agree()
    found = outcomes(cluster, tokens)
    for token, outcome in zip(tokens, found, strict=True):
        assert outcome is not None
        assert kept.count(cluster.payloads[token]) == 1 or outcome is not Outcome.COMMITTED
        assert cluster.payloads[token] not in kept or outcome is not Outcome.REFUSED
    assert found.count(Outcome.COMMITTED) > len(found) / 2


def test_a_leader_without_a_member_that_could_lead_goes_on(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.agree()
    followers = [name for name in cluster.names if name != leader]
    cluster.keep = lambda sender, receiver, message: message["type"] != "abdicate"
    cluster.cut = {(name, leader) for name in followers}  # what they have stored is not known
    tokens = cluster.propose(leader, b"before")
    cluster.turn(leader)
    hand_over(cluster, leader)
    cluster.turn(leader)
    refused = cluster.propose(leader, b"meanwhile")
    last = cluster.turn(leader)
    assert outcomes(cluster, refused) == [Outcome.REFUSED]
    assert last.role is Role.LEADER
    cluster.run(1.0)
    cluster.heal()
    tokens += cluster.propose(leader, b"after")
    cluster.run(2.0)
    assert outcomes(cluster, tokens) == [Outcome.COMMITTED] * 2
    assert set(cluster.leaders.values()) == {leader}


def test_who_has_nobody_else_and_who_does_not_lead_hand_nothing_over(rng: random.Random) -> None:
    alone = Cluster(1, rng)
    hand_over(alone, alone.elect())
    token = alone.propose("a", b"x")
    alone.run(1.0)
    assert outcomes(alone, token) == [Outcome.COMMITTED]
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    for name in cluster.names:
        if name != leader:
            hand_over(cluster, name)
    cluster.run(2.0)
    assert set(cluster.leaders.values()) == {leader}


def test_only_the_leader_itself_makes_others_stand_for_election(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, liar = [name for name in cluster.names if name != leader]
    for term in (0, 1, 2):
        for receiver in (leader, follower):
            word = {"type": "abdicate", "term": term, "successor": True}
            cluster.nodes[receiver].inbox.append(Received(liar, word))
    cluster.nodes[follower].inbox.append(Received(leader, {"type": "abdicate", "term": 0, "successor": True}))
    cluster.run(3.0)
    assert set(cluster.leaders.values()) == {leader}
