"""The cases of the replica set law for tools/make_vectors.py; verdicts are stated here by hand."""

from __future__ import annotations

from typing import Any

import samples
from e2eks.v1 import types_pb2 as pb

from verifier import encoding, replica_set
from verifier.types import QuorumExpr

Rows = list[dict[str, Any]]


def replica_sets() -> Rows:
    """One row for each case: lawful and approved, or what is wrong with it."""
    present, realm_hash = samples.REALM.genesis_policy, samples.REALM.hash
    one, two, three = samples.REPLICAS
    new, eve = samples.key("replica to come"), samples.EVE

    def change(keys: list[samples.Key], threshold: int) -> bytes:
        law = encoding.make_policy(
            [key.public for key in keys], QuorumExpr(threshold, tuple(key.id for key in keys))
        )
        wire = pb.ReplicaSetChange(
            base=realm_hash, policy=encoding.policy_message(law), not_after_ms=samples.START_MS
        )
        return encoding.canonical(wire)

    replaced, elsewhere = change([one, two, new], 2), samples.make_realm(name="other.test").hash
    cases = [
        ("replaced", replaced, [one, two, new], "accepted"),
        ("added", change([one, two, three, new], 3), [two, three, new], "accepted"),
        ("removed", change([one, three], 2), [one, two], "accepted"),
        ("without a majority", replaced, [one, new], "NOT_AUTHORIZED"),
        ("without the added key", replaced, [one, two], "NOT_AUTHORIZED"),
        ("by a stranger", replaced, [one, eve, new], "NOT_AUTHORIZED"),
        ("two at once", change([one, new, eve], 2), [one, two, new, eve], "MALFORMED"),
        ("no majority of its keys", change([one, two, new], 1), [one, two, new], "MALFORMED"),
        ("no change", change([one, two, three], 2), [one, two], "MALFORMED"),
        ("another order only", change([three, two, one], 2), [one, two], "MALFORMED"),
    ]
    rows = []
    for name, encoded, by, verdict in cases:
        message = replica_set.approval_message(realm_hash, encoded)
        rows.append((name, encoded, [key.sign(message) for key in by], verdict))
    foreign = [key.sign(replica_set.approval_message(elsewhere, replaced)) for key in (one, two, new)]
    rows.append(("for another realm", replaced, foreign, "NOT_AUTHORIZED"))
    return [
        {
            "name": name,
            "present": present.encoded.hex(),
            "change": encoded.hex(),
            "message": replica_set.approval_message(realm_hash, encoded).hex(),
            "approvals": [[made.key_id.hex(), made.signature.hex()] for made in approvals],
            "verdict": verdict,
        }
        for name, encoded, approvals, verdict in rows
    ]
