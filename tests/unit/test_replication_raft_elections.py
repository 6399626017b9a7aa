"""Who leads: one in each term, soon after the last is lost, and nobody disturbs one that is heard."""

import random
from collections.abc import Callable

import pytest
from raft_members import Cluster, outcomes

from replication.raft.events import Outcome, Received, Role, Timing
from replication.raft.journal import JournalConflict
from replication.raft.messages import NUMBER_MAX, Message


def tell(cluster: Cluster, receiver: str, sender: str, **message: object) -> None:
    """Let a member hear a message that nobody sent."""
    cluster.nodes[receiver].inbox.append(Received(sender, message))
    cluster.turn(receiver)


def term(cluster: Cluster, name: str) -> int:
    return cluster.nodes[name].journal.term


def others(cluster: Cluster, name: str) -> list[str]:
    return [other for other in cluster.names if other != name]


def test_a_lone_member_leads_from_its_first_turn_on(rng: random.Random) -> None:
    cluster = Cluster(1, rng)
    assert cluster.turn("a").role is Role.LEADER
    tokens = cluster.propose("a", b"x", b"y")
    cluster.turn("a")
    assert cluster.nodes["a"].driver.wait_s() == 0
    assert cluster.turn("a").settled == tuple((token, Outcome.COMMITTED) for token in tokens)
    assert cluster.nodes["a"].log() == [b"x", b"y"]
    assert cluster.nodes["a"].driver.wait_s() > 0


@pytest.mark.parametrize("members", [2, 3, 5])
def test_members_elect_one_that_all_follow(members: int, rng: random.Random) -> None:
    cluster = Cluster(members, rng)
    leader = cluster.elect(2.0)
    cluster.run(5.0)
    assert cluster.leaders == {1: leader}


def test_a_lost_leader_is_replaced_within_two_seconds(
    rng: random.Random, count: Callable[[int], int]
) -> None:
    for _ in range(count(40)):
        cluster = Cluster(3, rng)
        leader = cluster.elect()
        cluster.run(rng.uniform(0, 1))
        silent = rng.random() < 0.5  # a machine that vanishes says nothing; a process that dies is noticed
        left = others(cluster, leader)
        began = cluster.now
        if silent:
            cluster.isolate(leader)
        else:
            cluster.kill(leader)
        cluster.run(5.0, lambda cluster=cluster, left=left: cluster.leader(left) is not None)
        token = cluster.propose(cluster.leader(left) or "", b"next")
        assert cluster.run(5.0, lambda cluster=cluster, token=token: token[0] in cluster.settled)
        assert outcomes(cluster, token) == [Outcome.COMMITTED]
        assert cluster.now - began <= 2.0


