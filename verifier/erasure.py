"""The erasure law: who may have everything private of an index forgotten, here and in every replica.

Whoever may change the entry may have it erased. The signature names the entry as it stands, so that one made
long ago erases nothing that was published since. What remains proves the same as before, without showing it.
"""

from __future__ import annotations

from collections.abc import Sequence

from verifier import limits, policy
from verifier.crypto import hashing
from verifier.encoding import at_most
from verifier.errors import Malformed, Reason, Refused
from verifier.types import AuthorizationPolicy, Signature


def erasure_message(realm_hash: bytes, index: bytes, entry_hash: bytes) -> bytes:
    """The 32 bytes that an erasure's signatures are over; `entry_hash` is the current entry's."""
    return hashing.tagged("e2eks/1/erase", realm_hash, index, entry_hash)


def check_signatures(made: Sequence[Signature]) -> tuple[Signature, ...]:
    """At most UPDATE_SIGNATURES signatures by distinct keys. Raises Malformed."""
    at_most(len(made), limits.UPDATE_SIGNATURES, "signatures")
    if len({signature.key_id for signature in made}) != len(made):
        raise Malformed("two signatures are by one key")
    return tuple(made)


def verify_erasure(
    law: AuthorizationPolicy,
    message: bytes,
    made: Sequence[Signature],
) -> tuple[Signature, ...]:
    """The valid signatures among `made` over an erasure message, which satisfy the entry's policy.

    `law` is the update policy of the current entry; of a revoked one, which has none, that of the entry it
    revoked. Signatures by other keys are ignored: a device need not know which of its keys still count.
    Raises Refused (NOT_AUTHORIZED).
    """
    valid, _ = policy.valid_signers(law.keys, message, made)
    if not policy.satisfied(law.quorum, valid):
        raise Refused(Reason.NOT_AUTHORIZED, "the signatures do not satisfy the policy of the entry")
    return tuple(signature for signature in made if signature.key_id in valid)
