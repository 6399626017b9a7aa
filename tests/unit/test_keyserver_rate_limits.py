"""Buckets on a clock that the test turns; networks; who is inside."""

import asyncio
import random
from collections.abc import Callable

import pytest

from keyserver.frontends.crowd import Crowd, Readers
from keyserver.rate_limits import Buckets, Limits, Rate, RateLimited, RateLimits, network_of
from verifier.errors import Reason


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def taken(buckets: Buckets[str], key: str, attempts: int) -> int:
    """How many of the attempts were granted."""
    granted = 0
    for _ in range(attempts):
        try:
            buckets.take(key)
        except RateLimited:
            continue
        granted += 1
    return granted


def test_a_bucket_gives_what_it_holds_and_then_what_it_regains() -> None:
    clock = Clock()
    buckets = Buckets[str](Rate(2, 10), "too many", seconds=clock)
    assert taken(buckets, "a", 15) == 10
    assert taken(buckets, "b", 1) == 1
    clock.now = 3.0
    assert taken(buckets, "a", 15) == 6
    clock.now = 1_000.0
    assert taken(buckets, "a", 15) == 10


def test_a_refusal_says_when_a_token_will_be_there() -> None:
    clock = Clock()
    buckets = Buckets[str](Rate(0.5, 1), "too many", seconds=clock)
    buckets.take("a")
    with pytest.raises(RateLimited) as caught:
        buckets.take("a")
    assert caught.value.reason is Reason.RATE_LIMITED
    clock.now += caught.value.retry_after_s
    buckets.take("a")


def test_refused_attempts_cost_nothing() -> None:
    clock = Clock()
    buckets = Buckets[str](Rate(1, 1), "too many", seconds=clock)
    assert taken(buckets, "a", 1_000) == 1
    clock.now = 1.0
    assert taken(buckets, "a", 1) == 1


def test_a_random_caller_never_gets_more_than_its_rate(
    rng: random.Random, count: Callable[[int], int]
) -> None:
    for _ in range(count(50)):
        clock, rate = Clock(), Rate(rng.uniform(0.1, 50), rng.randint(1, 50))
        buckets = Buckets[str](rate, "too many", seconds=clock)
        granted = 0
        for _ in range(200):
            clock.now += rng.expovariate(rate.per_second)
            granted += taken(buckets, "a", rng.randint(0, 3))
        assert granted <= rate.at_once + clock.now * rate.per_second + 1e-6


def test_buckets_are_bounded_in_number_and_keep_the_recent_ones() -> None:
    buckets = Buckets[str](Rate(0.001, 1), "too many", capacity=3, seconds=Clock())
    for key in ("a", "b", "c"):
        buckets.take(key)
    assert taken(buckets, "a", 1) == 0
    assert taken(buckets, "d", 1) == 1  # b is forgotten
    assert len(buckets) == 3
    assert taken(buckets, "a", 1) == 0
    assert taken(buckets, "b", 1) == 1


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:192.0.2.1:40000", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:40000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::ffff]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:40000", "192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:40000", "fe80::/64"),
        ("unix:/run/socket", "unix:/run/socket"),
        ("ipv4:nonsense", "ipv4:nonsense"),
        ("", ""),
    ],
)
def test_a_peer_counts_as_its_network(peer: str, network: str) -> None:
    assert network_of(peer) == network


def limits_of(**fields: Rate | int) -> Limits:
    return Limits(**fields)  # type: ignore[arg-type]  # rates and numbers by name


def test_one_network_cannot_use_up_the_name_of_another() -> None:
    refused: list[str] = []
    one = limits_of(peer_name_updates=Rate(1, 2), peer_name_lookups=Rate(1, 2))
    rates = RateLimits(one, seconds=Clock(), observe=refused.append)
    for _ in range(2):
        rates.update("192.0.2.1", "alice@example.org")
        rates.lookup("192.0.2.1", "alice@example.org")
    with pytest.raises(RateLimited):
        rates.update("192.0.2.1", "alice@example.org")
    with pytest.raises(RateLimited):
        rates.lookup("192.0.2.1", "alice@example.org")
    rates.update("192.0.2.1", "bob@example.org")
    rates.update("192.0.2.2", "alice@example.org")
    rates.lookup("192.0.2.2", "alice@example.org")
    assert refused == ["peer_name_updates", "peer_name_lookups"]


def test_an_index_has_its_own_bucket() -> None:
    rates = RateLimits(limits_of(index_updates=Rate(1, 1)), seconds=Clock())
    rates.signed_update(bytes(32))
    rates.signed_update(bytes([1]) * 32)
    with pytest.raises(RateLimited):
        rates.signed_update(bytes(32))


def test_no_refusal_shows_a_name() -> None:
    rates = RateLimits(limits_of(peer_name_lookups=Rate(1, 1)), seconds=Clock())
    rates.lookup("192.0.2.1", "alice@example.org")
    with pytest.raises(RateLimited) as caught:
        rates.lookup("192.0.2.1", "alice@example.org")
    assert "alice" not in str(caught.value)
    assert "192.0.2.1" not in str(caught.value)


def test_a_crowd_counts_calls_streams_and_bytes_and_forgets_who_left() -> None:
    refused: list[str] = []
    granted = limits_of(
        peer_calls_at_once=3, peer_streams=1, streams=2, peer_request_bytes=100, request_bytes=150
    )
    crowd = Crowd(granted, refused.append)
    stream = crowd.enter("a", stream=True)
    with pytest.raises(RateLimited):
        crowd.enter("a", stream=True)
    crowd.enter("b", stream=True)
    with pytest.raises(RateLimited):
        crowd.enter("c", stream=True)
    first, second = crowd.enter("a", stream=False), crowd.enter("a", stream=False)
    with pytest.raises(RateLimited):
        crowd.enter("a", stream=False)
    first.carry(60)
    with pytest.raises(RateLimited):
        second.carry(41)
    second.carry(40)
    other = crowd.enter("b", stream=False)
    with pytest.raises(RateLimited):
        other.carry(51)
    other.carry(50)
    names = ["peer_streams", "streams", "peer_calls_at_once", "peer_request_bytes", "request_bytes"]
    assert refused == names
    for visit in (first, first, second, stream):
        visit.leave()
    again = crowd.enter("a", stream=True)
    again.carry(100)


def test_readers_take_turns_by_connection_and_in_all() -> None:
    async def run() -> None:
        readers = Readers(total=3, each=2)
        reading, leave = [], asyncio.Event()

        async def read(connection: str) -> None:
            async with readers.turn(connection):
                reading.append(connection)
                await leave.wait()

        tasks = [asyncio.create_task(read(name)) for name in ("a", "a", "a", "b", "c")]
        for _ in range(10):
            await asyncio.sleep(0)
        assert sorted(reading) == ["a", "a", "b"]
        tasks[0].cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(reading) == 4
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(reading) == ["a", "a", "a", "b", "c"]
        assert len(readers) == 0

    asyncio.run(run())
