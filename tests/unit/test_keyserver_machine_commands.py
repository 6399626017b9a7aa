"""Log entries and their public and private parts: what decodes, what is refused, and what no verdict may
see.
"""

from typing import get_args

import pytest
from e2eks.v1 import command_pb2 as pb
from e2eks.v1 import types_pb2
from workload.cast import Key, User, derive, draft, erasure
from workload.replica import Replica

from keyserver.admission.proof_id import proof_id
from keyserver.machine import commands, private_parts
from keyserver.machine.codes import CODE_OF, Code, reason_of
from keyserver.machine.commands import (
    AdmitVerifier,
    AnnounceRules,
    Delimiter,
    SignHead,
    SubmitUpdate,
    Tick,
    Unreadable,
)
from verifier import limits
from verifier.crypto import hashing
from verifier.encoding import canonical
from verifier.errors import Malformed, Reason

REPLICA = derive("some replica")
SIGNATURE = bytes(64)


def envelope_of(*wire: pb.Command) -> bytes:
    return canonical(pb.Envelope(rules=1, replica=REPLICA, time_ms=5, commands=wire))


def decode_command(wire: pb.Command) -> commands.Command:
    (command,) = commands.decode_envelope(envelope_of(wire)).commands
    return command


def submit_message() -> pb.SubmitUpdate:
    realm = Replica().realm
    made = draft(realm, User.named("alice"), endorsers=[Key("e", 1), Key("e", 2)])
    return pb.Command.FromString(commands.encode_command(made.command)).submit_update


def test_every_command_survives_encoding_and_decoding() -> None:
    replica = Replica()
    replica.register(User.named("alice"))
    replica.close_epoch()
    made = draft(replica.realm, User.named("bob"), endorsers=replica.endorsers)
    given = (
        made.command,
        Delimiter(7, 9),
        SignHead(1, derive("hash"), SIGNATURE),
        replica.ratification(replica.verifiers[0]),
        AdmitVerifier(replica.verifiers[0].public_key),
        Tick(),
        erasure(replica.realm, User.named("alice"), entry_hash=derive("entry")),
        replica.change(add=Key("new"), remove=replica.replicas[0]),
        AnnounceRules(2),
    )
    assert {type(command) for command in given} == set(get_args(commands.Command)) - {Unreadable}
    encoded = [commands.encode_command(command) for command in given]
    data = commands.encode_envelope(replica=REPLICA, time_ms=5, commands=encoded)
    envelope = commands.decode_envelope(data)
    assert envelope.commands == given
    assert envelope.command_ids == tuple(hashing.sha256(command) for command in encoded)
    assert (envelope.rules, envelope.replica, envelope.time_ms) == (limits.RULES, REPLICA, 5)
    assert envelope.encoded == data


def test_a_command_id_is_the_hash_of_its_public_bytes() -> None:
    realm = Replica().realm
    first = draft(realm, User.named("alice"), label="salt 1")
    again = draft(realm, User.named("alice"), label="salt 2")
    ids = {commands.command_id(commands.encode_command(made.command)) for made in (first, again)}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (pb.Command(), Code.UNKNOWN_COMMAND),
        (pb.Command(submit_update=pb.SubmitUpdate()), Code.MALFORMED),
        (
            pb.Command(sign_head=pb.SignHead(epoch=1, head_hash=bytes(31), signature=SIGNATURE)),
            Code.MALFORMED,
        ),
        (pb.Command(sign_head=pb.SignHead(epoch=1, head_hash=bytes(32), signature=b"x")), Code.MALFORMED),
        (pb.Command(add_ratification=pb.AddRatification()), Code.MALFORMED),
        (pb.Command(admit_verifier=pb.AdmitVerifier()), Code.MALFORMED),
        (
            pb.Command(admit_verifier=pb.AdmitVerifier(public_key=types_pb2.PublicKey(ed25519=bytes(32)))),
            Code.MALFORMED,
        ),
    ],
)
def test_a_command_that_does_not_decode_is_unreadable_with_its_verdict(wire: pb.Command, code: Code) -> None:
    assert decode_command(wire) == Unreadable(code)


