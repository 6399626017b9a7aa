"""Buckets on a clock that the test turns; networks; who is inside."""

import asyncio
import random
from collections.abc import Callable

import msgspec
import pytest
from google.rpc import error_details_pb2, status_pb2

from keyserver.frontends import crowd, errors
from keyserver.frontends.crowd import Crowd, FairShare, Readers
from keyserver.rate_limits import PROMPT_PROOFS, Buckets, Limits, Rate, RateLimited, RateLimits, network_of
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


def test_lookups_that_need_a_proof_wait_at_the_pace_of_their_rate_beyond_the_first() -> None:
    clock = Clock()
    rates = RateLimits(limits_of(peer_unknown_lookups=Rate(10, PROMPT_PROOFS + 20)), seconds=clock)
    assert {rates.unknown_lookup("a") for _ in range(PROMPT_PROOFS)} == {0.0}
    waits = [rates.unknown_lookup("a") for _ in range(20)]
    assert waits == pytest.approx([number / 10 for number in range(1, 21)])
    with pytest.raises(RateLimited):
        rates.unknown_lookup("a")
    assert rates.unknown_lookup("b") == 0.0
    clock.now = 1.0  # ten have had their turn
    assert rates.unknown_lookup("a") == pytest.approx(1.1)
    clock.now = 100.0
    assert rates.unknown_lookup("a") == 0.0


def test_who_lifts_the_rate_waits_for_nothing() -> None:
    clock = Clock()
    rates = RateLimits(limits_of(peer_unknown_lookups=Rate(1e9, 1e9)), seconds=clock)
    for _ in range(1_000):
        clock.now += 1e-6
        assert rates.unknown_lookup("a") == 0.0


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
    inside = Crowd(granted, refused.append)
    stream = inside.enter("a", stream=True)
    with pytest.raises(RateLimited):
        inside.enter("a", stream=True)
    inside.enter("b", stream=True)
    with pytest.raises(RateLimited):
        inside.enter("c", stream=True)
    first, second = inside.enter("a", stream=False), inside.enter("a", stream=False)
    with pytest.raises(RateLimited):
        inside.enter("a", stream=False)
    first.carry(60)
    with pytest.raises(RateLimited):
        second.carry(41)
    second.carry(40)
    other = inside.enter("b", stream=False)
    with pytest.raises(RateLimited):
        other.carry(51)
    other.carry(50)
    names = ["peer_streams", "streams", "peer_calls_at_once", "peer_request_bytes", "request_bytes"]
    assert refused == names
    for visit in (first, first, second, stream):
        visit.leave()
    again = inside.enter("a", stream=True)
    again.carry(100)


class Reading:
    """Readers whose requests arrive when the test says."""

    def __init__(self, total: int) -> None:
        self.readers = Readers(total)
        self.begun: list[str] = []
        self.arrived = asyncio.Event()

    def start(self, name: str, seconds: float = 60.0) -> asyncio.Task[str]:
        connection, network = f"{name}:1", name.rstrip("0123456789")

        async def read() -> str:
            self.begun.append(name)
            await self.arrived.wait()
            return name

        return asyncio.create_task(self.readers.read(connection, network, seconds, read))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_connection_and_one_network_read_only_so_many_requests_at_once() -> None:
    async def run() -> None:
        reading = Reading(total=100)
        tasks = [reading.start("a1") for _ in range(20)]
        await settled()
        assert len(reading.begun) == crowd.READERS_PER_CONNECTION
        tasks += [reading.start(f"a{number}") for number in range(2, 50)]
        await settled()
        assert len(reading.begun) == crowd.READERS_PER_NETWORK
        tasks.append(reading.start("b"))
        await settled()
        assert reading.begun[-1] == "b"
        tasks[0].cancel()
        reading.arrived.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(one, str) for one in done) == len(tasks) - 1
        assert len(reading.readers) == 0

    asyncio.run(run())


def test_who_reads_slowly_while_others_wait_is_refused_and_who_waits_gets_the_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crowd, "HURRY_SECONDS", 0.01)

    async def run() -> None:
        reading = Reading(total=2)
        slow = [reading.start("a"), reading.start("b")]
        await settled()
        waiting = reading.start("c")
        refused = await asyncio.gather(*slow, return_exceptions=True)
        assert all(isinstance(one, RateLimited) for one in refused)
        reading.arrived.set()
        assert await waiting == "c"

    asyncio.run(run())


def test_who_waits_is_not_refused_because_a_readers_time_is_over_just_now() -> None:
    async def run() -> None:
        reading = Reading(total=1)
        slow = reading.start("a")
        await settled()
        (patience,) = reading.readers._reading
        patience.reschedule(0)  # over in the next round of the loop, BEFORE the other begins to wait
        waiting = reading.start("b")
        assert isinstance((await asyncio.gather(slow, return_exceptions=True))[0], RateLimited)
        reading.arrived.set()
        assert await waiting == "b"

    asyncio.run(run())


def test_a_request_that_never_comes_runs_into_its_own_time() -> None:
    async def run() -> None:
        with pytest.raises(TimeoutError):
            await Reading(total=2).start("a", seconds=0.01)

    asyncio.run(run())


def test_a_share_goes_round_the_networks_and_their_connections() -> None:
    async def run() -> None:
        share, order = FairShare(), list[str]()

        async def act(connection: str) -> None:
            await share.turn(connection.lower(), connection)  # A and a: two connections of one network
            order.append(connection)

        tasks = [asyncio.create_task(act(name)) for name in "aaaaAAbbc"]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "".join(order) == "aabcAbAa"
        await act("d")
        assert order[-1] == "d"

    asyncio.run(run())


def test_penance_is_for_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "PENANCE_SECONDS", 0.01)
    monkeypatch.setattr(crowd, "PENITENTS_PER_NETWORK", 2)

    async def run() -> None:
        penance = crowd.Penance()
        held = [asyncio.create_task(penance.hold("a")) for _ in range(3)]
        assert await asyncio.gather(*held) == [True, True, False]
        assert await penance.hold("a")

    asyncio.run(run())


def test_a_refusal_tells_the_caller_when_to_try_again() -> None:
    status = status_pb2.Status.FromString(errors.status_details(RateLimited("too many", 1.5)))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, retry.retry_delay.ToMilliseconds()) == ("RATE_LIMITED", 1500)


@pytest.mark.parametrize(
    "bad", [{"peer_calls": {"per_second": 0, "at_once": 1}}, {"streams": 0}, {"unknown": 1}, {"streams": 1.5}]
)
def test_limits_that_grant_nothing_or_are_unknown_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, Limits)
