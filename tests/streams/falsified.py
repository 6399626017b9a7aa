"""Every way we know to falsify a valid stream, each with the kind of evidence it must leave."""

from collections.abc import Callable
from dataclasses import dataclass

from e2eks.v1 import types_pb2 as pb
from e2eks.v1 import verification_pb2
from streams.build import EPOCH_MS, START_MS, Stream, make_step
from streams.realms import Party, party

from verifier import encoding
from verifier.crypto import hashing
from verifier.daemon.evidence import Kind, Standing
from verifier.policy import majority
from verifier.types import AuthorizationPolicy, QuorumExpr


def three_and_a_half_epochs() -> Stream:
    stream = Stream().grow(3)
    stream.put("alice")
    return stream


def majority_of(replicas: list[Party]) -> AuthorizationPolicy:
    return encoding.make_policy([r.public_key for r in replicas], majority([r.key_id for r in replicas]))


@dataclass(frozen=True)
class Case:
    """`falsify` gets a valid stream of 3 epochs with an open 4th and returns the message that follows it."""

    name: str
    kind: Kind
    falsify: Callable[[Stream], list[bytes]]
    standing: Standing = Standing.TESTIMONY


CASES: list[Case] = []


def case(
    kind: Kind, standing: Standing = Standing.TESTIMONY
) -> Callable[[Callable[[Stream], list[bytes]]], None]:
    def add(falsify: Callable[[Stream], list[bytes]]) -> None:
        CASES.append(Case(falsify.__name__, kind, falsify, standing))

    return add


def next_update(s: Stream, update: bytes) -> list[bytes]:
    return [make_step(len(s.steps) + 1, update=update)]


def next_head(s: Stream, signed: bytes) -> list[bytes]:
    return [make_step(len(s.steps) + 1, epoch=signed)]


def lawful(s: Stream) -> bytes:
    return s.sign_update(s.next_entry("bob"), s.user("bob"))


# The order of the log


@case(Kind.STREAM)
def dropped(s: Stream) -> list[bytes]:
    return [make_step(len(s.steps) + 2, update=lawful(s))]


@case(Kind.STREAM)
def streamed_again(s: Stream) -> list[bytes]:
    return [s.steps[-1]]


@case(Kind.STREAM)
def streamed_from_the_start(s: Stream) -> list[bytes]:
    return list(s.steps)


@case(Kind.STREAM)
def reordered(s: Stream) -> list[bytes]:
    start = len(s.steps)
    s.put("bob")
    s.put("carol")
    return [s.steps[start + 1], s.steps[start]]


@case(Kind.STREAM)
def index_of_the_far_future(s: Stream) -> list[bytes]:
    return [make_step(2**64 - 1, update=lawful(s))]


# Updates


@case(Kind.UPDATE)
def update_repeated_as_a_new_step(s: Stream) -> list[bytes]:
    update = s.sign_update(s.entries["bob"], s.user("bob"))
    return next_update(s, update)


@case(Kind.UPDATE)
def older_update_replayed(s: Stream) -> list[bytes]:
    return [make_step(len(s.steps) + 1, update=update_in(s.steps[0]))]


@case(Kind.UPDATE)
def second_update_of_the_index_in_one_epoch(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.next_entry("alice"), s.user("alice")))


@case(Kind.UPDATE)
def update_without_signatures(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.next_entry("bob")))


@case(Kind.UPDATE)
def update_by_a_stranger(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.next_entry("bob"), s.user("mallory")))


@case(Kind.UPDATE)
def update_with_a_strangers_signature_beside(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.next_entry("bob"), s.user("bob"), s.user("mallory")))


@case(Kind.UPDATE)
def update_with_a_flipped_signature_bit(s: Stream) -> list[bytes]:
    message = pb.SignedEntryUpdate.FromString(lawful(s))
    made = message.signatures[0]
    made.signature = bytes((made.signature[0] ^ 1,)) + made.signature[1:]
    return next_update(s, message.SerializeToString(deterministic=True))


@case(Kind.UPDATE)
def update_rewritten_under_its_signature(s: Stream) -> list[bytes]:
    message = pb.SignedEntryUpdate.FromString(lawful(s))
    message.entry = s.next_entry("bob", profile_commitment=bytes(31) + b"x").encoded
    return next_update(s, message.SerializeToString(deterministic=True))


@case(Kind.UPDATE)
def update_signed_for_another_realm(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.next_entry("bob"), s.user("bob"), realm_hash=bytes(32)))


