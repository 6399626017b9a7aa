"""Rate limits: one caller that would be many, and one that would stand in the way of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from attacks.surface import Surface
from keyserver.rate_limits import Limits, Rate, RateLimits, network_of

FIVE = Rate(per_second=1, at_once=5)


class Asked(NamedTuple):
    """Questions in order: who asks, as gRPC names it, for which name, and how many seconds later."""

    questions: Sequence[tuple[str, str, float]]


class LimitsSurface(Surface):
    """Each limit is five at once and one a second; the verdict is on the last question."""

    def make_calls(self, peers: Sequence[str], times: int = 1, after_s: float = 0.0) -> Asked:
        """Calls by these peers, in turn, so many `times`; the last one comes later."""
        asked = [(peer, "", 0.0) for peer in peers] * times
        return Asked([*asked[:-1], (asked[-1][0], "", after_s)])

    def make_lookups(self, names: Sequence[str], times: int, peer: str = "ipv4:192.0.2.1:4000") -> Asked:
        return Asked([(peer, name, 0.0) for name in names] * times)

    def judge_call(self, asked: Asked) -> str:
        rates = self._rates()
        for peer, _, _ in asked.questions[:-1]:
            rates.call(network_of(peer))
        self._now_s += asked.questions[-1][2]
        rates.call(network_of(asked.questions[-1][0]))
        return "granted"

    def judge_lookup(self, asked: Asked) -> str:
        rates = self._rates()
        for peer, name, _ in asked.questions:
            rates.lookup(network_of(peer), name)
        return "granted"

    def _rates(self) -> RateLimits:
        self._now_s = 1000.0
        limits = Limits(peer_calls=FIVE, peer_name_lookups=FIVE)
        return RateLimits(limits, seconds=lambda: self._now_s)
