"""Log entries <-> bytes: the envelope a replica signs, the commands in it, and the private parts beside it.

The public part of an entry decides everything; a private part only fills private rows and may be blanked
later. So nothing here lets a private part change whether an entry decodes. Decoding is strict, any bytes
give a value or `Malformed`; a command that does not decode is an `Unreadable` and spoils no other command
of its entry.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from e2eks.v1 import command_pb2 as pb
from e2eks.v1 import types_pb2

from keyserver.machine.codes import CODE_OF, Code
from verifier import encoding, erasure, limits, replica_set
from verifier.crypto import hashing, signatures
from verifier.encoding import at_most, canonical, exact
from verifier.errors import Malformed
from verifier.replica_set import ReplicaSetChange
from verifier.types import Signature, SignedHead, SignedUpdate

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Endorsement:
    """A replica's word that it verified a registration proof; `not_after_ms` is log time."""

    key_id: bytes
    not_after_ms: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class SubmitUpdate:
    """`private_hash` and `proof_id` are 32 bytes or empty; endorsements are by distinct keys."""

    update: SignedUpdate
    private_hash: bytes = b""
    endorsements: tuple[Endorsement, ...] = ()
    proof_id: bytes = b""


@dataclass(frozen=True, slots=True)
class Delimiter:
    """Ends what goes into `epoch`, issued at `time_ms`."""

    epoch: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class SignHead:
    """The proposing replica's own signature on the head of `epoch`."""

    epoch: int
    head_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class AddRatification:
    """A head with exactly one ratification with exactly one signature, a verifier's."""

    ratification: SignedHead


@dataclass(frozen=True, slots=True)
class AdmitVerifier:
    """The proposing replica's approval of a verifier."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing but the envelope's time."""


@dataclass(frozen=True, slots=True)
class Erase:
    """Forget what is private of an index. `entry_hash` is that of its current entry."""

    index: bytes
    entry_hash: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class ChangeReplicas:
    """Other replicas from the next delimiter on, and who approves."""

    change: ReplicaSetChange
    approvals: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class AnnounceRules:
    """The newest rules level that the proposing replica knows."""

    rules: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A command that does not decode, with the verdict on it."""

    code: Code


Command = (
    SubmitUpdate
    | Delimiter
    | SignHead
    | AddRatification
    | AdmitVerifier
    | Tick
    | Erase
    | ChangeReplicas
    | AnnounceRules
    | Unreadable
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a replica signs: its clock reading and commands. `command_ids` stand beside `commands`."""

    rules: int
    replica: bytes
    time_ms: int
    commands: tuple[Command, ...]
    command_ids: tuple[bytes, ...]
    encoded: bytes


@dataclass(frozen=True, slots=True)
class LogEntry:
    """`private_parts` has one item for each command, blank where there is none; `public` decides
    everything.
    """

    envelope: Envelope
    signature: bytes
    private_parts: tuple[bytes, ...]
    public: bytes


# Entries and envelopes


def decode_log_entry(payload: bytes) -> LogEntry:
    """The entry in a committed payload. Raises Malformed."""
    message = _outer(payload)
    envelope = decode_envelope(message.envelope)
    parts = tuple(message.private_parts)
    if len(parts) != len(envelope.commands):
        parts = (b"",) * len(envelope.commands)
    message.ClearField("private_parts")
    return LogEntry(
        envelope=envelope,
        signature=exact(message.signature, limits.SIGNATURE_BYTES, "signature of a log entry"),
        private_parts=parts,
        public=canonical(message),
    )


def public_part(payload: bytes) -> bytes:
    """The payload without its private parts; bytes that are no log entry have none and are their own public
    part.
    """
    try:
        message = _outer(payload)
    except Malformed:
        return payload
    message.ClearField("private_parts")
    return canonical(message)


def _outer(payload: bytes) -> pb.LogEntry:
    message = encoding.parse(pb.LogEntry, payload, limits.LOG_ENTRY_BYTES, "log entry")
    if message.format != FORMAT:
        raise Malformed(f"log entry of format {message.format}; this version knows format {FORMAT}")
    return message