@case(Kind.UPDATE)
def update_signed_by_the_new_policy_only(s: Stream) -> list[bytes]:
    thief = s.user("mallory")
    return next_update(s, s.sign_update(s.next_entry("bob", update_policy=s.policy(thief)), thief))


@case(Kind.UPDATE)
def update_signed_by_the_old_policy_only(s: Stream) -> list[bytes]:
    entry = s.next_entry("bob", update_policy=s.policy(s.user("mallory")))
    return next_update(s, s.sign_update(entry, s.user("bob")))


@case(Kind.UPDATE)
def update_that_skips_a_version(s: Stream) -> list[bytes]:
    entry = s.next_entry("bob", version=s.entries["bob"].version + 2)
    return next_update(s, s.sign_update(entry, s.user("bob")))


@case(Kind.UPDATE)
def update_with_the_same_version(s: Stream) -> list[bytes]:
    current = s.entries["bob"]
    entry = s.next_entry("bob", version=current.version)
    return next_update(s, s.sign_update(entry, s.user("bob")))


@case(Kind.UPDATE)
def update_with_a_wrong_previous_hash(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.next_entry("bob", previous_entry_hash=bytes(32)), s.user("bob")))


@case(Kind.UPDATE)
def registration_of_a_taken_index(s: Stream) -> list[bytes]:
    entry = s.next_entry("bob", version=0, previous_entry_hash=b"", update_policy=s.policy(s.user("mallory")))
    return next_update(s, s.sign_update(entry, s.user("mallory")))


@case(Kind.UPDATE)
def first_entry_of_an_index_with_version_one(s: Stream) -> list[bytes]:
    entry = s.next_entry("carol", version=1, previous_entry_hash=bytes(32))
    return next_update(s, s.sign_update(entry, s.user("carol")))


@case(Kind.UPDATE)
def revocation_of_an_index_without_entry(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.revocation("carol"), s.user("carol")))


@case(Kind.UPDATE)
def revocation_by_a_stranger(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.revocation("bob"), s.user("mallory")))


@case(Kind.UPDATE)
def revocation_below_the_current_version(s: Stream) -> list[bytes]:
    return next_update(s, s.sign_update(s.revocation("bob", version=1), s.user("bob")))


def update_in(step: bytes) -> bytes:
    return verification_pb2.VerifierStep.FromString(step).update.SerializeToString(deterministic=True)


# Heads that lack their signatures


@case(Kind.SIGNATURE)
def head_without_signatures(s: Stream) -> list[bytes]:
    return next_head(s, encoding.encode_signed_head(s.compose(), []))


@case(Kind.SIGNATURE)
def head_by_a_minority(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(), s.replicas[0]))


@case(Kind.SIGNATURE)
def head_by_one_replica_twice(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(), s.replicas[0], s.replicas[0]))


@case(Kind.SIGNATURE)
def head_by_verifiers_only(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(), *s.verifiers))


@case(Kind.SIGNATURE)
def head_by_strangers(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(), *(party(9, f"replica-{n}") for n in range(3))))


@case(Kind.SIGNATURE)
def head_rewritten_under_its_signatures(s: Stream) -> list[bytes]:
    message = pb.SignedEpochHead.FromString(s.sign_head(s.compose()))
    message.head = s.compose(root_hash=bytes(31) + b"x")
    return next_head(s, message.SerializeToString(deterministic=True))


@case(Kind.SIGNATURE)
def signatures_with_another_time_than_the_issue_time(s: Stream) -> list[bytes]:
    message = pb.SignedEpochHead.FromString(s.sign_head(s.compose()))
    message.ratifications[0].timestamp_ms += 1
    return next_head(s, message.SerializeToString(deterministic=True))


@case(Kind.SIGNATURE)
def signatures_of_the_head_before(s: Stream) -> list[bytes]:
    message = pb.SignedEpochHead.FromString(s.sign_head(s.compose()))
    older = verification_pb2.VerifierStep.FromString(s.steps[-2]).epoch
    message.ratifications[0].CopyFrom(older.ratifications[0])
    return next_head(s, message.SerializeToString(deterministic=True))


@case(Kind.SIGNATURE)
def policy_change_without_a_majority_of_the_new_keys(s: Stream) -> list[bytes]:
    new = [*s.replicas[:2], party(2, "replica")]
    law = majority_of(new)
    return next_head(s, s.sign_head(s.compose(next_epoch_policy=law), s.replicas[0], s.replicas[2]))


@case(Kind.SIGNATURE)
def policy_change_without_the_old_majority(s: Stream) -> list[bytes]:
    new = [*s.replicas[:2], party(2, "replica")]
    law = majority_of(new)
    return next_head(s, s.sign_head(s.compose(next_epoch_policy=law), s.replicas[0], new[2]))


