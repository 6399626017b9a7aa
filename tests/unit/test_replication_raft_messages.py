"""The check that every message from outside must pass: what members send passes, anything else is refused."""

import random
from collections.abc import Callable

import pytest
from raft_members import Cluster

from replication.raft.events import Received
from replication.raft.journal import JournalConflict
from replication.raft.messages import (
    BATCH_BYTES_MAX,
    BATCH_ENTRIES_MAX,
    COMMAND_BYTES_MAX,
    FIELDS,
    NUMBER_MAX,
    BadMessage,
    Message,
    check_message,
)

APPEND: Message = {
    "type": "append_entries",
    "term": 3,
    "commit_index": 5,
    "prevLogIdx": 7,
    "prevLogTerm": 2,
    "entries": ((b"\x01", 8, 3), (b"\x00payload", 9, 3)),
}
LAST = {"term": 3, "last_log_index": 7, "last_log_term": 2}
SAMPLES: dict[str, Message] = {
    "append_entries": APPEND,
    "next_node_idx": {
        "type": "next_node_idx",
        "term": 3,
        "prevLogIdx": 7,
        "next_node_idx": 8,
        "reset": False,
        "success": True,
    },
    "pre_vote": {"type": "pre_vote", **LAST},
    "request_vote": {"type": "request_vote", **LAST},
    "pre_vote_ok": {"type": "pre_vote_ok", "term": 3},
    "response_vote": {"type": "response_vote", "term": 3},
    "higher_term": {"type": "higher_term", "term": 3},
    "abdicate": {"type": "abdicate", "term": 3, "successor": True},
    "propose": {"type": "propose", "term": 3, "life": 1, "request": 0, "payloads": (b"", b"x")},
    "proposed": {"type": "proposed", "term": 3, "life": 1, "request": 0, "count": 2, "log_idx": 8},
}


@pytest.mark.parametrize("kind", FIELDS)
def test_what_members_send_passes(kind: str) -> None:
    check_message(SAMPLES[kind])


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_are_exactly_those_of_the_type(kind: str) -> None:
    sample = SAMPLES[kind]
    for name in FIELDS[kind]:
        with pytest.raises(BadMessage, match="other fields"):
            check_message({key: value for key, value in sample.items() if key != name})
    with pytest.raises(BadMessage, match="other fields"):
        check_message({**sample, "transmission": "start"})


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_has_a_range(kind: str) -> None:
    sample = SAMPLES[kind]
    for name in FIELDS[kind]:
        for value in (None, -1, NUMBER_MAX + 1, "1", 1.0, b"", [], (None,), ((1, 2),)):
            with pytest.raises(BadMessage, match=f"whose {name} is"):
                check_message({**sample, name: value})
        if isinstance(sample[name], bool):
            with pytest.raises(BadMessage, match=f"whose {name} is"):
                check_message({**sample, name: 1})
        elif isinstance(sample[name], int):
            with pytest.raises(BadMessage, match=f"whose {name} is"):
                check_message({**sample, name: True})


@pytest.mark.parametrize(
    "message", [{}, {"type": 1}, {"type": "apply_command"}, {"type": "timeout_now", "term": 3}]
)
def test_other_types_are_unknown(message: Message) -> None:
    with pytest.raises(BadMessage, match="unknown type"):
        check_message(message)


@pytest.mark.parametrize(
    "entries",
    [
        [(b"\x01", 8, 3)],
        ((b"", 8, 3),),
        ((b"\x02x", 8, 3),),
        ((b"\x01x", 8, 3),),
        ((bytearray(b"\x00"), 8, 3),),
        ((b"\x00", 8),),
        ([b"\x00", 8, 3],),
        ((b"\x00" * (COMMAND_BYTES_MAX + 1), 8, 3),),
        ((b"\x01", 0, 3),),
        tuple((b"\x01", 8 + place, 3) for place in range(BATCH_ENTRIES_MAX + 1)),
        tuple((b"\x00" * (BATCH_BYTES_MAX // 4), 8 + place, 3) for place in range(4)),
    ],
)
def test_entries_have_a_form_and_a_size(entries: object) -> None:
    with pytest.raises(BadMessage, match="whose entries"):
        check_message({**APPEND, "entries": entries})


@pytest.mark.parametrize(
    "entries",
    [
        ((b"\x01", 9, 3),),
        ((b"\x01", 8, 1),),
        ((b"\x01", 8, 4),),
        ((b"\x01", 8, 3), (b"\x01", 8, 3)),
        ((b"\x01", 8, 3), (b"\x01", 9, 2)),
    ],
)
def test_entries_follow_each_other(entries: object) -> None:
    with pytest.raises(BadMessage, match="follow each other"):
        check_message({**APPEND, "entries": entries})


def test_the_largest_messages_pass() -> None:
    command = b"\x00" * COMMAND_BYTES_MAX
    check_message({**APPEND, "entries": tuple((command, 8 + place, 3) for place in range(3))})
    check_message({**SAMPLES["propose"], "payloads": (command[1:],) * 3})
    many = tuple((b"\x00", 8 + place, 3) for place in range(BATCH_ENTRIES_MAX))
    check_message({**APPEND, "entries": many})


def any_message(rng: random.Random, near: int) -> Message:
    """A message that passes the check, whatever it says."""

    def number() -> int:
        return rng.choice([1, 2, near, near + 1, rng.randint(1, near + 3), NUMBER_MAX])

    kind = rng.choice(sorted(FIELDS))
    message: dict[str, object] = {name: number() for name in FIELDS[kind]}
    message["type"] = kind
    message.update(
        {name: rng.random() < 0.5 for name in ("reset", "success", "successor") if name in message}
    )
    if kind == "propose":
        message["payloads"] = (b"x",) * rng.randint(1, 3)
    if kind == "append_entries":
        term, last_term, place = sorted(number() for _ in range(2))[1], 0, number() % (near + 5) + 1
        message.update(term=term, prevLogIdx=place, prevLogTerm=min(last_term, term))
        count = rng.randint(0, 3)
        message["entries"] = tuple((b"\x00forged", place + step, term) for step in range(1, count + 1))
    check_message(message)
    return message


def test_no_message_that_passes_makes_a_member_raise_but_for_a_contradiction(
    rng: random.Random, count: Callable[[int], int]
) -> None:
    """A member trusts what others say; but nothing they say may end it in another way than on purpose."""
    for _ in range(count(150)):
        cluster = Cluster(3, rng)
        cluster.elect()
        cluster.propose("a", b"x", b"y")
        cluster.run(0.2)
        try:
            for _ in range(25):
                name, sender = rng.sample("abc", 2)
                message = any_message(rng, cluster.nodes[name].journal.last)
                cluster.nodes[name].inbox.append(Received(sender, message))
                cluster.turn(name)
        except JournalConflict:
            continue