def decode_envelope(data: bytes) -> Envelope:
    """An envelope with 1 to COMMANDS_PER_ENTRY commands. Raises Malformed."""
    message = encoding.parse(pb.Envelope, data, limits.LOG_ENTRY_BYTES, "envelope")
    at_most(len(message.commands), limits.COMMANDS_PER_ENTRY, "commands in a log entry")
    if not message.commands:
        raise Malformed("a log entry without commands")
    return Envelope(
        rules=message.rules,
        replica=exact(message.replica, limits.HASH_BYTES, "replica's key id"),
        time_ms=message.time_ms,
        commands=tuple(_command_from(command) for command in message.commands),
        command_ids=tuple(command_id(canonical(command)) for command in message.commands),
        encoded=data,
    )


def encode_envelope(
    *, replica: bytes, time_ms: int, commands: Sequence[bytes], rules: int = limits.RULES
) -> bytes:
    """Strict bytes of an envelope around encoded commands."""
    wire = [pb.Command.FromString(command) for command in commands]
    return canonical(pb.Envelope(rules=rules, replica=replica, time_ms=time_ms, commands=wire))


def encode_log_entry(envelope: bytes, signature: bytes, private_parts: Sequence[bytes] = ()) -> bytes:
    """Strict bytes of an entry. `private_parts`: one for each command (blank = none), or none at all."""
    kept = private_parts if any(private_parts) else ()
    return canonical(pb.LogEntry(format=FORMAT, envelope=envelope, signature=signature, private_parts=kept))


def envelope_message(realm_hash: bytes, envelope: bytes) -> bytes:
    """The 32 bytes that the proposing replica signs."""
    return hashing.tagged("e2eks/1/log-entry", realm_hash, envelope)


# Commands


def command_id(command: bytes) -> bytes:
    """What waiters know a command by: SHA-256 of its public bytes; a fresh salt makes those of every call
    unique.
    """
    return hashing.sha256(command)


def encode_command(command: Command) -> bytes:
    """Strict bytes of a command. Raises ValueError for an Unreadable, which has none."""
    match command:
        case SubmitUpdate():
            wire = pb.Command(submit_update=_submit_message(command))
        case Delimiter(epoch, time_ms):
            wire = pb.Command(delimiter=pb.Delimiter(epoch=epoch, time_ms=time_ms))
        case SignHead(epoch, head_hash, signature):
            wire = pb.Command(sign_head=pb.SignHead(epoch=epoch, head_hash=head_hash, signature=signature))
        case AddRatification(ratification):
            head = types_pb2.SignedEpochHead.FromString(ratification.encoded)
            wire = pb.Command(add_ratification=pb.AddRatification(ratification=head))
        case AdmitVerifier(public_key):
            key = types_pb2.PublicKey(ed25519=public_key)
            wire = pb.Command(admit_verifier=pb.AdmitVerifier(public_key=key))
        case Tick():
            wire = pb.Command(tick=pb.Tick())
        case Erase():
            wire = pb.Command(erase=_erase_message(command))
        case ChangeReplicas(change, approvals):
            made = [types_pb2.Signature(key_id=s.key_id, signature=s.signature) for s in approvals]
            wire = pb.Command(change_replicas=pb.ChangeReplicas(change=change.encoded, approvals=made))
        case AnnounceRules(rules):
            wire = pb.Command(announce_rules=pb.AnnounceRules(rules=rules))
        case Unreadable():
            raise ValueError("an unreadable command has no bytes")
    return canonical(wire)


def _submit_message(command: SubmitUpdate) -> pb.SubmitUpdate:
    return pb.SubmitUpdate(
        update=types_pb2.SignedEntryUpdate.FromString(command.update.encoded),
        private_hash=command.private_hash,
        endorsements=[
            pb.Endorsement(key_id=e.key_id, not_after_ms=e.not_after_ms, signature=e.signature)
            for e in command.endorsements
        ],
        proof_id=command.proof_id,
    )


def _erase_message(command: Erase) -> pb.Erase:
    made = [types_pb2.Signature(key_id=s.key_id, signature=s.signature) for s in command.signatures]
    return pb.Erase(index=command.index, entry_hash=command.entry_hash, signatures=made)


