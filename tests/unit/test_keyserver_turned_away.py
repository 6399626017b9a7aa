"""What strangers at the replication port bring into the log."""

from structlog.testing import capture_logs

from keyserver.turned_away import QUIET_S, REASONS, TurnedAway


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_knocks_without_end_is_written_down_once_a_minute() -> None:
    clock = Clock()
    tell = TurnedAway(clock)
    with capture_logs() as logs:
        for number in range(1_000):
            tell(f"192.0.2.1:{number}", "no certificate")
        tell("192.0.2.2:1", "hung up")  # another matter
        clock.now = QUIET_S
        tell("192.0.2.1:9", "no certificate")
    said = [(line["address"], line["reason"], line["times"]) for line in logs]
    assert said == [
        ("192.0.2.1:0", "no certificate", 1),
        ("192.0.2.2:1", "hung up", 1),
        ("192.0.2.1:9", "no certificate", 1_000),
    ]


def test_reasons_are_remembered_in_bounded_number() -> None:
    tell = TurnedAway(Clock())
    with capture_logs() as logs:
        for number in range(3 * REASONS):
            tell("192.0.2.1:1", f"reason {number}")
    assert len(logs) == 3 * REASONS
    assert len(tell._known) == REASONS
