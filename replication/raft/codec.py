"""Messages of the core as bytes and back: protobuf, strictly, never pickle.

What is decoded equals its own deterministic encoding and has passed `check_message`; anything else is a
BadMessage, whatever the bytes. Names in the core are pysyncobj's, names on the wire are ours.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

import google.protobuf.message
from e2eks.v1 import raft_pb2 as pb
from google.protobuf.message import DecodeError

from replication.raft.messages import BadMessage, Entry, Message, check_message

M = TypeVar("M", bound=google.protobuf.message.Message)

_VOTE = {"term": "term", "last_log_index": "last_log_index", "last_log_term": "last_log_term"}
_TERM = {"term": "term"}
# type -> field of the core -> field on the wire. Entries alone are translated.
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "pre_vote": _VOTE,
    "pre_vote_ok": _TERM,
    "request_vote": _VOTE,
    "response_vote": _TERM,
    "append_entries": {
        "term": "term",
        "commit_index": "commit_index",
        "prevLogIdx": "prev_log_index",
        "prevLogTerm": "prev_log_term",
        "entries": "entries",
    },
    "next_node_idx": {
        "term": "term",
        "prevLogIdx": "prev_log_index",
        "next_node_idx": "next_index",
        "reset": "reset",
        "success": "success",
    },
    "higher_term": _TERM,
    "abdicate": {"term": "term", "successor": "successor"},
    "propose": {"term": "term", "life": "life", "request": "request", "payloads": "payloads"},
    "proposed": {
        "term": "term",
        "life": "life",
        "request": "request",
        "count": "count",
        "log_idx": "log_index",
    },
}
_term_of = itemgetter(2)


class Encoder:
    """Encodes the messages of one turn. Entries that several members get are encoded once."""

    def __init__(self) -> None:
        self._encoded: dict[tuple[int, int, int], bytes] = {}

    def encode(self, message: Message) -> bytes:
        """Return the bytes of a message that would pass check_message."""
        kind = message["type"]
        fields: dict[str, Any] = {wire: message[name] for name, wire in _FIELDS[kind].items()}
        if kind == "append_entries":
            fields["entries"] = self._entries(fields["entries"])
        chosen: dict[str, Any] = {kind: fields}
        return pb.Raft(**chosen).SerializeToString(deterministic=True)

    def _entries(self, entries: Sequence[Entry]) -> bytes:
        if not entries:
            return b""
        # Within a turn the first index and the newest entry name all between: the log has one history.
        name = (entries[0][1], entries[-1][1], entries[-1][2])
        if name not in self._encoded:
            runs = groupby(entries, _term_of)
            made = [pb.TermRun(term=term, commands=[entry[0] for entry in run]) for term, run in runs]
            self._encoded[name] = pb.Entries(runs=made).SerializeToString(deterministic=True)
        return self._encoded[name]


def decode(data: bytes) -> Message:
    """Return the message that `data` encodes. Raises BadMessage."""
    whole = _parse(pb.Raft, data)
    kind = whole.WhichOneof("message")
    if kind is None:
        raise BadMessage("a message of unknown type")
    inner = getattr(whole, kind)
    message: dict[str, Any] = {"type": kind}
    for name, wire in _FIELDS[kind].items():
        message[name] = getattr(inner, wire)
    if kind == "append_entries":
        message["entries"] = _decode_entries(message["entries"], message["prevLogIdx"])
    elif kind == "propose":
        message["payloads"] = tuple(message["payloads"])
    check_message(message)
    return message


def _decode_entries(data: bytes, index: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    before = -1
    for run in _parse(pb.Entries, data).runs:
        if run.term == before or not run.commands:
            raise BadMessage("entries that are not in runs of one term")
        before = run.term
        entries += [(command, index + number, before) for number, command in enumerate(run.commands, 1)]
        index += len(run.commands)
    return tuple(entries)


def _parse(kind: type[M], data: bytes) -> M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise BadMessage("bytes that are no message") from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != data:
        raise BadMessage("a message that is not in its deterministic encoding")
    return message
