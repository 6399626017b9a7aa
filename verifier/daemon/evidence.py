"""Evidence of misbehaviour: what is kept, and what it proves to somebody who has only the file and the realm.

A replica's signature on a head is a statement; two statements that exclude each other are a proof. Steps of
the verifier log are not signed one by one, so a bad step is testimony: it says what this verifier was
shown, and any other verifier can look whether it is shown the same. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from verifier import encoding, policy
from verifier import epoch as epoch_law
from verifier.crypto import hashing
from verifier.errors import E2eksError, Malformed, VerificationError
from verifier.merkle import history
from verifier.proof_encoding import decode_step
from verifier.types import AuthorizationPolicy, EpochHead, Realm, SignedHead, UpdateStep
from verifier.update import Change, verify_update

SCHEMA = "e2eks.evidence/1"
DOCUMENT_BYTES = 8 * 1024 * 1024  # one streamed message in base64, and the heads beside it


class Kind(StrEnum):
    """What was broken. The first four and `policy` the file alone proves; the last two, it may."""

    FORK = "fork"  # two validly signed heads of one epoch
    CHAIN = "chain"  # a validly signed head that does not follow the validly signed one before it
    HISTORY = "history"  # a validly signed head whose history root leaves out the heads before it
    REALM = "realm"  # a head of another realm hash, signed with this realm's keys
    ROOT = "root"  # a validly signed root that the replayed updates do not lead to
    RULES = "rules"  # a validly signed head of a rules level that never was
    POLICY = "policy"  # a validly signed head that changes the replicas unlawfully
    EPOCH = "epoch"  # a validly signed head of an epoch that is not the next one
    SIGNATURE = "signature"  # a head without the signatures of its replicas' policy
    UPDATE = "update"  # an update that the update law refuses
    STREAM = "stream"  # a step with another index than the next one
    MALFORMED = "malformed"  # bytes that are no steps
    REGISTER = "register"  # another head than the one this verifier's register says it signed
    OWN_KEY = "own-key"  # a ratification by this verifier's key that its register does not know
    DIFFERENT = "heads-differ"  # what one replica composed, and what another one showed it for the same epoch


HISTORY_CONFLICTS = frozenset({Kind.FORK, Kind.CHAIN, Kind.HISTORY, Kind.REGISTER, Kind.DIFFERENT})


class Comparison(msgspec.Struct, frozen=True):
    """One thing compared: what was said, and what had to be there. Hashes in hex."""

    name: str
    said: str
    expected: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The exact bytes received, what they were compared with, and what is needed to judge them.

    heads: SignedEpochHeads, older first · policy_heads: those that changed the replicas' policy before ·
    steps: VerifierSteps · entry: the SignedEntryUpdate that was current, `pending` if it is of the running
    epoch · received: a whole message · expected_history_root with its paths: the log tree of the older head
    with that head appended.
    """

    kind: str
    what: str
    compared: tuple[Comparison, ...] = ()
    heads: tuple[bytes, ...] = ()
    policy_heads: tuple[bytes, ...] = ()
    steps: tuple[bytes, ...] = ()
    entry: bytes = b""
    pending: bool = False
    received: bytes = b""
    expected_history_root: bytes = b""
    inclusion: tuple[bytes, ...] = ()
    consistency: tuple[bytes, ...] = ()

    @property
    def exit_code(self) -> int:
        """8 where histories contradict each other, 2 where only this verifier is at fault, else 3 (contract
        section 4).
        """
        if self.kind == Kind.OWN_KEY:
            return 2
        return 8 if self.kind in HISTORY_CONFLICTS else 3


class Document(Evidence, frozen=True, kw_only=True):
    """An evidence file."""

    schema: str
    realm: str
    realm_hash: str
    time_ms: int = 0


