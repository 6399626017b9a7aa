"""How much one caller may ask: buckets of tokens by network, name and index, bounded in number.

A bucket holds `at_once` tokens and regains `per_second`; every act takes one. Who is forgotten, because
others were seen since, starts with a full bucket: memory is bounded, and whoever makes others forgotten has
used up the bucket of its own network. Nothing here reads a clock: `seconds` is given.

Law: a limit that a stranger can use up must not stand in the way of anybody else. So names are counted for
each network apart, and an index only by updates that its own keys have signed.
"""

from __future__ import annotations

import ipaddress
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from verifier.errors import Reason, Refused

K = TypeVar("K", bound=Hashable)

NETWORKS_REMEMBERED = 4_096  # some 200 bytes each
NAMES_REMEMBERED = 16_384  # pairs of network and name; some 400 bytes each
INDEXES_REMEMBERED = 16_384
PROMPT_PROOFS = 50  # lookups of names without a VRF proof that one network has answered at once
IPV6_PREFIX = 64  # what one subscriber is given: single addresses of it cost nothing


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens a second, and tokens at once after a rest."""

    per_second: Annotated[float, msgspec.Meta(gt=0)]
    at_once: Annotated[float, msgspec.Meta(ge=1)]


Number = Annotated[int, msgspec.Meta(ge=1)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one replica grants; every field may be set in [limits] of the configuration.

    A peer is a network: one IPv4 address, or one /64 of IPv6.
    """

    peer_calls: Rate = Rate(2_000, 20_000)  # about what one core answers: a peer may not take a second one
    peer_updates: Rate = Rate(500, 5_000)  # half of what one replica decides
    peer_unknown_names: Rate = Rate(200, 1_000)  # in updates and erasures: an import of that many at once
    peer_unknown_lookups: Rate = Rate(100, 300)  # a VRF proof each; all but PROMPT_PROOFS wait, at this pace
    peer_name_lookups: Rate = Rate(200, 2_000)  # a mail server that asks for a busy correspondent
    peer_name_updates: Rate = Rate(10, 100)  # a person waits for each; the rest are retries
    index_updates: Rate = Rate(1, 20)  # signed by the index's own keys; UPDATES_PER_DAY may be spent at once
    connection_refusals: Rate = Rate(
        20, 256
    )  # calls refused at once or cancelled; then the connection is cut
    peer_refusals: Rate = Rate(50, 1_000)  # the same of all connections: who comes back is cut sooner
    peer_new_connections: Rate = Rate(20, 100)  # a TLS handshake each, some 2 ms; more are not heard
    peer_connections: Number = 512  # of all listeners; more are cut
    peer_calls_at_once: Number = 1_500  # of 2,048 in all; waiting updates are most of them
    peer_streams: Number = 256  # verifiers behind one gateway, and some that reconnect
    streams: Number = 320  # each may hold one unread page twice: 40 MiB
    request_bytes: Number = 24 * 1024 * 1024  # of all calls under way; memory holds them about twice
    peer_request_bytes: Number = 16 * 1024 * 1024
    request_timeout_ms: Number = 10_000  # for a request of 256 KiB to arrive whole
    send_timeout_ms: Number = 10_000  # for the caller to take one message


@dataclass(frozen=True, slots=True)
class Later:
    """What is granted, but not before so many seconds have passed; then `answer` makes it."""

    seconds: float
    answer: Callable[[], bytes]


