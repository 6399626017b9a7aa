"""What the stage of the demo and of the tests with processes says of its replicas."""

import pytest

from keyserver.demo.stage import Stage


def test_who_leads_is_said_as_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once more, nobody may lead."""
    answers = iter(["", "r1", "r2", ""])
    monkeypatch.setattr(Stage, "leader", lambda self: next(answers))
    assert object.__new__(Stage).wait_leader(other_than="r1") == "r2"