def to_document(realm: Realm, evidence: Evidence, time_ms: int) -> bytes:
    """The bytes of an evidence file: JSON, bytes in base64; `time_ms` = when it was found, Unix time."""
    kept = {name: getattr(evidence, name) for name in evidence.__struct_fields__}
    document = Document(schema=SCHEMA, realm=realm.name, realm_hash=realm.hash.hex(), time_ms=time_ms, **kept)
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def from_document(data: bytes) -> Document:
    """The evidence in the bytes of a file; raises Malformed."""
    if len(data) > DOCUMENT_BYTES:
        raise Malformed("an evidence file is too large")
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.DecodeError, RecursionError):
        raise Malformed(f"the file is not JSON of schema {SCHEMA}") from None
    if document.schema != SCHEMA:
        raise Malformed(f"the file has another schema than {SCHEMA}")
    return document


class Standing(StrEnum):
    """What a file is worth."""

    PROVEN = "proven"  # the signed bytes in it exclude each other
    TESTIMONY = "testimony"  # it fits together, but nobody's signature stands for it
    REFUTED = "refuted"  # it does not show what it claims


@dataclass(frozen=True, slots=True)
class Verdict:
    """`culprits` are the key ids whose signatures prove the misbehaviour."""

    standing: Standing
    statement: str
    culprits: tuple[bytes, ...] = ()


class _Refuted(Exception):
    pass


def judge(realm: Realm, document: Document) -> Verdict:
    """What the file proves to somebody who trusts nothing but `realm`. Never raises on any document.

    The replicas' policy of an epoch is followed through the file's policy heads from the genesis policy on:
    who left one out would show old keys at work after their time, so a file is judged together with the
    realm's policy heads.
    """
    if document.realm_hash != realm.hash.hex():
        return Verdict(Standing.REFUTED, "the file speaks of another realm (realm hash) than the realm file")
    check = _CHECKS.get(document.kind)
    if check is None:
        return Verdict(
            Standing.TESTIMONY, f"{document.what}. The file alone cannot prove it: no signature stands for it"
        )
    try:
        return check(realm, document)
    except _Refuted as refuted:
        return Verdict(Standing.REFUTED, str(refuted))
    except E2eksError as error:
        return Verdict(Standing.REFUTED, f"a part of the file does not verify: {error}")


def _heads(realm: Realm, document: Document, count: int) -> list[tuple[SignedHead, frozenset[bytes]]]:
    """The heads of the document, each proven to be signed under its policy, with those who signed."""
    if len(document.heads) != count:
        raise _Refuted(f"{len(document.heads)} heads, {count} needed")
    changes = [encoding.decode_signed_head(data) for data in document.policy_heads]
    signed = []
    for data in document.heads:
        head = encoding.decode_signed_head(data)
        law = epoch_law.policy_at(realm, changes, head.head.epoch)
        epoch_law.check_majority(law, head)
        signed.append((head, replica_signers(law, head)))
    return signed


def replica_signers(law: AuthorizationPolicy, head: SignedHead) -> frozenset[bytes]:
    """Key ids of the policy whose replica signature on the head is valid."""
    return epoch_law.signers(head, law.keys, {}, law.keys).replicas


def _of_realm(realm: Realm, *heads: EpochHead) -> None:
    if any(head.realm_hash != realm.hash or head.realm != realm.name for head in heads):
        raise _Refuted("a head is of another realm")


def _proven(statement: str, *signers: frozenset[bytes]) -> Verdict:
    both = frozenset.intersection(*signers)
    return Verdict(Standing.PROVEN, statement, tuple(sorted(both)))


def _check_fork(realm: Realm, document: Document) -> Verdict:
    (first, by_first), (second, by_second) = _heads(realm, document, 2)
    _of_realm(realm, first.head, second.head)
    if first.head.epoch != second.head.epoch or first.head.encoded == second.head.encoded:
        raise _Refuted("the two heads are not different heads of one epoch")
    what = f"the replicas signed two different heads of epoch {first.head.epoch}"
    return _proven(what, by_first, by_second)


