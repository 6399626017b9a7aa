"""Messages that parse and yet are not the one encoding of their value, or that cost more than they weigh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2eks.v1 import client_pb2, command_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb
from google.protobuf import json_format
from samples import ALICE, BOB, EVE, REALM, REPLICAS, any_of, make_entry, nonce_of, sign_entry
from samples.directory import Directory

from attacks import wire_format as wire
from attacks.surface import Surface
from keyserver import requests
from keyserver.machine import commands
from verifier import encoding, proof_encoding
from verifier import realm as realms
from verifier.types import AuthorizationPolicy

USER = "alice@example.test"
PROFILE = encoding.encode_profile({"age": b"age1", "ssh": b"ssh-ed25519"})

DECODERS: Mapping[str, Callable[[bytes], object]] = {
    "entry": encoding.decode_entry,
    "profile": encoding.decode_profile,
    "head": encoding.decode_head,
    "quorum": encoding.decode_quorum,
    "update": encoding.decode_update,
    "signed_head": encoding.decode_signed_head,
    "lookup_proof": proof_encoding.decode_lookup_proof,
    "consistency_proof": proof_encoding.decode_consistency_proof,
    "steps": proof_encoding.decode_steps,
    "log_entry": commands.decode_log_entry,
    "envelope": commands.decode_envelope,
    "realm_json": realms.parse_realm_json,
    "lookup_request": lambda data: requests.decode_lookup(data, REALM),
    "update_request": lambda data: requests.decode_update(data, REALM),
    "consistency_request": requests.decode_consistency,
    "stream_request": requests.decode_verifier_stream,
}


def with_unknown_field(policy: AuthorizationPolicy) -> pb.AuthorizationPolicy:
    return pb.AuthorizationPolicy.FromString(policy.encoded + wire.number_field(99, 1))


class Protobuf(Surface):
    """`make_valid` gives the good message of a kind; most other makers spoil it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._directory = Directory()
        self._directory.put(USER, PROFILE)
        self._directory.close()
        self._directory.put("bob@example.test", PROFILE)
        self._directory.close(next_epoch_policy=any_of(ALICE, BOB))

    def ask(self, target: str, made: Any) -> str:
        DECODERS[target](made)
        return "decoded"

    def make_valid(self, kind: str) -> bytes:
        directory = self._directory
        update = sign_entry(make_entry(USER, profile=PROFILE), ALICE)
        step = verification_pb2.VerifierStep(index=1, update=pb.SignedEntryUpdate.FromString(update.encoded))
        tick = commands.encode_command(commands.Tick())
        envelope = commands.encode_envelope(replica=ALICE.id, time_ms=1, commands=[tick])
        makers: Mapping[str, Callable[[], bytes]] = {
            "entry": lambda: make_entry(USER).encoded,
            "profile": lambda: PROFILE,
            "head": lambda: directory.heads[1],
            "quorum": lambda: encoding.encode_quorum(any_of(ALICE, BOB).quorum),
            "update": lambda: update.encoded,
            "signed_head": lambda: directory.signed(1).encoded,
            "lookup_proof": lambda: directory.lookup(USER, 2),
            "consistency_proof": lambda: directory.consistency(1, 2),
            "steps": lambda: encoding.canonical(verification_pb2.VerifierSteps(steps=[step])),
            "envelope": lambda: envelope,
            "log_entry": lambda: commands.encode_log_entry(envelope, bytes(64)),
            "realm_json": lambda: realms.realm_json(REALM),
            "lookup_request": lambda: encoding.canonical(client_pb2.LookupRequest(user_id=USER)),
            "update_request": lambda: encoding.canonical(self._update_request()),
            "consistency_request": lambda: wire.number_field(1, 1) + wire.number_field(2, 2),
            "stream_request": lambda: wire.number_field(1, 1),
        }
        return makers[kind]()

    @staticmethod
    def _update_request() -> client_pb2.UpdateRequest:
        update = sign_entry(make_entry(USER, profile=PROFILE), ALICE)
        return client_pb2.UpdateRequest(
            update=pb.SignedEntryUpdate.FromString(update.encoded),
            profile=PROFILE,
            profile_nonce=nonce_of(USER, 0),
            lookup_parameters=client_pb2.LookupRequest(user_id=USER),
        )

    # A good message, and something more or less

    def make_with_number(self, kind: str, field: int, value: int) -> bytes:
        """The message and one more field: unknown, repeated, or at its default."""
        return self.make_valid(kind) + wire.number_field(field, value)

    def make_with_field(self, kind: str, field: int, data: str) -> bytes:
        return self.make_valid(kind) + wire.bytes_field(field, bytes.fromhex(data))

    def make_with_tail(self, kind: str, tail: str) -> bytes:
        return self.make_valid(kind) + bytes.fromhex(tail)

    def make_cut(self, kind: str, by: int) -> bytes:
        return self.make_valid(kind)[:-by]

    def make_with_fields_swapped(self, kind: str) -> bytes:
        first, *others = wire.fields(self.make_valid(kind))
        return b"".join((*others, first))

    def make_with_first_field_twice(self, kind: str) -> bytes:
        first, *others = wire.fields(self.make_valid(kind))
        return b"".join((first, first, *others))

    def make_with_long_tag(self, kind: str) -> bytes:
        """The first field's tag with a needless byte."""
        data = self.make_valid(kind)
        key, at = wire.read_varint(data, 0)
        return wire.varint(key, extra=1) + data[at:]

    def make_with_long_length(self, kind: str) -> bytes:
        """The first field's length with three needless bytes."""
        data = self.make_valid(kind)
        _, start = wire.read_varint(data, 0)
        length, at = wire.read_varint(data, start)
        return data[:start] + wire.varint(length, extra=3) + data[at:]

    # Inside what is signed

    def make_entry_with_unknown_field_in_its_policy(self) -> bytes:
        message = pb.Entry.FromString(make_entry(USER).encoded)
        message.update_policy.CopyFrom(with_unknown_field(any_of(ALICE)))
        return message.SerializeToString(deterministic=True)

    def make_head_with_unknown_field_in_its_policy(self) -> bytes:
        message = pb.EpochHead.FromString(self._directory.heads[1])
        message.next_epoch_policy.CopyFrom(with_unknown_field(any_of(ALICE, BOB)))
        return message.SerializeToString(deterministic=True)

    def make_entry_with(self, **changes: Any) -> bytes:
        """An entry with some fields replaced; text is hexadecimal."""
        message = pb.Entry.FromString(make_entry(USER).encoded)
        for name, value in changes.items():
            setattr(message, name, bytes.fromhex(value) if isinstance(value, str) else value)
        return message.SerializeToString(deterministic=True)

    def make_entry_without_policy(self) -> bytes:
        message = pb.Entry.FromString(make_entry(USER).encoded)
        message.ClearField("update_policy")
        return message.SerializeToString(deterministic=True)

    def make_update_signed_by(self, names: Sequence[str]) -> bytes:
        """Signatures by the named, one after the other."""
        keys = {"alice": ALICE, "bob": BOB, "eve": EVE}
        message = pb.SignedEntryUpdate(entry=make_entry(USER).encoded)
        for name in names:
            made = keys[name].sign(bytes(32))
            message.signatures.add(key_id=made.key_id, signature=made.signature)
        return message.SerializeToString(deterministic=True)

    def make_profile_of(self, applications: Sequence[str]) -> bytes:
        keys = [pb.ApplicationKey(application=name, key=b"k") for name in applications]
        return pb.Profile(keys=keys).SerializeToString(deterministic=True)

    def make_profile_of_bytes(self, count: int) -> bytes:
        """A profile whose encoding has `count` bytes in all."""
        around = len(encoding.encode_profile({"pgp": bytes(count)})) - count
        return encoding.encode_profile({"pgp": bytes(count - around)})

    # Requests: unknown fields pass, but not in what is counted or signed

    def make_lookup_with_unknown_field_in_its_quorum(self) -> bytes:
        quorum = wire.number_field(1, 1) + wire.bytes_field(2, ALICE.id) + wire.number_field(99, 1)
        return self.make_valid("lookup_request") + wire.bytes_field(4, quorum)

    def make_lookup_with_quorum(self) -> bytes:
        quorum = wire.number_field(1, 1) + wire.bytes_field(2, ALICE.id)
        return self.make_valid("lookup_request") + wire.bytes_field(4, quorum)

    def make_update_request_without(self, field: str) -> bytes:
        message = self._update_request()
        message.ClearField(field)  # type: ignore[arg-type]  # a row names it
        return message.SerializeToString(deterministic=True)

    # Bombs

    def make_zeros(self, count: int) -> bytes:
        return bytes(count)

    def make_empty_messages(self, field: int, count: int) -> bytes:
        """Two bytes each on the wire, an object each in memory."""
        return wire.bytes_field(field, b"") * count

    def make_nested(self, field: int, depth: int) -> bytes:
        """A message within a message, `depth` levels, without anything else."""
        data = b""
        for _ in range(depth):
            data = wire.bytes_field(field, data)
        return data

    def make_groups(self, count: int) -> bytes:
        return wire.tag(1, wire.GROUP) * count + wire.tag(1, wire.GROUP_END) * count

    def make_claimed_length(self, field: int, length: int) -> bytes:
        """A field that says it is longer than everything there is."""
        return wire.tag(field, wire.LENGTH) + wire.varint(length)

    def make_envelope_of_ticks(self, count: int) -> bytes:
        tick = command_pb2.Command(tick=command_pb2.Tick())
        message = command_pb2.Envelope(rules=1, replica=ALICE.id, time_ms=1, commands=[tick] * count)
        return message.SerializeToString(deterministic=True)

    def make_realm_json_with(self, address: str = "127.0.0.1:4625", verifier: str = "") -> bytes:
        """The realm's file with other addresses."""
        listed = tuple(replace(known, address=verifier) for known in REALM.verifiers)
        return realms.realm_json(replace(REALM, addresses=(address,), verifiers=listed))

    def make_realm(self, **changes: Any) -> bytes:
        """The realm's file with some fields of its message replaced; text for bytes is hexadecimal."""
        message = realms.realm_message(REALM)
        for name, value in changes.items():
            is_bytes = name == "vrf_public_key"
            setattr(message, name, bytes.fromhex(value) if is_bytes else value)
        return json_format.MessageToJson(message, preserving_proto_field_name=True).encode()

    def make_realm_listing(self, verifiers: Sequence[str]) -> bytes:
        """The realm's file with these verifiers; the name says whose key it is."""
        keys = {"alice": ALICE, "bob": BOB, "r0": REPLICAS[0]}
        message = realms.realm_message(REALM)
        del message.verifiers[:]
        for number, name in enumerate(verifiers):
            owner = keys[name.partition("@")[0]]
            called = name.partition("@")[2] or f"v{number}"
            message.verifiers.add(name=called, public_key=pb.PublicKey(ed25519=owner.public))
        return json_format.MessageToJson(message, preserving_proto_field_name=True).encode()

    def make_json(self, text: str, times: int = 1) -> bytes:
        return (text * times).encode()
