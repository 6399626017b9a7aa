"""AddRatification and AdmitVerifier: whose ratifications count, and which ones are stored.

A ratification is stored only if its head is ours, byte for byte, has its majority, and the signature is
valid: nothing a verifier sends can make an epoch look ratified or change what other clients see.
"""

from e2eks.v1 import state_pb2 as pb
from e2eks.v1 import types_pb2

from keyserver.machine import views
from keyserver.machine.codes import Code
from keyserver.machine.commands import AddRatification, AdmitVerifier
from keyserver.machine.notices import RatificationAdded, VerifierContradiction, VerifierListed
from keyserver.machine.rows import encode_ratification, known_head_row, verifier_row
from keyserver.machine.tables import Tables
from keyserver.machine.turn import Answer, Done, Refusal, Turn
from kv.keys import u64
from verifier import limits, policy
from verifier.crypto import hashing, signatures
from verifier.encoding import canonical
from verifier.epoch import verifier_message


def add_ratification(turn: Turn, command: AddRatification) -> Answer:
    """Store a listed verifier's signature on a head of ours; the first per epoch and key stands."""
    pushed = command.ratification.head
    made = command.ratification.ratifications[0]
    signature = made.signatures[0]
    verifier = verifier_row(turn.rows, signature.key_id)
    if verifier is None or not verifier.listed:
        return Code.NOT_AUTHORIZED
    if pushed.epoch > turn.state.signed_epoch:
        return Code.EPOCH_PENDING if pushed.epoch == turn.state.epoch else Code.NO_SUCH_EPOCH
    message = verifier_message(pushed.encoded, made.timestamp_ms)
    if not signatures.verify(verifier.public_key.ed25519, message, signature.signature):
        return Code.BAD_SIGNATURE
    if pushed.encoded != known_head_row(turn.rows, pushed.epoch).head:
        evidence = VerifierContradiction(pushed.epoch, signature.key_id, command.ratification.encoded)
        return Refusal(Code.HEAD_MISMATCH, (evidence,))
    key = Tables.RATIFICATIONS.key(u64(pushed.epoch), signature.key_id)
    if turn.rows.get(key) is not None:
        return Code.DUPLICATE
    turn.rows.put(key, encode_ratification(made))
    return Done(turn.state, (RatificationAdded(pushed.epoch, signature.key_id),))


def admit_verifier(turn: Turn, command: AdmitVerifier) -> Answer:
    """Count the proposing replica's approval; a majority of P(epoch + 1) lists the verifier.

    A replica approves at most as many as may be listed, so that one of them cannot fill the table.
    """
    replicas = turn.state.policy.keys
    key_id = hashing.key_id(command.public_key)
    coming = turn.state.next_policy.keys if turn.state.next_policy is not None else {}
    if key_id in replicas or key_id in coming:
        return Code.KEY_IN_USE
    known = views.verifiers(turn.rows)
    row = known.get(key_id) or pb.VerifierRow(public_key=types_pb2.PublicKey(ed25519=command.public_key))
    if turn.replica in row.approvals:
        return Code.DUPLICATE
    if sum(turn.replica in other.approvals for other in known.values()) >= limits.VERIFIERS:
        return Code.TOO_MANY_VERIFIERS
    approvals = sorted((*row.approvals, turn.replica))
    listed = policy.satisfied(policy.majority(tuple(replicas)), approvals)
    newly = listed and not row.listed
    if newly and sum(other.listed for other in known.values()) >= limits.VERIFIERS:
        return Code.TOO_MANY_VERIFIERS
    kept = pb.VerifierRow(public_key=row.public_key, approvals=approvals, listed=row.listed or listed)
    turn.rows.put(Tables.VERIFIERS.key(key_id), canonical(kept))
    return Done(turn.state, (VerifierListed(command.public_key),) if newly else ())
