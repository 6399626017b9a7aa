"""What tests ask of a replica's service, and how they check its answers by the client's own rules."""

import pytest
import trio
from e2eks.v1 import verification_pb2

from keyserver.machine import views
from keyserver.run import Parts, now_ms
from keyserver.testing import SmallRealm, small_realm
from verifier import proof_encoding
from verifier.errors import Reason, Refused
from verifier.lookup import LookupResult, Present, Trust, verify_lookup
from verifier.types import EpochStep, UpdateStep

PATIENCE = 60.0
SMALL = small_realm()
GUARDED = small_realm(verifiers=2)
HERE = "ipv4:127.0.0.1"


def check(small: SmallRealm, user_id: str, proof: bytes, *, epoch: int = 0, pinned: int = 0) -> LookupResult:
    realm = small.realm
    trust = Trust(realm, realm.verification_policy.quorum, realm.genesis_policy, pinned_epoch=pinned)
    return verify_lookup(trust, user_id, proof, now_ms=now_ms(), epoch=epoch)


def present(small: SmallRealm, user_id: str, proof: bytes, **where: int) -> Present:
    result = check(small, user_id, proof, **where)
    assert isinstance(result, Present)
    return result


async def refused(reason: Reason, parts: Parts, request: bytes) -> Refused:
    with trio.fail_after(PATIENCE), pytest.raises(Refused) as caught:
        await parts.service.update(request, HERE)
    assert caught.value.reason is reason, caught.value.what
    return caught.value


def lookup_refused(reason: Reason, parts: Parts, request: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parts.service.lookup(request, HERE)
    assert caught.value.reason is reason, caught.value.what


async def epoch_signed(parts: Parts, epoch: int) -> None:
    with trio.fail_after(PATIENCE):
        while parts.replica.state.signed_epoch < epoch:
            turn = parts.replica.applied.turn()
            if parts.replica.state.signed_epoch < epoch:
                await turn.wait()


async def ratified_by(parts: Parts, small: SmallRealm, verifier: int, epoch: int) -> None:
    """A verifier's part: read the newest steps, ratify the head of `epoch`, push."""
    await epoch_signed(parts, epoch)
    heads = [step.head for step in await all_steps(parts) if isinstance(step, EpochStep)]
    head = next(head for head in heads if head.head.epoch == epoch)
    pushed = small.ratify(verifier, head, now_ms())
    answer = await parts.service.push_ratification(pushed, small.realm.verifiers[verifier].key_id)
    assert verification_pb2.PushRatificationResponse.FromString(answer).HasField("newest")


async def all_steps(parts: Parts) -> list[UpdateStep | EpochStep]:
    size = parts.replica.state.verifier_log_size
    request = verification_pb2.VerifierStreamRequest(start=1, page_size=max(size, 1))
    next_page = parts.service.verifier_stream(request.SerializeToString())
    steps: list[UpdateStep | EpochStep] = []
    while (page := await next_page()) is not None:
        steps += proof_encoding.decode_steps(page)
    return steps


async def admitted(parts: Parts, small: SmallRealm) -> None:
    """The replica's approval of its verifiers is in the log."""
    with trio.fail_after(PATIENCE):
        while len(views.verifiers(parts.replica.store)) < len(small.realm.verifiers):
            turn = parts.replica.applied.turn()
            if len(views.verifiers(parts.replica.store)) < len(small.realm.verifiers):
                await turn.wait()
