"""What members of a cluster say to each other: one table, and the check that every message must pass.

Inside the core a message is a dict as pysyncobj makes them, so its names are pysyncobj's; the additions are
ours. A message that passed `check_message` cannot make the core raise, whoever sent it; that it is true
cannot be checked: Raft trusts the members of its cluster.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replication.types import PAYLOAD_BYTES_MAX, ReplicationError

# Messages and log entries are (command, index, term), a command is one byte of kind and a payload.
Message = Mapping[str, Any]
Entry = tuple[bytes, int, int]

APPLICATION = b"\x00"
NO_OP = b"\x01"  # what a leader begins its term with; counts as no entry of the application
COMMAND_BYTES_MAX = 1 + PAYLOAD_BYTES_MAX

# Terms and indices stay far below 2**64, so that adding one is never a question.
NUMBER_MAX = 2**62
# One message: large enough for the largest payloads, small enough that a slow peer holds little memory.
BATCH_BYTES_MAX = 4 * 1024 * 1024
BATCH_ENTRIES_MAX = 4096
EACH_BYTES = 16  # what an entry weighs in a message besides its payload


class BadMessage(ReplicationError):
    """A message that no member of this version sends. It changed nothing."""


def check_message(message: Message) -> None:
    """Check the type, the fields and the sizes of a message that was decoded. Raises BadMessage."""
    fields = FIELDS.get(_type_of(message))
    if fields is None:
        raise BadMessage("a message of unknown type")
    if message.keys() - {"type"} != fields.keys():
        raise BadMessage(f"a {message['type']} with other fields than its own")
    for name, is_right in fields.items():
        if not is_right(message[name]):
            raise BadMessage(f"a {message['type']} whose {name} is out of range")
    if message["type"] == "append_entries" and not _continues(message):
        raise BadMessage("an append_entries whose entries do not follow each other")


def batch_bytes(payloads: Sequence[bytes]) -> int:
    """Return what payloads or commands weigh against BATCH_BYTES_MAX: their bytes and some for each."""
    return sum(map(len, payloads)) + EACH_BYTES * len(payloads)


def _type_of(message: Message) -> str:
    kind = message.get("type")
    return kind if isinstance(kind, str) else ""


def _number(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _index(value: object) -> bool:
    return type(value) is int and 1 <= value <= NUMBER_MAX


def _flag(value: object) -> bool:
    return type(value) is bool


def _entries(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) > BATCH_ENTRIES_MAX:
        return False
    return all(map(_is_entry, value)) and _fits([entry[0] for entry in value])


def _is_entry(entry: object) -> bool:
    if type(entry) is not tuple or len(entry) != 3:
        return False
    command, index, term = entry
    if type(command) is not bytes or not 1 <= len(command) <= COMMAND_BYTES_MAX:
        return False
    known = command[0] == APPLICATION[0] or command == NO_OP
    numbers = (
        type(index) is int and type(term) is int and 1 <= index <= NUMBER_MAX and 0 <= term <= NUMBER_MAX
    )
    return known and numbers


def _payloads(value: object) -> bool:
    if not isinstance(value, tuple) or not 1 <= len(value) <= BATCH_ENTRIES_MAX:
        return False
    sized = all(type(payload) is bytes and len(payload) <= PAYLOAD_BYTES_MAX for payload in value)
    return sized and _fits(value)


def _fits(parts: Sequence[bytes]) -> bool:
    return len(parts) == 1 or batch_bytes(parts) <= BATCH_BYTES_MAX


def _continues(message: Message) -> bool:
    index, term = message["prevLogIdx"], message["prevLogTerm"]
    for _, entry_index, entry_term in message["entries"]:
        if entry_index != index + 1 or entry_term < term:
            return False
        index, term = entry_index, entry_term
    return bool(term <= message["term"])


_LAST_LOG = {"term": _number, "last_log_index": _index, "last_log_term": _number}

# type -> field -> what it must be. `term` is the sender's, except in what is said of a term to come.
FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "pre_vote": _LAST_LOG,  # would you vote for me in `term`? Nothing is promised by the answer
    "pre_vote_ok": {"term": _number},
    "request_vote": _LAST_LOG,
    "response_vote": {"term": _number},
    "append_entries": {
        "term": _number,
        "commit_index": _index,
        "prevLogIdx": _index,
        "prevLogTerm": _number,
        "entries": _entries,  # (command, index, term), contiguous from prevLogIdx + 1 on
    },
    "next_node_idx": {  # the answer to an append_entries of the same term
        "term": _number,
        "prevLogIdx": _index,  # of the append_entries that is answered
        "next_node_idx": _index,
        "reset": _flag,
        "success": _flag,
    },
    "higher_term": {"term": _number},  # the answer to whoever speaks of a term that is over
    "abdicate": {"term": _number, "successor": _flag},  # its leader leads no longer; would you?
    "propose": {  # from a follower to the leader of `term`
        "term": _number,
        "life": _number,  # of the sender: drawn anew at each start
        "request": _number,  # the first of as many numbers as there are payloads, rising in one life
        "payloads": _payloads,
    },
    "proposed": {  # where the payloads were put: `count` of them from index `log_idx` on
        "term": _number,
        "life": _number,
        "request": _number,
        "count": _number,  # 0: refused, and in no log
        "log_idx": _index,
    },
}
