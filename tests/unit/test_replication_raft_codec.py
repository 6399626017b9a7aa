"""The codec: every message comes back as it was, and any bytes give a message or BadMessage, nothing else."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from e2eks.v1 import raft_pb2 as pb

from replication.raft.codec import Encoder, decode
from replication.raft.frames import FRAME_BYTES_MAX
from replication.raft.messages import (
    BATCH_BYTES_MAX,
    BATCH_ENTRIES_MAX,
    FIELDS,
    NO_OP,
    NUMBER_MAX,
    BadMessage,
    check_message,
)
from replication.types import PAYLOAD_BYTES_MAX


def number(rng: random.Random) -> int:
    return rng.choice((1, 2, 127, 128, 2**32, NUMBER_MAX - BATCH_ENTRIES_MAX))


def entries(rng: random.Random, index: int, term: int) -> tuple[tuple[bytes, int, int], ...]:
    made: list[tuple[bytes, int, int]] = []
    before = max(0, term - 3)
    for offset in range(1, rng.choice((1, 2, 5, 300))):
        before = rng.randrange(before, term + 1)
        command = NO_OP if rng.random() < 0.1 else b"\0" + rng.randbytes(rng.choice((0, 1, 200)))
        made.append((command, index + offset, before))
    return tuple(made)


def random_message(rng: random.Random, kind: str) -> dict[str, Any]:
    message: dict[str, Any] = {"type": kind}
    for name in FIELDS[kind]:
        if name in ("reset", "success", "successor"):
            message[name] = rng.random() < 0.5
        elif name == "payloads":
            message[name] = tuple(rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 40)))
        elif name != "entries":
            message[name] = number(rng)
    if kind == "append_entries":
        message["prevLogTerm"] = max(0, message["term"] - 3)
        message["entries"] = entries(rng, message["prevLogIdx"], message["term"])
    check_message(message)
    return message


@pytest.mark.parametrize("kind", FIELDS)
def test_every_message_comes_back_as_it_was(
    kind: str, rng: random.Random, count: Callable[[int], int]
) -> None:
    for _ in range(count(50)):
        message = random_message(rng, kind)
        assert decode(Encoder().encode(message)) == message


def test_numbers_and_flags_may_be_zero() -> None:
    for kind in ("pre_vote_ok", "response_vote", "higher_term"):
        assert decode(Encoder().encode({"type": kind, "term": 0})) == {"type": kind, "term": 0}


def append(commands: list[bytes], first: int = 2, term: int = 5) -> dict[str, Any]:
    made = tuple((command, index, term) for index, command in enumerate(commands, first))
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": 1,
        "prevLogIdx": first - 1,
        "prevLogTerm": term,
        "entries": made,
    }


@pytest.mark.parametrize(
    "commands",
    [
        [b"\0" + bytes(PAYLOAD_BYTES_MAX)],
        [b"\0" + bytes(BATCH_BYTES_MAX // 4 - 64)] * 4,
        [b"\0" + bytes(100)] * BATCH_ENTRIES_MAX,
    ],
    ids=["one", "four", "many"],
)
def test_the_largest_messages_fit_into_a_frame(commands: list[bytes]) -> None:
    encoded = Encoder().encode(append(commands))
    assert len(encoded) <= FRAME_BYTES_MAX
    assert decode(encoded) == append(commands)


def test_one_encoder_serves_members_that_are_differently_far() -> None:
    commands = [b"\0%d" % number for number in range(40)]
    everything = append(commands)
    later = append(commands[30:], first=32)
    encoder = Encoder()
    for message in (everything, later, everything, append([])):
        assert decode(encoder.encode(message)) == message


def test_any_bytes_are_a_message_or_refused(rng: random.Random, count: Callable[[int], int]) -> None:
    seen = {True: 0, False: 0}
    for _ in range(count(3000)):
        data = bytearray(Encoder().encode(random_message(rng, rng.choice(list(FIELDS)))))
        for _ in range(rng.randrange(1, 4)):
            where = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[where] ^= 1 << rng.randrange(8)
                case 1:
                    del data[where : where + rng.randrange(1, 5)]
                case _:
                    data[where:where] = rng.randbytes(rng.randrange(1, 5))
            data = data or bytearray(b"\0")
        try:
            message = decode(bytes(data))
        except BadMessage:
            seen[False] += 1
        else:
            check_message(message)
            assert Encoder().encode(message) == bytes(data)
            seen[True] += 1
    assert all(seen.values())


VALID = pb.Raft(higher_term=pb.Term(term=7)).SerializeToString(deterministic=True)
RUN = pb.TermRun(term=5, commands=[b"\0a"])


def appending(**fields: Any) -> bytes:
    usual: dict[str, Any] = {"term": 5, "commit_index": 1, "prev_log_index": 1, "prev_log_term": 5}
    return pb.Raft(append_entries=pb.AppendEntries(**{**usual, **fields})).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unknown type"),
        (b"\x82\x01\x00", "deterministic"),  # field 16: a message of another version
        (VALID + b"\x82\x01\x00", "deterministic"),  # the same, beside one that is known
        (VALID[:-1], "no message"),
        (VALID + VALID, "deterministic"),
        (b"\x3a\x03\x08\x87\x00", "deterministic"),  # term 7 in two bytes
        (b"\x3a\x04\x08\x07\x10\x01", "deterministic"),  # an unknown field of Term
        (b"cos\nsystem\n(S'exit'\ntR.", "no message"),  # a pickle that would run a command
        (b"GET / HTTP/1.1\r\n\r\n", "no message"),
        (pb.Raft(higher_term=pb.Term(term=2**63)).SerializeToString(), "term is out of range"),
        (appending(entries=b"\xff"), "no message"),
        (appending(entries=pb.Entries(runs=[RUN, RUN]).SerializeToString()), "runs of one term"),
        (appending(entries=pb.Entries(runs=[pb.TermRun(term=5)]).SerializeToString()), "runs of one term"),
        (appending(entries=pb.Entries(runs=[RUN]).SerializeToString() + b"\x10\x01"), "deterministic"),
        (appending(term=4, entries=pb.Entries(runs=[RUN]).SerializeToString()), "follow each other"),
        (appending(prev_log_index=0), "prevLogIdx is out of range"),
        (pb.Raft(propose=pb.ProposeAtLeader(term=1)).SerializeToString(), "payloads is out of range"),
    ],
)
def test_what_no_member_sends_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        decode(data)
    assert decode(VALID) == {"type": "higher_term", "term": 7}
