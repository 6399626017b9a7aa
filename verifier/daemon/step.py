"""Replay steps of the verifier log. No clock, no randomness, no secrets, no IO.

Every rule is the one that the server's own step follows: `verify_update`, `check_majority`, `check_head`.
What comes out is data: rows to write in one batch, epochs whose ratification is owed from then on, and the
reason to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from e2eks.v1 import types_pb2, verification_pb2
from google.protobuf.message import DecodeError

from kv.interface import Reader
from kv.keys import u64
from kv.overlay import Overlay
from verifier import epoch as epoch_law
from verifier import limits
from verifier.daemon.evidence import Comparison, Evidence, Kind
from verifier.daemon.state import (
    RowCorrupt,
    State,
    current_at,
    encode_current,
    encode_state,
    head_at,
    policy_heads,
)
from verifier.daemon.tables import VerifierTables as Tables
from verifier.errors import Malformed, Refused, VerificationError
from verifier.merkle import history, tree
from verifier.proof_encoding import decode_steps, encode_epoch_step, encode_update_step
from verifier.types import EpochHead, EpochStep, Realm, SignedHead, UpdateStep, VerifierStep
from verifier.update import Change, verify_update


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The realm follows a rules level that this version does not know."""

    rules: int


Stop = Evidence | Upgrade


@dataclass(frozen=True, slots=True)
class Outcome:
    """What lawful steps lead to, up to the first that is not.

    `writes` go to the database in one batch, state row included; `owed` are the epochs whose outbox rows
    are among them. With `stop` nothing more may be replayed.
    """

    state: State
    writes: Mapping[bytes, bytes | None]
    owed: tuple[int, ...] = ()
    stop: Stop | None = None


class _Stopped(Exception):
    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self.stop = stop


def apply_message(reader: Reader, realm: Realm, state: State, message: bytes) -> Outcome:
    """Replay one streamed VerifierSteps message. Raises StorageError; any bytes else give an Outcome."""
    try:
        steps = decode_steps(message)
    except Malformed as malformed:
        return Outcome(state, {}, stop=_undecodable(message, malformed))
    return apply(reader, realm, state, steps)


def apply(reader: Reader, realm: Realm, state: State, steps: Sequence[VerifierStep]) -> Outcome:
    """Replay `steps` in order on top of `state`. Raises StorageError."""
    rows = Overlay(reader)
    owed: list[int] = []
    stop: Stop | None = None
    for step in steps:
        try:
            if step.index != state.next_index:
                raise _Stopped(_out_of_order(state, step))
            if isinstance(step, UpdateStep):
                state = _apply_update(rows, realm, state, step)
            else:
                state = _apply_head(rows, realm, state, step)
                owed.append(state.chain.epoch)
        except _Stopped as stopped:
            stop = stopped.stop
            break
    if rows.writes:
        rows.put(Tables.STATE.key(), encode_state(state))
    return Outcome(state, rows.writes, tuple(owed), stop)


def _apply_update(rows: Overlay, realm: Realm, state: State, step: UpdateStep) -> State:
    entry = step.update.entry
    epoch = state.chain.epoch + 1
    current = current_at(rows, entry.index)
    pending = current is not None and current.epoch == epoch
    try:
        change = verify_update(
            current.update.entry if current else None, step.update, realm_hash=realm.hash, pending=pending
        )
        if change is Change.UNCHANGED:
            raise VerificationError("update", "REPEATED: the bytes equal the current entry")
    except (Refused, VerificationError) as refused:
        reason = refused.reason if isinstance(refused, Refused) else refused.what
        evidence = Evidence(
            kind=Kind.UPDATE,
            what=f"step {step.index} is an unlawful update ({reason})",
            steps=(encode_step(step),),
            entry=current.update.encoded if current else b"",
            pending=pending,
        )
        raise _Stopped(evidence) from None
    rows.put(Tables.ENTRIES.key(entry.index), encode_current(epoch, step.update))
    rows.put(Tables.PENDING.key(entry.index), entry.hash)
    return replace(state, next_index=step.index + 1, pending_updates=state.pending_updates + 1)


