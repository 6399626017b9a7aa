"""SubmitUpdate: the update law, admission of registrations, the daily quota; then rows for tree, verifiers,
history.

Verifiers see updates and heads in one order: what is accepted behind a delimiter is parked until its head
has its majority, and emitted after that head.
"""

from dataclasses import replace

from e2eks.v1 import state_pb2 as pb

from keyserver.machine import commands, private_parts
from keyserver.machine.codes import CODE_OF, Code
from keyserver.machine.commands import SubmitUpdate
from keyserver.machine.notices import VerifierLogGrew
from keyserver.machine.rows import decode_entry_row, encode_entry_row, parse_row
from keyserver.machine.tables import Tables
from keyserver.machine.turn import Answer, Done, Turn, emit_updates
from kv.keys import u64
from verifier import limits, policy
from verifier.crypto import commitment, signatures
from verifier.encoding import canonical
from verifier.errors import Refused
from verifier.types import Entry, SignedUpdate
from verifier.update import Change, verify_update


def submit_update(turn: Turn, command: SubmitUpdate) -> Answer:
    """Accept the update into epoch + 1, or say why not. The same entry again succeeds without writes."""
    update, entry = command.update, command.update.entry
    row = turn.rows.get(Tables.CURRENT.key(entry.index))
    since, current = decode_entry_row(row) if row is not None else (0, None)
    pending = turn.rows.get(Tables.PENDING.key(entry.index)) is not None
    try:
        change = verify_update(
            current.entry if current is not None else None,
            update,
            realm_hash=turn.machine.realm.hash,
            pending=pending,
        )
    except Refused as refusal:
        return CODE_OF[refusal.reason]
    if change is Change.UNCHANGED:
        return Done(turn.state, epoch=since)
    if change is Change.REGISTRATION and (refused := _admission(turn, command)) is not None:
        return refused
    quota = _quota(turn, entry.index)
    if quota is None:
        return Code.RATE_LIMITED
    epoch = turn.state.epoch + 1
    if change is Change.REGISTRATION:
        turn.rows.put(Tables.PROOF_IDS.key(command.proof_id), u64(epoch))
    turn.rows.put(Tables.QUOTAS.key(entry.index), quota)
    if row is not None:
        turn.rows.put(Tables.PAST.key(entry.index, u64(since)), row)
    turn.rows.put(Tables.CURRENT.key(entry.index), encode_entry_row(epoch, update))
    turn.rows.put(Tables.PENDING.key(entry.index), entry.hash)
    _keep_private(turn, command, epoch)
    return _emit(turn, update, epoch)


def _emit(turn: Turn, update: SignedUpdate, epoch: int) -> Done:
    state = replace(turn.state, pending_updates=turn.state.pending_updates + 1)
    if not state.is_signed:
        number = state.parked_updates + 1
        turn.rows.put(Tables.PARKED.key(u64(number)), update.encoded)
        return Done(replace(state, parked_updates=number), epoch=epoch)
    state = emit_updates(turn.rows, state, (update.encoded,))
    return Done(state, (VerifierLogGrew(state.verifier_log_size),), epoch=epoch)


def _admission(turn: Turn, command: SubmitUpdate) -> Code | None:
    """Why a registration is not admitted: f + 1 replicas of P(epoch + 1) must have endorsed it, for one
    use.
    """
    if not command.endorsements or not command.proof_id:
        return Code.PROOF_REQUIRED
    needed = policy.tolerated_faults(turn.state.policy) + 1
    valid = [e for e in command.endorsements if _is_valid(turn, command, e)]
    if len(valid) < needed:
        return Code.PROOF_INVALID
    if sum(e.not_after_ms >= turn.now_ms for e in valid) < needed:
        return Code.PROOF_EXPIRED
    if turn.rows.get(Tables.PROOF_IDS.key(command.proof_id)) is not None:
        return Code.PROOF_REPLAYED
    return None


def _is_valid(turn: Turn, command: SubmitUpdate, endorsement: commands.Endorsement) -> bool:
    public_key = turn.state.policy.keys.get(endorsement.key_id)
    if public_key is None:
        return False
    entry = command.update.entry
    message = commands.endorsement_message(
        turn.machine.realm.hash,
        command.private_hash,
        entry.index,
        entry.hash,
        command.proof_id,
        endorsement.not_after_ms,
    )
    return signatures.verify(public_key, message, endorsement.signature)


def _quota(turn: Turn, index: bytes) -> bytes | None:
    """The quota row after one more update today, in log time; None if the day is full."""
    day, updates = turn.now_ms // limits.DAY_MS, 0
    row = turn.rows.get(Tables.QUOTAS.key(index))
    if row is not None:
        kept = parse_row(pb.QuotaRow, row)
        if kept.day >= day:  # another policy's majority may have been ahead
            day, updates = kept.day, kept.updates
    if updates >= limits.UPDATES_PER_DAY:
        return None
    return canonical(pb.QuotaRow(day=day, updates=updates + 1))


def _keep_private(turn: Turn, command: SubmitUpdate, epoch: int) -> None:
    """Store what the private part opens to. The verdict never depends on it: it may be blank in a replayed
    log.
    """
    contents = private_parts.open_private_part(turn.private_part, command.private_hash)
    entry = command.update.entry
    if contents is None or not _is_committed(entry, contents):
        return
    row = pb.PrivateRow(
        user_id=contents.user_id,
        profile=contents.profile,
        nonce=contents.nonce,
        log_index=turn.index,
        part=turn.part,
    )
    turn.rows.put(Tables.PROFILES.key(entry.index, u64(epoch)), canonical(row))


def _is_committed(entry: Entry, contents: private_parts.PrivateContents) -> bool:
    """Whether the entry's own commitment is to this profile; a proof with any other would not verify."""
    made = commitment.commit(contents.nonce, entry.index, entry.version, contents.profile)
    return made == entry.profile_commitment


def parked_updates(turn: Turn) -> list[bytes]:
    """The parked updates in the order of their acceptance; they are removed from the table."""
    rows = list(turn.rows.scan(*Tables.PARKED.span()))
    for key, _ in rows:
        turn.rows.put(key, None)
    return [update for _, update in rows]
