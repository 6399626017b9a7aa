"""What waits for a member's next turn: nothing is lost or overtaken, and a turn takes no more than it may."""

from collections.abc import Callable
from random import Random

import pytest

import replication.raft.member as member_module
from replication.raft.events import Event, Proposed, Received
from replication.raft.member import _Inbox

BYTES_MAX = 100
EVENTS_MAX = 8
SENDERS = ("r2", "r3")


def test_what_was_put_is_taken_in_order_and_in_pieces_within_the_limits(
    rng: Random, count: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "TURN_BYTES_MAX", BYTES_MAX)
    monkeypatch.setattr(member_module, "TURN_EVENTS_MAX", EVENTS_MAX)
    inbox = _Inbox()
    waiting: list[tuple[Event, int]] = []
    for number in range(count(300)):
        for _ in range(rng.randrange(6)):
            events: list[Event] = [Proposed(number, b""), *(Received(name, {}) for name in SENDERS)]
            event = rng.choice(events)
            size = rng.randrange(40)
            waiting.append((event, size))
            if isinstance(event, Received):
                inbox.receive(event, size)
            else:
                inbox.put(event, size)
        if rng.random() < 0.7:
            taken = inbox.take()
            expected, waiting = waiting[: len(taken)], waiting[len(taken) :]
            assert taken == [event for event, _ in expected]
            assert len(taken) <= EVENTS_MAX
            assert sum(size for _, size in expected[:-1]) < BYTES_MAX
            is_full = len(taken) == EVENTS_MAX or sum(size for _, size in expected) >= BYTES_MAX
            assert is_full or not waiting
        for name in SENDERS:
            held = [size for event, size in waiting if isinstance(event, Received) and event.sender == name]
            assert inbox._held[name] == sum(held)