class RateLimited(Refused):
    """RATE_LIMITED, with advice when to try again."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(Reason.RATE_LIMITED, what)
        self.retry_after_s = retry_after_s


class Buckets(Generic[K]):
    """A bucket for each key, of the `capacity` most recently used keys. For any thread.

    `seconds` is a monotonic clock. `observe` is told of every refusal.
    """

    def __init__(
        self,
        rate: Rate,
        what: str,
        *,
        capacity: int = NETWORKS_REMEMBERED,
        seconds: Callable[[], float] = time.monotonic,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        self._rate = rate
        self._what = what
        self._capacity = capacity
        self._seconds = seconds
        self._observe = observe
        self._buckets: OrderedDict[K, tuple[float, float]] = OrderedDict()  # tokens, at which second
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K) -> float:
        """Take a token; how many are left. Raises RateLimited when there is none."""
        with self._lock:
            now, rate = self._seconds(), self._rate
            tokens, since = self._buckets.pop(key, (rate.at_once, now))
            tokens = min(rate.at_once, tokens + (now - since) * rate.per_second)
            granted = tokens >= 1
            self._buckets[key] = (tokens - granted, now)
            if len(self._buckets) > self._capacity:
                self._buckets.popitem(last=False)
        if not granted:
            self._observe()
            raise RateLimited(f"{self._what}; slow down", (1 - tokens) / rate.per_second)
        return tokens - 1


class Arrivals:
    """How many connections each network has begun, against its rate; what came above it is owed.

    They are counted once they are there: whoever owes should be let in no more until it is paid.
    """

    def __init__(self, rate: Rate, *, seconds: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._seconds = seconds
        self._since = seconds()
        self._used: dict[str, float] = {}  # tokens that are not back yet

    def count(self, arrived: Mapping[str, int]) -> list[str]:
        """Count these; the networks that owe, the deepest in debt first."""
        now = self._seconds()
        regained, self._since = (now - self._since) * self._rate.per_second, now
        left = {network: used - regained for network, used in self._used.items() if used > regained}
        for network, number in arrived.items():
            left[network] = left.get(network, 0.0) + number
        self._used = left
        owing = [network for network, used in left.items() if used > self._rate.at_once]
        return sorted(owing, key=lambda network: -left[network])


class RateLimits:
    """The buckets of one replica. `observe` is told the name of the limit that refused.

    Raises of all methods: RateLimited.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        seconds: Callable[[], float] = time.monotonic,
        observe: Callable[[str], None] = lambda _: None,
    ) -> None:
        def buckets(name: str, what: str, capacity: int) -> Buckets[Any]:
            rate: Rate = getattr(limits, name)
            return Buckets(rate, what, capacity=capacity, seconds=seconds, observe=lambda: observe(name))

        networks, names = NETWORKS_REMEMBERED, NAMES_REMEMBERED
        self._calls = buckets("peer_calls", "too many calls from one address", networks)
        self._updates = buckets("peer_updates", "too many updates from one address", networks)
        self._name_lookups = buckets("peer_name_lookups", "one address asks too often for one name", names)
        self._name_updates = buckets("peer_name_updates", "one address updates one name too often", names)
        self._index_updates = buckets("index_updates", "too many updates of one entry", INDEXES_REMEMBERED)
        what = "too many names that are not registered, from one address"
        self.unknown_names: Buckets[str] = buckets("peer_unknown_names", what, networks)
        self._unknown_lookups = buckets("peer_unknown_lookups", what, networks)
        self._proofs = limits.peer_unknown_lookups
        what = "too many calls refused or cancelled"
        self._connection_refusals = buckets("connection_refusals", what, networks)
        self._peer_refusals = buckets("peer_refusals", what, networks)

    def call(self, peer: str) -> None:
        """Any call."""
        self._calls.take(peer)

    def lookup(self, peer: str, user_id: str) -> None:
        """A lookup, registered or not."""
        self._name_lookups.take((peer, user_id))

    def unknown_lookup(self, peer: str) -> float:
        """A lookup of a name that must be proved; seconds until it is its turn.

        A burst of them would be accepted and proved one after the other, before anybody who calls next.
        """
        waiting = self._proofs.at_once - PROMPT_PROOFS - self._unknown_lookups.take(peer)
        return max(0.0, waiting / self._proofs.per_second)

    def update(self, peer: str, user_id: str) -> None:
        """An update of which nothing is verified yet."""
        self._updates.take(peer)
        self._name_updates.take((peer, user_id))

    def signed_update(self, index: bytes) -> None:
        """An update that the keys of the index have signed."""
        self._index_updates.take(index)

    def refusal(self, connection: str) -> None:
        """A call of a connection that was refused at once, or cancelled before it was answered."""
        self._peer_refusals.take(network_of(connection))
        self._connection_refusals.take(connection)


@lru_cache(NETWORKS_REMEMBERED)
def network_of(peer: str) -> str:
    """The network that a gRPC peer ("ipv4:HOST:PORT", "ipv6:%5BHOST%5D:PORT", "unix:...") is counted as."""
    kind, _, rest = peer.partition(":")
    host = urllib.parse.unquote(rest.rpartition(":")[0]).strip("[]").partition("%")[0]
    if kind not in ("ipv4", "ipv6"):
        return peer
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(address), IPV6_PREFIX), strict=False))
        address = address.ipv4_mapped
    return str(address)