def _apply_head(rows: Overlay, realm: Realm, state: State, step: EpochStep) -> State:
    signed, head = step.head, step.head.head
    _check_not_replayed(rows, realm, state, step)
    _check_signed(rows, realm, state, step)
    changes = pending_changes(rows, state)
    grown = tree.update(rows, Tables.TREE.prefix, state.root_version, head.epoch, changes)
    history_root = history.root(rows, Tables.HISTORY.prefix, state.chain.epoch)
    try:
        chain = epoch_law.check_head(
            realm, state.chain, head, root_hash=grown.root, history_root=history_root
        )
    except VerificationError:
        raise _Stopped(_contradiction(rows, state, step, grown.root, history_root)) from None
    for key, value in grown.writes.items():
        rows.put(key, value)
    for key, value in history.append(rows, Tables.HISTORY.prefix, head.epoch - 1, head.encoded).items():
        rows.put(key, value)
    for index in changes:
        rows.put(Tables.PENDING.key(index), None)
    rows.put(Tables.HEADS.key(u64(head.epoch)), signed.encoded)
    if head.next_epoch_policy is not None:
        rows.put(Tables.POLICY_HEADS.key(u64(head.epoch)), signed.encoded)
    rows.put(Tables.OUTBOX.key(u64(head.epoch)), b"")
    return State(step.index + 1, chain, grown.root_version, 0)


def pending_changes(reader: Reader, state: State) -> dict[bytes, bytes]:
    """Index -> entry hash of the updates since the newest head. Raises StorageError."""
    rows = reader.scan(*Tables.PENDING.span())
    changes = {Tables.PENDING.suffix(key): value for key, value in rows}
    if len(changes) != state.pending_updates:
        raise RowCorrupt(f"{len(changes)} pending rows, the state counts {state.pending_updates}")
    return changes


def _check_not_replayed(rows: Overlay, realm: Realm, state: State, step: EpochStep) -> None:
    """A head of a past epoch never follows; validly signed and different, it proves a fork."""
    head = step.head.head
    if head.epoch > state.chain.epoch:
        return
    fork = fork_with(rows, realm, step.head)
    if fork is not None:
        raise _Stopped(fork)
    raise _Stopped(_head_evidence(rows, Kind.EPOCH, "is of a past epoch", step, _epochs(state, head)))


def fork_with(reader: Reader, realm: Realm, theirs: SignedHead) -> Evidence | None:
    """Evidence if `theirs` is a validly signed head other than the replayed one of its epoch.

    None if it is equal, not validly signed, or of an epoch not replayed yet. Raises StorageError.
    """
    ours = head_at(reader, theirs.head.epoch)
    if ours is None or ours.head.encoded == theirs.head.encoded:
        return None
    changes = policy_heads(reader, theirs.head.epoch)
    try:
        epoch_law.check_majority(epoch_law.policy_at(realm, changes, theirs.head.epoch), theirs)
    except VerificationError:
        return None
    if theirs.head.realm_hash != realm.hash or theirs.head.realm != realm.name:
        return None
    return Evidence(
        kind=Kind.FORK,
        what=f"two different heads of epoch {theirs.head.epoch} are validly signed",
        compared=(Comparison("head hash", theirs.head.hash.hex(), ours.head.hash.hex()),),
        heads=(ours.encoded, theirs.encoded),
        policy_heads=tuple(head.encoded for head in changes),
    )


def _check_signed(rows: Overlay, realm: Realm, state: State, step: EpochStep) -> None:
    head = step.head.head
    try:
        epoch_law.check_majority(state.chain.policy, step.head)
    except VerificationError as error:
        raise _Stopped(_head_evidence(rows, Kind.SIGNATURE, error.what, step)) from None
    if head.rules > limits.RULES:
        raise _Stopped(Upgrade(head.rules))
    try:
        epoch_law.check_realm(realm, head)
    except VerificationError as error:
        kind = Kind.RULES if error.check == "rules" else Kind.REALM
        compared = (
            Comparison("rules level", str(head.rules), str(limits.RULES)),
            Comparison("realm hash", head.realm_hash.hex(), realm.hash.hex()),
        )
        raise _Stopped(_head_evidence(rows, kind, error.what, step, compared)) from None