def test_an_unreadable_command_spoils_no_other_of_its_entry() -> None:
    data = envelope_of(pb.Command(), pb.Command(tick=pb.Tick()))
    assert commands.decode_envelope(data).commands == (Unreadable(Code.UNKNOWN_COMMAND), Tick())


def test_lengths_of_private_hash_and_proof_id_are_32_or_none() -> None:
    for field in ("private_hash", "proof_id"):
        for length, readable in ((0, True), (31, False), (32, True), (33, False)):
            message = submit_message()
            setattr(message, field, bytes(length))
            command = decode_command(pb.Command(submit_update=message))
            assert isinstance(command, SubmitUpdate if readable else Unreadable), (field, length)


def test_endorsements_are_by_distinct_keys_and_at_most_so_many() -> None:
    message = submit_message()
    assert isinstance(decode_command(pb.Command(submit_update=message)), SubmitUpdate)
    message.endorsements.append(message.endorsements[0])
    assert decode_command(pb.Command(submit_update=message)) == Unreadable(Code.MALFORMED)
    del message.endorsements[:]
    for number in range(limits.ENDORSEMENTS + 1):
        message.endorsements.add(key_id=derive(number), not_after_ms=1, signature=SIGNATURE)
    assert decode_command(pb.Command(submit_update=message)) == Unreadable(Code.TOO_LARGE)


@pytest.mark.parametrize("ratifications", [[], [0], [2], [1, 1]])
def test_a_pushed_ratification_has_exactly_one_signature(ratifications: list[int]) -> None:
    replica = Replica()
    head = replica.close_epoch()
    signature = types_pb2.Signature(key_id=derive("v"), signature=SIGNATURE)
    made = [types_pb2.Ratification(timestamp_ms=1, signatures=[signature] * n) for n in ratifications]
    pushed = types_pb2.SignedEpochHead(head=head.encoded, ratifications=made)
    wire = pb.Command(add_ratification=pb.AddRatification(ratification=pushed))
    assert decode_command(wire) == Unreadable(Code.MALFORMED)


def test_an_entry_has_1_to_1024_commands() -> None:
    tick = pb.Command(tick=pb.Tick())
    assert len(commands.decode_envelope(envelope_of(*[tick] * limits.COMMANDS_PER_ENTRY)).commands) == 1024
    for count in (0, limits.COMMANDS_PER_ENTRY + 1):
        with pytest.raises(Malformed):
            commands.decode_envelope(envelope_of(*[tick] * count))


def test_a_log_entry_has_at_most_1_mib() -> None:
    envelope = envelope_of(pb.Command(tick=pb.Tick()))
    bare = len(canonical(pb.LogEntry(format=1, envelope=envelope, signature=SIGNATURE)))
    room = limits.LOG_ENTRY_BYTES - bare - 4  # tag and length of the private part
    fits = commands.encode_log_entry(envelope, SIGNATURE, [bytes(1) * room])
    assert len(fits) == limits.LOG_ENTRY_BYTES
    assert commands.decode_log_entry(fits).envelope.encoded == envelope
    with pytest.raises(Malformed) as raised:
        commands.decode_log_entry(commands.encode_log_entry(envelope, SIGNATURE, [bytes(room + 1) or b"x"]))
    assert raised.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"not protobuf at all",
        pb.LogEntry(format=2, envelope=envelope_of(pb.Command()), signature=SIGNATURE).SerializeToString(),
        pb.LogEntry(format=1, envelope=b"\xff", signature=SIGNATURE).SerializeToString(),
        pb.LogEntry(format=1, envelope=envelope_of(pb.Command()), signature=b"x").SerializeToString(),
        # an unknown field, and trailing bytes that repeat a field
        commands.encode_log_entry(envelope_of(pb.Command()), SIGNATURE) + b"\x30\x01",
        commands.encode_log_entry(envelope_of(pb.Command()), SIGNATURE) + b"\x08\x01",
    ],
)
def test_bytes_that_are_no_log_entry_are_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        commands.decode_log_entry(payload)


