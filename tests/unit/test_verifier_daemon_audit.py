"""An audit says "lawful" of a whole log only."""

from collections.abc import Iterator

import pytest
from streams.build import Stream, steps_message

from verifier.daemon.audit import audit
from verifier.daemon.failures import Unreachable


class Page:
    """A stream of some messages, which may end because its time is over."""

    def __init__(self, messages: Iterator[bytes], overdue: bool) -> None:
        self._messages, self.overdue = messages, overdue

    def read(self) -> bytes | None:
        return next(self._messages, None)

    def cancel(self) -> None:
        """Nothing is open."""


class Replica:
    """Serves the first `serves` steps of a stream; then ends the page, or hangs."""

    def __init__(self, stream: Stream, serves: int, hangs: bool) -> None:
        self._steps, self._hangs = stream.steps[:serves], hangs

    def follow(self, start: int, *, timeout_s: float, page_size: int = 0) -> Page:
        return Page((steps_message(step) for step in self._steps[start - 1 :]), self._hangs)


def test_a_replica_that_hangs_in_the_middle_is_not_taken_for_the_end() -> None:
    stream = Stream().grow(4)
    whole = audit(stream.realm, Replica(stream, len(stream.steps), False), lambda _: None)  # type: ignore[arg-type]
    assert (whole.steps, whole.epoch) == (len(stream.steps), 4)
    with pytest.raises(Unreachable, match="after step 3"):
        audit(stream.realm, Replica(stream, 3, True), lambda _: None)  # type: ignore[arg-type]