def _command_from(message: pb.Command) -> Command:
    kind = message.WhichOneof("command")
    if kind is None:
        return Unreadable(Code.UNKNOWN_COMMAND)
    try:
        return _DECODERS[kind](getattr(message, kind))
    except Malformed as error:
        return Unreadable(CODE_OF[error.reason])


def _submit_from(message: pb.SubmitUpdate) -> SubmitUpdate:
    at_most(len(message.endorsements), limits.ENDORSEMENTS, "endorsements")
    endorsements = tuple(_endorsement_from(e) for e in message.endorsements)
    if len({e.key_id for e in endorsements}) != len(endorsements):
        raise Malformed("two endorsements are by one key")
    return SubmitUpdate(
        update=encoding.update_from(message.update),
        private_hash=_hash_or_empty(message.private_hash, "private hash"),
        endorsements=endorsements,
        proof_id=_hash_or_empty(message.proof_id, "proof id"),
    )


def _endorsement_from(message: pb.Endorsement) -> Endorsement:
    return Endorsement(
        key_id=exact(message.key_id, limits.HASH_BYTES, "key id of an endorsement"),
        not_after_ms=message.not_after_ms,
        signature=exact(message.signature, limits.SIGNATURE_BYTES, "signature of an endorsement"),
    )


def _hash_or_empty(data: bytes, what: str) -> bytes:
    return exact(data, limits.HASH_BYTES, what) if data else data


def _delimiter_from(message: pb.Delimiter) -> Delimiter:
    return Delimiter(epoch=message.epoch, time_ms=message.time_ms)


def _sign_head_from(message: pb.SignHead) -> SignHead:
    return SignHead(
        epoch=message.epoch,
        head_hash=exact(message.head_hash, limits.HASH_BYTES, "head hash"),
        signature=exact(message.signature, limits.SIGNATURE_BYTES, "signature on a head"),
    )


def _ratification_from(message: pb.AddRatification) -> AddRatification:
    ratification = encoding.signed_head_from(message.ratification)
    if [len(r.signatures) for r in ratification.ratifications] != [1]:
        raise Malformed("a pushed ratification is not one ratification with one signature")
    return AddRatification(ratification)


def _admit_from(message: pb.AdmitVerifier) -> AdmitVerifier:
    key = message.public_key.ed25519
    if not signatures.is_valid_public_key(key):
        raise Malformed("a verifier's key is not an Ed25519 public key")
    return AdmitVerifier(key)


def _tick_from(_: pb.Tick) -> Tick:
    return Tick()


def _erase_from(message: pb.Erase) -> Erase:
    return Erase(
        index=exact(message.index, limits.HASH_BYTES, "index"),
        entry_hash=exact(message.entry_hash, limits.HASH_BYTES, "entry hash"),
        signatures=erasure.check_signatures([encoding.signature_from(s) for s in message.signatures]),
    )


def _change_from(message: pb.ChangeReplicas) -> ChangeReplicas:
    change = replica_set.decode_change(message.change)
    made = [encoding.signature_from(s) for s in message.approvals]
    return ChangeReplicas(change, replica_set.check_approvals(made))


def _announcement_from(message: pb.AnnounceRules) -> AnnounceRules:
    return AnnounceRules(message.rules)


_DECODERS: Final[Mapping[str, Callable[[Any], Command]]] = {
    "submit_update": _submit_from,
    "delimiter": _delimiter_from,
    "sign_head": _sign_head_from,
    "add_ratification": _ratification_from,
    "admit_verifier": _admit_from,
    "tick": _tick_from,
    "erase": _erase_from,
    "change_replicas": _change_from,
    "announce_rules": _announcement_from,
}


# Admission


def endorsement_message(
    realm_hash: bytes,
    private_hash: bytes,
    index: bytes,
    entry_hash: bytes,
    proof_id: bytes,
    not_after_ms: int,
) -> bytes:
    """The 32 bytes that an endorsing replica signs (contract section 3)."""
    not_after = not_after_ms.to_bytes(8, "big")
    return hashing.tagged("e2eks/1/endorse", realm_hash, private_hash, index, entry_hash, proof_id, not_after)