def _contradiction(
    rows: Overlay, state: State, step: EpochStep, root_hash: bytes, history_root: bytes
) -> Evidence:
    """The evidence for a validly signed head that does not follow: the provable difference first."""
    chain, head = state.chain, step.head.head
    differences = (
        (Kind.EPOCH, "epoch", str(head.epoch), str(chain.epoch + 1)),
        (Kind.CHAIN, "previous head hash", head.previous_head_hash.hex(), chain.head_hash.hex()),
        (Kind.HISTORY, "history root", head.history_root.hex(), history_root.hex()),
        (Kind.ROOT, "root hash", head.root_hash.hex(), root_hash.hex()),
    )
    found = [(kind, Comparison(*compared)) for kind, *compared in differences if compared[1] != compared[2]]
    if head.issue_time_ms <= chain.issue_time_ms:
        found.append(
            (Kind.CHAIN, Comparison("issue time", str(head.issue_time_ms), f"> {chain.issue_time_ms}"))
        )
    if head.rules not in (chain.rules, chain.rules + 1):
        found.append((Kind.RULES, Comparison("rules level", str(head.rules), f"{chain.rules} or one more")))
    if not found:  # the only other thing that check_head looks at
        keys = " ".join(key_id.hex() for key_id in (head.next_epoch_policy or chain.policy).keys)
        found.append((Kind.POLICY, Comparison("replicas", keys, "one key added, removed or replaced")))
    kind = found[0][0]
    what = "does not follow the replayed ones: " + ", ".join(compared.name for _, compared in found)
    proof: dict[str, Any] = {}
    if kind is Kind.HISTORY and chain.epoch:
        prefix, size = Tables.HISTORY.prefix, chain.epoch
        proof = {
            "expected_history_root": history_root,
            "inclusion": history.inclusion(rows, prefix, size - 1, size),
            "consistency": history.consistency(rows, prefix, size - 1, size),
        }
    return _head_evidence(rows, kind, what, step, tuple(compared for _, compared in found), **proof)


def _head_evidence(
    rows: Overlay,
    kind: Kind,
    what: str,
    step: EpochStep,
    compared: tuple[Comparison, ...] = (),
    **proof: Any,
) -> Evidence:
    """With the head before it where the two together prove something."""
    head = step.head.head
    before = head_at(rows, head.epoch - 1) if kind in (Kind.CHAIN, Kind.HISTORY, Kind.ROOT) else None
    return Evidence(
        kind=kind,
        what=f"head {head.epoch} {what}" if not what.startswith("head") else what,
        compared=compared,
        heads=(*((before.encoded,) if before else ()), step.head.encoded),
        policy_heads=tuple(change.encoded for change in policy_heads(rows, head.epoch)),
        steps=(encode_step(step),),
        **proof,
    )


def _epochs(state: State, head: EpochHead) -> tuple[Comparison, ...]:
    return (Comparison("epoch", str(head.epoch), str(state.chain.epoch + 1)),)


def _out_of_order(state: State, step: VerifierStep) -> Evidence:
    return Evidence(
        kind=Kind.STREAM,
        what=f"step {step.index} was streamed where step {state.next_index} follows",
        compared=(Comparison("index", str(step.index), str(state.next_index)),),
        steps=(encode_step(step),),
    )


def encode_step(step: VerifierStep) -> bytes:
    """The exact bytes a step was decoded from: its encoding is unique."""
    make: Callable[[int, bytes], bytes]
    if isinstance(step, UpdateStep):
        make, carried = encode_update_step, step.update.encoded
    else:
        make, carried = encode_epoch_step, step.head.encoded
    return make(step.index, carried)


def _undecodable(message: bytes, malformed: Malformed) -> Stop:
    """A message this version cannot read: of a later rules level, or no steps at all."""
    later = _later_rules(message)
    if later:
        return Upgrade(later)
    return Evidence(kind=Kind.MALFORMED, what=f"a streamed message: {malformed.what}", received=message)


def _later_rules(message: bytes) -> int:
    """The highest rules level above ours that a head in the message names, read leniently; else 0.

    Nobody's signature is checked: the verifier stops either way, and ratifies nothing.
    """
    highest = 0
    try:
        for step in verification_pb2.VerifierSteps.FromString(message).steps:
            if step.HasField("epoch"):
                highest = max(highest, types_pb2.EpochHead.FromString(step.epoch.head).rules)
    except DecodeError:
        return 0
    return highest if highest > limits.RULES else 0
