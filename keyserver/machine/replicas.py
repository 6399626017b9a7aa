"""ChangeReplicas and AnnounceRules: who the replicas are, and what they know.

An accepted change waits for the next delimiter, whose head carries it. One waits at a time, the first: it was
approved as well as any that could take its place, and it waits no longer than an epoch.
"""

from dataclasses import replace

from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AnnounceRules, ChangeReplicas
from keyserver.machine.rows import verifier_row
from keyserver.machine.rules import announced
from keyserver.machine.tables import Tables
from keyserver.machine.turn import Answer, Done, Turn, raise_clock
from kv.keys import u64
from verifier import replica_set
from verifier.errors import Refused
from verifier.types import AuthorizationPolicy


def change_replicas(turn: Turn, command: ChangeReplicas) -> Answer:
    """Accept a change that the present replicas' majority and every added key approved."""
    state, change, realm = turn.state, command.change, turn.machine.realm
    if state.next_policy is not None:
        same = state.next_policy.encoded == change.policy.encoded
        return Code.DUPLICATE if same else Code.CHANGE_PENDING
    if change.base != views.policy_base(turn.rows, realm) or turn.now_ms > change.not_after_ms:
        return Code.CHANGE_OUTDATED
    try:
        replica_set.check_change(state.policy, change.policy)
    except Refused:
        return Code.CHANGE_UNLAWFUL
    if not replica_set.approvals(realm.hash, state.policy, change, command.approvals).complete:
        return Code.NOT_AUTHORIZED
    known = (verifier_row(turn.rows, key_id) for key_id in change.policy.keys)
    if any(row is not None and row.listed for row in known):
        return Code.KEY_IN_USE
    return Done(replace(state, next_policy=change.policy))


def take_effect(turn: Turn, epoch: int, new: AuthorizationPolicy) -> None:
    """The rows of the change that head `epoch` carries.

    Time goes on where it stands: no clock of the new set counts as earlier than the log's time, which the
    old set has signed. So a new clock, unknown yet, or a slow one that now matters, cannot turn it back.
    """
    turn.rows.put(Tables.POLICY_HEADS.key(u64(epoch)), new.encoded)
    for replica in turn.state.policy.keys:
        if replica not in new.keys:
            turn.rows.put(Tables.CLOCKS.key(replica), None)
            turn.rows.put(Tables.ANNOUNCED.key(replica), None)
    for replica in new.keys:
        raise_clock(turn.rows, replica, turn.now_ms)


def announce_rules(turn: Turn, command: AnnounceRules) -> Answer:
    """Remember the newest level that the proposing replica knows; what it knew once, it knows for ever."""
    if command.rules <= max(announced(turn.rows, turn.replica), turn.state.rules):
        return Code.DUPLICATE
    turn.rows.put(Tables.ANNOUNCED.key(turn.replica), u64(command.rules))
    return Done(turn.state)
