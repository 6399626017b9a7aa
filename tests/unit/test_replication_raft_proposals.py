"""What proposers are told: committed, surely not, or unknown; at the leader, and at who passes on to it."""

import random

import pytest
from raft_members import Cluster, outcomes

from replication.raft import proposals
from replication.raft.events import Connected, Disconnected, Forgotten, Outcome, Received, Timing
from replication.raft.messages import BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, Message


def others(cluster: Cluster, name: str) -> list[str]:
    return [other for other in cluster.names if other != name]


def settle(cluster: Cluster, tokens: list[int], seconds: float = 10.0) -> list[Outcome | None]:
    assert cluster.run(seconds, lambda: all(token in cluster.settled for token in tokens))
    return outcomes(cluster, tokens)


def test_what_any_member_proposes_is_committed_in_its_order(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    cluster.elect()
    tokens = []
    for number in range(30):
        for name in cluster.names:
            tokens += cluster.propose(name, b"%s %d" % (name.encode(), number))
        cluster.run(rng.choice([0.0, 0.01, 0.05]))
    assert settle(cluster, tokens) == [Outcome.COMMITTED] * 90
    log = cluster.agree()
    for name in cluster.names:
        mine = [payload for payload in log if payload.startswith(name.encode())]
        assert mine == [b"%s %d" % (name.encode(), number) for number in range(30)]


def test_without_a_leader_a_proposal_is_refused_at_once(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    tokens = cluster.propose("a", b"x")
    cluster.turn("a")
    assert outcomes(cluster, tokens) == [Outcome.REFUSED]


def test_without_a_link_to_the_leader_too(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    cluster.kill(leader)
    tokens = cluster.propose(follower, b"x")
    cluster.turn(follower)
    assert outcomes(cluster, tokens) == [Outcome.REFUSED]


def test_what_was_sent_to_a_leader_that_is_lost_is_unknown_at_once(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    tokens = cluster.propose(follower, b"x")
    cluster.turn(follower)
    assert outcomes(cluster, tokens) == [None]
    cluster.kill(leader)
    cluster.turn(follower)
    assert outcomes(cluster, tokens) == [Outcome.UNKNOWN]


def test_who_only_misses_the_leader_goes_on_waiting_for_it(rng: random.Random) -> None:
    """Its process stood still, or what the leader says is late: it asks for pre-votes, and the term stays."""
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    tokens = cluster.propose(follower, b"placed")
    cluster.turn(follower)
    cluster.turn(leader)
    cluster.turn(follower)
    tokens += cluster.propose(follower, b"on the way")
    cluster.turn(follower)
    cluster.cut = {(name, follower) for name in cluster.names}
    assert cluster.run(3.0, lambda: follower_misses(cluster, follower))
    late = cluster.propose(follower, b"while there is none")
    cluster.turn(follower)
    assert outcomes(cluster, [*tokens, *late]) == [None, None, Outcome.REFUSED]
    cluster.heal()
    assert settle(cluster, tokens, 1.0) == [Outcome.COMMITTED] * 2
    assert settle(cluster, cluster.propose(follower, b"as ever"), 1.0) == [Outcome.COMMITTED]
    assert cluster.agree() == [b"placed", b"on the way", b"as ever"]
    assert set(cluster.leaders) == {1}


def follower_misses(cluster: Cluster, follower: str) -> bool:
    last = cluster.nodes[follower].last
    return last is not None and last.leader is None


def test_another_leader_ends_the_wait_for_one_that_is_silent(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, other = others(cluster, leader)
    cluster.isolate(leader)
    tokens = cluster.propose(follower, b"x")
    cluster.turn(follower)
    cluster.elect(among=(follower, other))
    assert outcomes(cluster, tokens) == [Outcome.UNKNOWN]


def test_a_leader_without_a_majority_gives_up_what_it_took(rng: random.Random) -> None:
    cluster = Cluster(3, rng, timing=Timing(settle_s=1000.0))
    leader = cluster.elect()
    cluster.isolate(leader)
    tokens = cluster.propose(leader, b"x")
    assert settle(cluster, tokens) == [Outcome.UNKNOWN]


def test_what_was_committed_is_not_refused_because_the_link_breaks_in_the_same_turn(
    rng: random.Random,
) -> None:
    """Refused is proposed again: it would be in the log twice."""
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, other = others(cluster, leader)
    tokens = cluster.propose(follower, b"x")
    for name in (follower, leader, other, follower, leader):  # asked; placed; stored; told where; committed
        cluster.turn(name)
    assert cluster.nodes[leader].log() == [b"x"]
    assert outcomes(cluster, tokens) == [None]
    cluster.gather(follower).append(Disconnected(leader))
    cluster.turn(follower)
    assert cluster.nodes[follower].log() == [b"x"]
    assert outcomes(cluster, tokens) == [Outcome.COMMITTED]


def test_what_nobody_answers_is_unknown_in_the_end(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    cluster.keep = lambda sender, receiver, message: message["type"] != "proposed"
    tokens = cluster.propose(follower, b"x")
    cluster.run(4.0)
    assert outcomes(cluster, tokens) == [None]
    assert settle(cluster, tokens, 2.0) == [Outcome.UNKNOWN]
    assert cluster.agree() == [b"x"]


def test_what_another_leader_replaced_is_never_said_to_be_committed(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    old = cluster.elect()
    cluster.isolate(old)
    tokens = cluster.propose(old, b"mine")
    cluster.turn(old)
    new = cluster.elect(among=others(cluster, old))
    cluster.propose(new, b"theirs")
    cluster.run(0.5)
    cluster.heal()
    assert cluster.agree() == [b"theirs"]
    assert settle(cluster, tokens) in ([Outcome.UNKNOWN], [Outcome.REFUSED])


def test_what_is_forgotten_is_not_settled_and_not_placed_any_more(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    early, late = cluster.propose(leader, b"early", b"late")
    cluster.nodes[leader].inbox.append(Forgotten(early))
    cluster.turn(leader)
    cluster.nodes[leader].inbox.append(Forgotten(late))
    cluster.nodes[leader].inbox.append(Forgotten(12345))
    assert cluster.agree() == [b"late"]
    assert outcomes(cluster, [early, late]) == [None, None]


def test_a_request_that_is_heard_twice_is_placed_once(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    tokens = cluster.propose(follower, b"x", b"y")
    cluster.turn(follower)
    link = cluster.links[follower, leader]
    link.extend(list(link))
    assert settle(cluster, tokens) == [Outcome.COMMITTED] * 2
    assert cluster.agree() == [b"x", b"y"]


def test_requests_of_a_new_life_are_not_taken_for_those_of_the_last(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    settle(cluster, cluster.propose(follower, b"1", b"2", b"3"))
    cluster.kill(follower)
    cluster.start(follower)
    cluster.elect()
    assert settle(cluster, cluster.propose(follower, b"4")) == [Outcome.COMMITTED]


def test_a_leader_that_is_one_no_more_answers_nothing_that_is_not_so(rng: random.Random) -> None:
    """What it is told for the second time may be in its log since the first."""
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    tokens = cluster.propose(follower, b"x")
    cluster.turn(follower)
    (request,) = [m for m in cluster.links[follower, leader] if m["type"] == "propose"]
    cluster.turn(leader)
    cluster.links[leader, follower].clear()
    cluster.kill(leader)
    cluster.start(leader)
    cluster.links[follower, leader].append(request)
    cluster.turn(leader)
    assert not [m for m in cluster.links[leader, follower] if m["type"] == "proposed"]
    cluster.elect()
    assert settle(cluster, tokens) == [Outcome.UNKNOWN]


def test_a_reply_to_somebody_elses_request_is_none(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower, other = others(cluster, leader)
    (token,) = cluster.propose(follower, b"x")
    cluster.turn(follower)
    (request,) = [m for m in cluster.links[follower, leader] if m["type"] == "propose"]
    cluster.links[follower, leader].clear()
    place = {"request": request["request"], "count": 1, "log_idx": 2}
    life = request["life"]
    for sender, term, said in ((leader, 1, life + 1), (leader, 0, life), (other, 1, life)):
        reply = {"type": "proposed", "term": term, "life": said, **place}
        cluster.nodes[follower].inbox.append(Received(sender, reply))
    cluster.turn(follower)
    cluster.run(1.0)
    assert token not in cluster.settled


def test_a_full_leader_refuses_what_others_pass_on(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    monkeypatch.setattr(proposals, "UNCOMMITTED_BYTES_MAX", 10)
    assert settle(cluster, cluster.propose(others(cluster, leader)[0], b"x")) == [Outcome.REFUSED]
    monkeypatch.undo()
    assert settle(cluster, cluster.propose(others(cluster, leader)[0], b"y")) == [Outcome.COMMITTED]
    assert cluster.agree() == [b"y"]


@pytest.mark.parametrize(
    ("log_idx", "count", "outcome"),
    [(3, 1, Outcome.COMMITTED), (1, 1, Outcome.REFUSED), (3, 2, Outcome.UNKNOWN), (3, 0, Outcome.REFUSED)],
)
def test_a_reply_may_come_after_the_commit(
    log_idx: int, count: int, outcome: Outcome, rng: random.Random
) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    replies: list[Message] = []

    def keep(sender: str, receiver: str, message: Message) -> bool:
        replies.extend([message] if message["type"] == "proposed" else [])
        return message["type"] != "proposed"

    cluster.keep = keep
    tokens = cluster.propose(follower, b"x")
    cluster.run(1.0, lambda: cluster.nodes[follower].log() == [b"x"])
    late = Received(leader, {**replies[0], "log_idx": log_idx, "count": count})
    cluster.nodes[follower].inbox += [late, late]
    cluster.turn(follower)
    assert outcomes(cluster, tokens) == [outcome]


def test_requests_are_cut_to_size(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    sent: list[Message] = []

    def keep(sender: str, receiver: str, message: Message) -> bool:
        sent.append(message)
        return True

    cluster.keep = keep
    tokens = cluster.propose(follower, *[bytes(10**6)] * 9, *[b"x"] * 5000)
    assert settle(cluster, tokens) == [Outcome.COMMITTED] * len(tokens)
    requests = [message["payloads"] for message in sent if message["type"] == "propose"]
    assert len(requests) >= 4
    assert max(sum(map(len, payloads)) for payloads in requests) <= BATCH_BYTES_MAX
    assert max(map(len, requests)) <= BATCH_ENTRIES_MAX


def test_a_leader_without_a_majority_takes_no_more_than_it_can_hold(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    cluster.isolate(leader)
    fitting = proposals.UNCOMMITTED_BYTES_MAX // 10**6
    tokens = cluster.propose(leader, *[bytes(10**6 - 16)] * (fitting + 5))
    cluster.turn(leader)
    assert outcomes(cluster, tokens) == [None] * fitting + [Outcome.REFUSED] * 5
    cluster.heal()
    assert settle(cluster, tokens)[:fitting] == [Outcome.COMMITTED] * fitting
    assert settle(cluster, cluster.propose(leader, b"room again")) == [Outcome.COMMITTED]


def test_a_follower_passes_on_no_more_than_it_can_hold(rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = others(cluster, leader)[0]
    fitting = proposals.FORWARDED_BYTES_MAX // 10**6
    tokens = cluster.propose(follower, *[bytes(10**6 - 16)] * (fitting + 5))
    cluster.turn(follower)
    assert outcomes(cluster, tokens) == [None] * fitting + [Outcome.REFUSED] * 5
    assert settle(cluster, tokens)[:fitting] == [Outcome.COMMITTED] * fitting
    assert settle(cluster, cluster.propose(follower, b"room again")) == [Outcome.COMMITTED]


@pytest.mark.parametrize("lost", ["propose", "proposed"])
def test_what_a_link_loses_that_is_made_anew_at_once_is_not_waited_for(lost: str, rng: random.Random) -> None:
    cluster = Cluster(3, rng)
    leader = cluster.elect()
    follower = next(name for name in cluster.names if name != leader)
    cluster.keep = lambda sender, receiver, message: message["type"] != lost
    tokens = cluster.propose(follower, b"x")
    cluster.run(0.1)
    cluster.keep = lambda sender, receiver, message: True
    for one, other in ((leader, follower), (follower, leader)):
        cluster.nodes[one].inbox += [Disconnected(other), Connected(other)]
    cluster.run(1.0)
    assert outcomes(cluster, tokens) != [None]
