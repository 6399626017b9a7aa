"""What a leader knows of one follower's share of its log: how much is on the way, and when to stop sending.

A follower is streamed to while its answers fit what was sent. After a refusal, or on a new link, it is
probed: empty messages ask where its log fits, and only the answer starts the stream again. So a slow or
absent member costs the leader at most WINDOW_BYTES of messages, and little is sent twice for nothing.
"""

from collections import deque

# On the way to one follower and not yet acknowledged. Two full messages keep a link busy.
WINDOW_BYTES = 8 * 1024 * 1024


class Progress:
    """What is on the way to one follower."""

    __slots__ = ("_in_flight", "_in_flight_bytes", "due", "heard", "probing")

    def __init__(self) -> None:
        self.heard: float | None = None  # when its last message came, of whatever kind
        self.probing = False
        self.due = False  # something is to be sent in this turn
        self._in_flight: deque[tuple[int, int]] = deque()  # last index of a message, its bytes
        self._in_flight_bytes = 0

    def restart(self, *, probing: bool) -> None:
        """Take all that was on the way for lost."""
        self.probing = probing
        self.due = True
        self._in_flight.clear()
        self._in_flight_bytes = 0

    def may_send(self) -> bool:
        """Tell whether entries may be sent now."""
        return not self.probing and self._in_flight_bytes < WINDOW_BYTES

    def sent(self, last_index: int, size: int) -> None:
        """Note that entries up to `last_index` are on the way."""
        self._in_flight.append((last_index, size))
        self._in_flight_bytes += size

    def acknowledged(self, next_index: int) -> None:
        """Note that the follower has all entries below `next_index`."""
        self.probing = False
        while self._in_flight and self._in_flight[0][0] < next_index:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