def test_a_member_that_hears_nobody_changes_no_term(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    deaf = others(cluster, leader)[0]
    cluster.cut = {(other, deaf) for other in others(cluster, deaf)}
    tokens = []
    for _ in range(80):
        tokens += cluster.propose(leader, b"x")
        cluster.run(0.05)
    cluster.heal()
    cluster.run(2.0)
    assert cluster.leaders == {1: leader}
    assert {term(cluster, name) for name in cluster.names} == {1}
    assert set(outcomes(cluster, tokens)) == {Outcome.COMMITTED}


def test_a_member_that_was_away_comes_back_without_an_election(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    away = others(cluster, leader)[0]
    cluster.isolate(away)
    cluster.run(10.0)
    cluster.heal()
    cluster.run(3.0)
    assert cluster.leaders == {1: leader}


def test_a_leader_without_a_majority_gives_up_and_settles_nothing(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.isolate(leader)
    tokens = cluster.propose(leader, b"lost 1", b"lost 2")
    began = cluster.now
    node = cluster.nodes[leader]
    assert cluster.run(5.0, lambda: node.last is not None and node.last.role is not Role.LEADER)
    assert cluster.now - began <= 2.5
    assert outcomes(cluster, tokens) == [Outcome.UNKNOWN] * 2
    refused = cluster.propose(leader, b"nobody leads")
    cluster.turn(leader)
    assert outcomes(cluster, refused) == [Outcome.REFUSED]
    cluster.heal()
    cluster.elect()
    assert b"lost 1" not in cluster.agree()


def test_a_leader_is_not_deposed_while_it_is_heard(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    a, b = others(cluster, leader)
    last = {"last_log_index": 99, "last_log_term": 9}
    for receiver in (leader, b):
        tell(cluster, receiver, a, type="pre_vote", term=9, **last)
        tell(cluster, receiver, a, type="request_vote", term=9, **last)
    cluster.run(3.0)
    assert cluster.leaders == {1: leader}


def test_a_vote_counts_once_however_often_it_is_heard(rng: random.Random) -> None:
    cluster = Cluster(5, rng)
    cluster.keep = lambda sender, receiver, message: message["type"] != "response_vote"
    assert cluster.run(3.0, lambda: any(node.journal.vote == name for name, node in cluster.nodes.items()))
    candidate = next(name for name, node in cluster.nodes.items() if node.journal.vote == name)
    voters, running = others(cluster, candidate), term(cluster, candidate)
    for _ in range(3):
        tell(cluster, candidate, voters[0], type="response_vote", term=running)
    last = cluster.nodes[candidate].last
    assert last is not None
    assert (last.role, last.term) == (Role.CANDIDATE, running)
    tell(cluster, candidate, voters[1], type="response_vote", term=running)
    last = cluster.nodes[candidate].last
    assert last is not None
    assert last.role is Role.LEADER


def test_votes_are_kept_across_a_restart(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    cluster.isolate("a")
    last: Message = {"last_log_index": 9, "last_log_term": 9}
    tell(cluster, "a", "b", type="request_vote", term=5, **last)
    cluster.kill("a")
    cluster.start("a")
    assert (term(cluster, "a"), cluster.nodes["a"].journal.vote) == (5, "b")
    cluster.nodes["a"].inbox.append(Received("c", {"type": "request_vote", "term": 5, **last}))
    turn = cluster.turn("a")
    assert not [message for _, message in turn.outgoing if message["type"] == "response_vote"]


def test_a_shorter_or_older_log_gets_no_vote(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.propose(leader, b"x")
    cluster.agree()
    follower, other = others(cluster, leader)
    node = cluster.nodes[follower]
    cluster.isolate(follower)
    cluster.now += 0.55
    last, newest = node.journal.last, node.journal.term
    for index, last_term in ((last - 1, newest), (last + 9, newest - 1)):
        candidacy = {"last_log_index": index, "last_log_term": last_term}
        for kind in ("pre_vote", "request_vote"):
            tell(cluster, follower, other, type=kind, term=newest + 1, **candidacy)
    assert node.journal.vote in (None, leader)
    assert not [m for m in cluster.links[follower, other] if m["type"] in {"pre_vote_ok", "response_vote"}]
    tell(
        cluster, follower, other, type="pre_vote", term=newest + 2, last_log_index=last, last_log_term=newest
    )
    assert [m["type"] for m in cluster.links[follower, other]][-1] == "pre_vote_ok"


def test_whoever_speaks_of_a_term_that_is_over_is_told(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, other = others(cluster, leader)
    cluster.links[follower, other].clear()
    last = {"last_log_index": 9, "last_log_term": 0}
    place = {"prevLogIdx": 1, "prevLogTerm": 0, "entries": (), "commit_index": 1}
    tell(cluster, follower, other, type="request_vote", term=0, **last)
    tell(cluster, follower, other, type="pre_vote", term=1, **last)
    tell(cluster, follower, other, type="append_entries", term=0, **place)
    answers = [m for m in cluster.links[follower, other] if m["type"] == "higher_term"]
    assert answers == [{"type": "higher_term", "term": 1}] * 3
    tell(cluster, leader, other, type="higher_term", term=7)
    last_turn = cluster.nodes[leader].last
    assert last_turn is not None
    assert (last_turn.role, last_turn.term, term(cluster, leader)) == (Role.FOLLOWER, 7, 7)


def test_a_term_from_far_ahead_is_no_term(rng: random.Random) -> None:
    """Nothing honest is there, and a liar must not bring the terms to their end."""
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, liar = others(cluster, leader)
    for receiver in (leader, follower):
        tell(cluster, receiver, liar, type="higher_term", term=NUMBER_MAX)
        tell(cluster, receiver, liar, type="pre_vote", term=NUMBER_MAX, last_log_index=9, last_log_term=9)
    cluster.run(3.0)
    assert cluster.leaders == {1: leader}


def test_a_second_leader_of_a_term_is_not_heard(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, liar = others(cluster, leader)
    for receiver in (leader, follower):
        end = cluster.nodes[receiver].journal.last
        forged = {"prevLogIdx": end, "prevLogTerm": 1, "entries": ((b"\0forged", end + 1, 1),)}
        tell(cluster, receiver, liar, type="append_entries", term=1, commit_index=end + 1, **forged)
    cluster.run(1.0)
    assert cluster.agree() == []
    assert cluster.leaders == {1: leader}


def test_a_leader_that_contradicts_what_is_committed_stops_the_member(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.propose(leader, b"x")
    cluster.agree()
    follower, liar = others(cluster, leader)
    forged = {"prevLogIdx": 1, "prevLogTerm": 0, "entries": ((b"\0other", 2, 9),)}
    with pytest.raises(JournalConflict, match="committed"):
        tell(cluster, follower, liar, type="append_entries", term=9, commit_index=1, **forged)


def test_strangers_are_not_heard(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    cluster.elect()
    before = {name: term(cluster, name) for name in cluster.names}
    for name in cluster.names:
        tell(cluster, name, "stranger", type="higher_term", term=99)
        tell(cluster, name, "stranger", type="propose", term=1, life=1, request=0, payloads=(b"x",))
    assert {name: term(cluster, name) for name in cluster.names} == before
    assert cluster.agree() == []


@pytest.mark.parametrize(
    "times",
    [
        {"heartbeat_s": 0.2},
        {"heartbeat_s": 0.0},
        {"election_max_s": 0.6},
        {"quorum_s": 0.5},
        {"settle_s": 0.0},
    ],
)
def test_a_timing_with_which_nobody_could_lead_is_refused(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"heartbeats|quorum_s"):
        Timing(**times)