def _check_chain(realm: Realm, document: Document) -> Verdict:
    if len(document.heads) == 1:
        ((head, signers),) = _heads(realm, document, 1)
        _of_realm(realm, head.head)
        if head.head.epoch != 1 or head.head.previous_head_hash == realm.hash:
            raise _Refuted("the head is not a first head that lacks the realm hash")
        return _proven(
            "the replicas signed a head of epoch 1 that does not start from the realm hash", signers
        )
    older, newer, signed_by = _neighbours(realm, document)
    if newer.previous_head_hash != older.hash:
        broken = "names another head as its predecessor"
    elif newer.issue_time_ms <= older.issue_time_ms:
        broken = "was not issued after it"
    else:
        raise _Refuted("the newer head follows the older one")
    what = f"the replicas signed head {older.epoch}, and a head {newer.epoch} that {broken}"
    return _proven(what, *signed_by)


def _neighbours(
    realm: Realm, document: Document
) -> tuple[EpochHead, EpochHead, tuple[frozenset[bytes], frozenset[bytes]]]:
    (older, by_older), (newer, by_newer) = _heads(realm, document, 2)
    _of_realm(realm, older.head, newer.head)
    if newer.head.epoch != older.head.epoch + 1:
        raise _Refuted("the two heads are not of consecutive epochs")
    return older.head, newer.head, (by_older, by_newer)


def _check_history(realm: Realm, document: Document) -> Verdict:
    if len(document.heads) == 1:
        ((head, signers),) = _heads(realm, document, 1)
        _of_realm(realm, head.head)
        if head.head.epoch != 1 or head.head.history_root == history.EMPTY_ROOT:
            raise _Refuted("the head is not a first head that claims a history")
        return _proven("the replicas signed a head of epoch 1 that claims a history before it", signers)
    older, newer, signed_by = _neighbours(realm, document)
    size, root = older.epoch, document.expected_history_root
    grown = history.verify_consistency(size - 1, size, older.history_root, root, document.consistency)
    if not grown or not history.verify_inclusion(older.encoded, size - 1, size, document.inclusion, root):
        raise _Refuted("the expected history root does not follow from the older head")
    if newer.history_root == root:
        raise _Refuted("the newer head has the history root that follows from the older one")
    what = f"the replicas signed head {older.epoch}, and a head {newer.epoch} whose history leaves it out"
    return _proven(what, *signed_by)


def _check_realm(realm: Realm, document: Document) -> Verdict:
    ((head, signers),) = _heads(realm, document, 1)
    if head.head.realm == realm.name and head.head.realm_hash == realm.hash:
        raise _Refuted("the head is of this realm")
    return _proven(
        "the replicas signed a head of another realm or realm hash with this realm's keys", signers
    )


def _check_signature(realm: Realm, document: Document) -> Verdict:
    head = encoding.decode_signed_head(document.heads[0]) if document.heads else None
    if head is None:
        raise _Refuted("no head")
    changes = [encoding.decode_signed_head(data) for data in document.policy_heads]
    law = epoch_law.policy_at(realm, changes, head.head.epoch)
    if policy.satisfied(law.quorum, replica_signers(law, head)) and head.head.next_epoch_policy is None:
        raise _Refuted("the head has the signatures of its replicas' policy")
    what = "the head lacks the replicas' signatures, as the file says; who made it is not proven"
    return Verdict(Standing.TESTIMONY, what)


def _check_policy(realm: Realm, document: Document) -> Verdict:
    ((head, signers),) = _heads(realm, document, 1)
    _of_realm(realm, head.head)
    changes = [encoding.decode_signed_head(data) for data in document.policy_heads]
    if head.head.next_epoch_policy is None:
        raise _Refuted("the head changes nothing about the replicas")
    law = epoch_law.policy_at(realm, changes, head.head.epoch)
    try:
        epoch_law.check_policy_change(law, head.head.next_epoch_policy)
    except VerificationError as error:
        return _proven(f"the replicas signed an unlawful change of themselves: {error.what}", signers)
    raise _Refuted("the change of the replicas is lawful")


