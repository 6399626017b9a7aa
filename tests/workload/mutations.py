"""Committed entries, spoiled: raw bytes, envelopes signed anew, and single fields at any depth of any
command.
"""

from collections.abc import Callable, Iterator
from random import Random

from e2eks.v1 import command_pb2 as pb
from e2eks.v1 import types_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from keyserver.machine import commands
from verifier.errors import Malformed
from workload.cast import Key
from workload.replica import Replica

EDGES = (0, 1, 2, 2**31, 2**32 - 1)
WIDE_EDGES = (*EDGES, 2**63 - 1, 2**63, 2**64 - 1)
# Fields that hold an encoded message of their own.
INNER: dict[str, type[Message]] = {
    "e2eks.v1.SignedEntryUpdate.entry": types_pb2.Entry,
    "e2eks.v1.SignedEpochHead.head": types_pb2.EpochHead,
    "e2eks.v1.ChangeReplicas.change": types_pb2.ReplicaSetChange,
}


class Mutator:
    """Makes one spoiled payload out of a good one. `pool` is what bytes are swapped with."""

    def __init__(self, replica: Replica, rng: Random) -> None:
        self.replica = replica
        self.rng = rng
        self.pool = [key.id for key in (*replica.replicas, *replica.verifiers)]
        self.pool += [key.public_key for key in (*replica.replicas, *replica.verifiers)]
        self.pool += [bytes(32), b"\xff" * 32, replica.realm.hash, replica.head().hash]
        self.ways: list[Callable[[bytes], bytes]] = [
            self.of_bytes, self.of_envelope, *(self.of_command,) * 4, self.of_private_parts,
        ]  # fmt: skip

    def spoil(self, payload: bytes) -> bytes:
        return self.rng.choice(self.ways)(payload)

    # Whole entries

    def of_bytes(self, data: bytes) -> bytes:
        """A flip, a cut, an insertion, a repetition, anywhere."""
        at, to = self.rng.randint(0, len(data)), self.rng.randint(0, len(data))
        match self.rng.randrange(5):
            case 0:
                return data[:at] + bytes([self.rng.randrange(256)]) + data[at + 1 :]
            case 1:
                return data[: min(at, to)] + data[max(at, to) :]
            case 2:
                return data[:at] + self.rng.randbytes(self.rng.randint(1, 8)) + data[at:]
            case 3:
                return data + data[min(at, to) : max(at, to)]
            case _:
                return self.rng.choice((b"", data[:at], data[at:], self.rng.choice(self.pool)))

    def of_envelope(self, payload: bytes) -> bytes:
        """An envelope of mutated bytes, rightly signed."""
        return self.signed(self.of_bytes(pb.LogEntry.FromString(payload).envelope))

    def of_private_parts(self, payload: bytes) -> bytes:
        entry = pb.LogEntry.FromString(payload)
        parts = [self.of_bytes(part) for part in entry.private_parts or [b""]]
        return commands.encode_log_entry(entry.envelope, entry.signature, parts)

    def signed(self, envelope: bytes, by: Key | None = None) -> bytes:
        key = by or self.replica.replicas[0]
        message = commands.envelope_message(self.replica.realm.hash, envelope)
        return commands.encode_log_entry(envelope, key.sign(message))

    # Single fields

    def of_command(self, payload: bytes) -> bytes:
        """One field changed, at any depth; the envelope is of a replica of the realm and rightly signed."""
        envelope = pb.Envelope.FromString(pb.LogEntry.FromString(payload).envelope)
        key = self.rng.choice(self.replica.replicas)
        envelope.replica, envelope.rules = key.id, 1
        if self.rng.random() < 0.8 and envelope.commands:
            self.spoil_field(self.rng.choice(envelope.commands))
        else:
            self.spoil_field(envelope)
        return self.signed(envelope.SerializeToString(deterministic=True), key)

    def spoil_field(self, message: Message) -> None:
        found = list(fields(message))
        if not found:
            return
        holder, field = self.rng.choice(found)
        if field.is_repeated:
            self.spoil_repeated(holder, field)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            holder.ClearField(field.name)
        else:
            setattr(holder, field.name, self.other(field, getattr(holder, field.name)))

    def spoil_repeated(self, holder: Message, field: FieldDescriptor) -> None:
        values = getattr(holder, field.name)
        at = self.rng.randrange(len(values))
        if self.rng.random() < 0.4:
            del values[at]
        elif field.type == FieldDescriptor.TYPE_MESSAGE or self.rng.random() < 0.5:
            values.extend([values[at]] * self.rng.choice((1, 1, 1, 70)))
        else:
            values[at] = self.other(field, values[at])

    def other(self, field: FieldDescriptor, value: object) -> object:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            wide = field.type == FieldDescriptor.TYPE_UINT64
            return self.rng.choice((*(WIDE_EDGES if wide else EDGES), value ^ 1, min(value + 1, 2**32 - 1)))
        if isinstance(value, str):
            return self.rng.choice(("", "x", value + "é", value * 9))
        assert isinstance(value, bytes)
        if field.full_name in INNER and self.rng.random() < 0.8:
            return self.inner(INNER[field.full_name], value)
        return self.rng.choice((self.of_bytes(value), b"", self.rng.choice(self.pool)))

    def inner(self, kind: type[Message], value: bytes) -> bytes:
        message = kind()
        try:
            message.ParseFromString(value)
        except DecodeError:
            return self.of_bytes(value)
        self.spoil_field(message)
        return message.SerializeToString(deterministic=True)


def readable(log: list[bytes]) -> list[bytes]:
    """The payloads that are log entries, lawful or not."""
    return [payload for payload in log if is_readable(payload)]


def is_readable(payload: bytes) -> bool:
    try:
        commands.decode_log_entry(payload)
    except Malformed:
        return False
    return True


def fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field that is set in a message and in the messages within, with the message that holds it."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inside in value if field.is_repeated else (value,):
                yield from fields(inside)
