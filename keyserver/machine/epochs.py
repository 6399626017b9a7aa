"""Delimiter and SignHead: the delimiter law, the composed head, the replicas' signatures, the majority.

The prefix tree is changed once per epoch, here. A head carries the state digest of the entry BEFORE its
delimiter.
"""

from dataclasses import replace

from e2eks.v1 import state_pb2 as pb

from keyserver.machine import replicas, views
from keyserver.machine.codes import Code, invariant
from keyserver.machine.commands import Delimiter, SignHead
from keyserver.machine.notices import (
    HeadComposed,
    HeadSigned,
    RatificationAdded,
    ReplicaContradiction,
    VerifierLogGrew,
)
from keyserver.machine.rows import decode_own_head, known_head_row, policy_of_epoch
from keyserver.machine.rules import level_after
from keyserver.machine.state import ReplicaState, require_known
from keyserver.machine.tables import Tables
from keyserver.machine.turn import Answer, Done, Refusal, Turn, emit_head, emit_updates
from keyserver.machine.updates import parked_updates
from kv.keys import u64
from verifier import limits
from verifier.crypto import hashing, signatures
from verifier.encoding import canonical
from verifier.epoch import compose_head, has_majority, replica_message, signing_keys
from verifier.merkle import history, tree
from verifier.types import EpochHead


def delimiter(turn: Turn, command: Delimiter) -> Answer:
    """End what goes into the next epoch and compose its head, if the delimiter law allows."""
    state = turn.state
    if command.epoch != state.epoch + 1:
        return Code.DELIMITER_EPOCH
    if not state.is_signed:
        return Code.EPOCH_PENDING
    after_ms = state.issue_time_ms + max(state.min_epoch_interval_ms, 1)
    if command.time_ms < after_ms:
        return Code.DELIMITER_EARLY
    if abs(command.time_ms - turn.now_ms) > limits.DELIMITER_DRIFT_MS:
        return Code.DELIMITER_DRIFT
    new = state.next_policy or state.policy
    rules = level_after(turn.rows, state.rules, new.keys)
    require_known(turn.machine, rules)
    head = _compose(turn, command, rules)
    if state.next_policy is not None:
        replicas.take_effect(turn, command.epoch, new)
    after = replace(
        state,
        epoch=command.epoch,
        issue_time_ms=command.time_ms,
        head_hash=hashing.head_hash(head),
        pending_updates=0,
        policy=new,
        next_policy=None,
        rules=rules,
    )
    return Done(after, (HeadComposed(command.epoch),))


def _compose(turn: Turn, command: Delimiter, rules: int) -> bytes:
    """Write tree, head and history rows of the new epoch; return the exact bytes of its head."""
    rows, state = turn.rows, turn.state
    pending = list(rows.scan(*Tables.PENDING.span()))
    invariant(len(pending) == state.pending_updates, "every pending update has its row")
    invariant(state.parked_updates == 0, "nothing is parked once the last head has its majority")
    root_version = known_head_row(rows, state.epoch).root_version if state.epoch else 0
    changes = {Tables.PENDING.suffix(key): entry_hash for key, entry_hash in pending}
    grown = tree.update(rows, Tables.TREE.prefix, root_version, command.epoch, changes)
    head = compose_head(
        turn.machine.realm,
        state.chain,
        root_hash=grown.root,
        issue_time_ms=command.time_ms,
        history_root=history.root(rows, Tables.HISTORY.prefix, state.epoch),
        state_digest=turn.position.digest,
        next_epoch_policy=state.next_policy,
        rules=rules,
    )
    nodes = history.append(rows, Tables.HISTORY.prefix, state.epoch, head)
    for key, _ in pending:
        rows.put(key, None)
    for derived in (grown.writes, nodes):
        for key, value in derived.items():
            rows.put(key, value)
    row = pb.HeadRow(head=head, root_version=grown.root_version, log_index=turn.index)
    rows.put(Tables.HEADS.key(u64(command.epoch)), canonical(row))
    return head


def sign_head(turn: Turn, command: SignHead) -> Answer:
    """Store the proposing replica's signature on a head of ours; late ones too. The first one stands."""
    state, rows, key_id = turn.state, turn.rows, turn.replica
    if not 1 <= command.epoch <= state.epoch:
        return Code.NO_SUCH_EPOCH
    head = decode_own_head(known_head_row(rows, command.epoch))
    law = policy_of_epoch(rows, turn.machine.realm.genesis_policy, command.epoch)
    public_key = signing_keys(law, head).get(key_id)
    if public_key is None:
        return Code.NOT_AUTHORIZED
    if command.head_hash != head.hash:
        contradiction = ReplicaContradiction(command.epoch, key_id, command.head_hash, turn.index)
        return Refusal(Code.HEAD_MISMATCH, (contradiction,))
    key = Tables.REPLICA_SIGNATURES.key(u64(command.epoch), key_id)
    if rows.get(key) is not None:
        return Code.DUPLICATE
    message = replica_message(head.encoded, head.issue_time_ms)
    if not signatures.verify(public_key, message, command.signature):
        return Code.BAD_SIGNATURE
    rows.put(key, command.signature)
    added = RatificationAdded(command.epoch, key_id)
    signers = views.replica_signers(rows, command.epoch)
    if command.epoch <= state.signed_epoch or not has_majority(law, head, signers):
        return Done(state, (added,))
    after = _publish(turn, head)
    return Done(after, (added, HeadSigned(head.epoch), VerifierLogGrew(after.verifier_log_size)))


def _publish(turn: Turn, head: EpochHead) -> ReplicaState:
    """The head reached its majority: verifiers see it with the signatures it has now, then what waited for
    it.
    """
    state = replace(turn.state, signed_epoch=head.epoch, parked_updates=0)
    waiting = parked_updates(turn)
    invariant(len(waiting) == turn.state.parked_updates, "every parked update has its row")
    state = emit_head(turn.rows, state, views.signed_head(turn.rows, head.epoch))
    return emit_updates(turn.rows, state, waiting)