@case(Kind.SIGNATURE)
def old_keys_after_a_policy_change(s: Stream) -> list[bytes]:
    start = len(s.steps)
    old, new = s.replicas, [*s.replicas[:2], party(2, "replica")]
    s.close_epoch(*old, new[2], next_epoch_policy=majority_of(new))
    s.close_epoch(old[0], old[2])
    return s.steps[start:]


@case(Kind.POLICY, Standing.PROVEN)
def two_replicas_replaced_at_once(s: Stream) -> list[bytes]:
    new = [s.replicas[0], *(party(2, f"replica-{n}") for n in range(2))]
    return next_head(s, s.sign_head(s.compose(next_epoch_policy=majority_of(new)), *s.replicas, *new[1:]))


@case(Kind.POLICY, Standing.PROVEN)
def a_policy_that_one_replica_satisfies(s: Stream) -> list[bytes]:
    new = [*s.replicas, party(2, "replica")]
    one = QuorumExpr(threshold=1, candidates=tuple(key.key_id for key in new))
    law = encoding.make_policy([key.public_key for key in new], one)
    return next_head(s, s.sign_head(s.compose(next_epoch_policy=law), *new))


# Heads that do not follow, validly signed


@case(Kind.ROOT)
def wrong_root(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(root_hash=bytes(31) + b"x")))


@case(Kind.ROOT)
def root_without_the_pending_update(s: Stream) -> list[bytes]:
    before = pb.EpochHead.FromString(s.heads[-1]).root_hash
    return next_head(s, s.sign_head(s.compose(root_hash=before)))


@case(Kind.ROOT)
def root_with_an_update_that_was_not_streamed(s: Stream) -> list[bytes]:
    hidden = s.copy()
    hidden.put("bob")
    return next_head(s, s.sign_head(hidden.compose()))


@case(Kind.RULES)
def rules_level_zero(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(rules=0)))


@case(Kind.EPOCH)
def epoch_skipped(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(epoch=5)))


@case(Kind.EPOCH)
def epoch_of_the_far_future(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(epoch=2**64 - 1)))


@case(Kind.EPOCH)
def head_replayed(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.heads[-1]))


@case(Kind.CHAIN, Standing.PROVEN)
def wrong_previous_hash(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(previous_head_hash=bytes(32))))


@case(Kind.CHAIN, Standing.PROVEN)
def previous_hash_of_an_older_head(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(previous_head_hash=hashing.head_hash(s.heads[0]))))


@case(Kind.CHAIN, Standing.PROVEN)
def issued_at_the_same_time(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(issue_time_ms=START_MS + 3 * EPOCH_MS)))


@case(Kind.CHAIN, Standing.PROVEN)
def issued_before_its_predecessor(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(issue_time_ms=START_MS)))


@case(Kind.HISTORY, Standing.PROVEN)
def wrong_history_root(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(history_root=bytes(32))))


@case(Kind.HISTORY, Standing.PROVEN)
def history_without_the_newest_head(s: Stream) -> list[bytes]:
    before = pb.EpochHead.FromString(s.heads[-1]).history_root
    return next_head(s, s.sign_head(s.compose(history_root=before)))


@case(Kind.FORK, Standing.PROVEN)
def forked_head_of_the_newest_epoch(s: Stream) -> list[bytes]:
    other = pb.EpochHead.FromString(s.heads[-1])
    other.root_hash = bytes(31) + b"x"
    return next_head(s, s.sign_head(other.SerializeToString(deterministic=True)))


@case(Kind.FORK, Standing.PROVEN)
def forked_head_of_the_first_epoch(s: Stream) -> list[bytes]:
    other = pb.EpochHead.FromString(s.heads[0])
    other.state_digest = bytes(32)
    return next_head(s, s.sign_head(other.SerializeToString(deterministic=True)))


@case(Kind.REALM, Standing.PROVEN)
def wrong_realm_hash(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(realm_hash=bytes(32))))


@case(Kind.REALM, Standing.PROVEN)
def head_of_another_realm_of_the_same_replicas(s: Stream) -> list[bytes]:
    return next_head(s, s.sign_head(s.compose(realm="example.com")))


@case(Kind.EPOCH)
def other_old_head_by_a_minority(s: Stream) -> list[bytes]:
    other = pb.EpochHead.FromString(s.heads[0])
    other.state_digest = bytes(32)
    return next_head(s, s.sign_head(other.SerializeToString(deterministic=True), s.replicas[2]))