def _check_update(realm: Realm, document: Document) -> Verdict:
    step = decode_step(document.steps[-1]) if document.steps else None
    if not isinstance(step, UpdateStep):
        raise _Refuted("the last step is not an update")
    current = encoding.decode_update(document.entry).entry if document.entry else None
    try:
        change = verify_update(current, step.update, realm_hash=realm.hash, pending=document.pending)
    except E2eksError as error:
        what = f"the update does not follow the given entry ({error}); who put it into the log is not proven"
        return Verdict(Standing.TESTIMONY, what)
    if change is Change.UNCHANGED:
        what = "the update repeats the given entry; who put it into the log is not proven"
        return Verdict(Standing.TESTIMONY, what)
    raise _Refuted("the update is lawful")


def _check_own_key(realm: Realm, document: Document) -> Verdict:
    """Two ratifications of one epoch by one key: no register lets that happen."""
    listed = {verifier.key_id: verifier.public_key for verifier in realm.verifiers}
    heads = [encoding.decode_signed_head(data) for data in document.heads]
    _of_realm(realm, *(head.head for head in heads))
    made = [epoch_law.signers(head, {}, listed, listed).verifiers for head in heads]
    both = frozenset.intersection(*(frozenset(times) for times in made)) if len(heads) == 2 else frozenset()
    if not both:
        what = "the file shows no two ratifications by one key of the realm's verifiers; the rest is its word"
        return Verdict(Standing.TESTIMONY, f"{document.what}: {what}")
    (first, second), (times, others) = (head.head for head in heads), made
    if first.epoch != second.epoch:
        raise _Refuted("the two ratifications are of different epochs")
    twice = frozenset(key for key in both if first.hash != second.hash or times[key] != others[key])
    if not twice:
        raise _Refuted("the two ratifications are one")
    how = "two different heads" if first.hash != second.hash else "one head at two times"
    return _proven(f"a verifier's key ratified {how} of epoch {first.epoch}: it is at work twice", twice)


def _check_different(realm: Realm, document: Document) -> Verdict:
    """Heads without a majority: each replica answers for its own signature only."""
    if len(document.heads) != 2:
        raise _Refuted(f"{len(document.heads)} heads, 2 needed")
    first, second = (encoding.decode_signed_head(data) for data in document.heads)
    _of_realm(realm, first.head, second.head)
    if first.head.epoch != second.head.epoch or first.head.encoded == second.head.encoded:
        raise _Refuted("the two heads are not different heads of one epoch")
    changes = [encoding.decode_signed_head(data) for data in document.policy_heads]
    law = epoch_law.policy_at(realm, changes, first.head.epoch)
    both = replica_signers(law, first) & replica_signers(law, second)
    if both:
        return _proven(f"a replica's key signed two different heads of epoch {first.head.epoch}", both)
    what = f"replicas have different heads of epoch {first.head.epoch}; no one key signed both"
    return Verdict(Standing.TESTIMONY, f"{what}, so which of them follows from the log is not proven")


_CHECKS: Mapping[str, Callable[[Realm, Document], Verdict]] = {
    Kind.FORK: _check_fork,
    Kind.CHAIN: _check_chain,
    Kind.HISTORY: _check_history,
    Kind.REALM: _check_realm,
    Kind.SIGNATURE: _check_signature,
    Kind.POLICY: _check_policy,
    Kind.UPDATE: _check_update,
    Kind.OWN_KEY: _check_own_key,
    Kind.DIFFERENT: _check_different,
}


def fingerprint(evidence: Evidence) -> str:
    """A short name of the content, the same whenever the same thing is found again."""
    return hashing.sha256(msgspec.json.encode(evidence)).hex()[:12]