def test_bytes_that_are_no_log_entry_are_their_own_public_part() -> None:
    for payload in (b"", b"\xff\xff", b"not protobuf at all"):
        assert commands.public_part(payload) == payload


def test_the_public_part_leaves_out_the_private_parts_and_nothing_else() -> None:
    envelope = envelope_of(pb.Command(tick=pb.Tick()))
    bare = commands.encode_log_entry(envelope, SIGNATURE)
    full = commands.encode_log_entry(envelope, SIGNATURE, [b"private"])
    blank = pb.LogEntry(format=1, envelope=envelope, signature=SIGNATURE, private_parts=[b""])
    assert full != bare
    for payload in (bare, full, canonical(blank)):
        assert commands.public_part(payload) == bare
        assert commands.decode_log_entry(payload).public == bare


def test_a_wrong_number_of_private_parts_counts_as_none() -> None:
    envelope = envelope_of(pb.Command(tick=pb.Tick()), pb.Command(tick=pb.Tick()))
    for parts in ([b"1"], [b"1", b"2", b"3"]):
        entry = commands.decode_log_entry(commands.encode_log_entry(envelope, SIGNATURE, parts))
        assert entry.private_parts == (b"", b"")


def test_a_private_part_opens_only_under_its_own_hash() -> None:
    profile, nonce, salt = b"", derive("nonce"), derive("salt")
    contents = private_parts.encode_private_contents("alice@example.org", profile, nonce)
    hashed = private_parts.private_hash(salt, contents)
    part = private_parts.encode_private_part(salt, contents)
    opened = private_parts.open_private_part(part, hashed)
    assert opened == private_parts.PrivateContents("alice@example.org", profile, nonce)
    for bad_part, bad_hash in ((b"", hashed), (part, b""), (part, derive("other")), (part + b"x", hashed)):
        assert private_parts.open_private_part(bad_part, bad_hash) is None


@pytest.mark.parametrize(
    ("salt", "contents"),
    [
        (b"short", private_parts.encode_private_contents("a@b", b"", bytes(32))),
        (bytes(32), b"\xff"),
        (bytes(32), private_parts.encode_private_contents("a@b", b"", bytes(31))),
        (bytes(32), private_parts.encode_private_contents("a" * 255, b"", bytes(32))),
        (bytes(32), private_parts.encode_private_contents("a@b", b"no profile", bytes(32))),
    ],
)
def test_a_private_part_that_does_not_decode_stays_closed(salt: bytes, contents: bytes) -> None:
    part = private_parts.encode_private_part(salt, contents)
    assert private_parts.open_private_part(part, private_parts.private_hash(salt, contents)) is None


def test_the_signed_messages_are_those_of_the_contract() -> None:
    realm_hash, envelope = derive("realm"), b"envelope"
    expected = hashing.tagged("e2eks/1/log-entry", realm_hash, envelope)
    assert commands.envelope_message(realm_hash, envelope) == expected
    parts = [derive(number) for number in range(4)]
    endorsed = commands.endorsement_message(realm_hash, *parts, 258)
    assert endorsed == hashing.tagged("e2eks/1/endorse", realm_hash, *parts, bytes(6) + b"\x01\x02")
    proof = hashing.tagged("e2eks/1/proof-id", b"dkim", b"d", b"s")
    assert proof_id("dkim", b"d", b"s") == proof


def test_every_public_reason_has_one_code_and_every_code_a_public_reason() -> None:
    assert sorted(CODE_OF.values()) == list(range(1, 21))
    for reason, code in CODE_OF.items():
        assert reason_of(code) is reason
    assert all(isinstance(reason_of(code), Reason) for code in Code if code is not Code.APPLIED)


def test_an_unreadable_command_cannot_be_written_again() -> None:
    with pytest.raises(ValueError, match="no bytes"):
        commands.encode_command(Unreadable(Code.MALFORMED))
