"""What a file of evidence proves to somebody who trusts only the realm file."""

import base64
import json
import random
from pathlib import Path

import pytest
from streams.build import Stream
from streams.falsified import majority_of
from streams.realms import make_realm, party

from verifier import encoding, proof_encoding
from verifier.daemon.evidence import Evidence, Kind, Standing, from_document, judge, to_document
from verifier.daemon.evidence_files import keep_evidence, read_evidence
from verifier.errors import Malformed
from verifier.types import Realm


def forked() -> tuple[Stream, bytes, bytes]:
    """Two heads of epoch 2, each signed by all replicas."""
    stream = Stream().grow(1)
    return (
        stream,
        stream.sign_head(stream.compose(state_digest=b"a" * 32)),
        stream.sign_head(stream.compose(state_digest=b"b" * 32)),
    )


def standing(realm: Realm, evidence: Evidence) -> Standing:
    return judge(realm, from_document(to_document(realm, evidence, 1))).standing


def fork_of(*heads: bytes, policy_heads: tuple[bytes, ...] = ()) -> Evidence:
    return Evidence(kind=Kind.FORK, what="fork", heads=heads, policy_heads=policy_heads)


def test_two_signed_heads_of_one_epoch_prove_a_fork_and_name_who_signed_both() -> None:
    stream, first, _ = forked()
    partly = stream.sign_head(stream.compose(state_digest=b"b" * 32), *stream.replicas[1:])
    verdict = judge(stream.realm, from_document(to_document(stream.realm, fork_of(first, partly), 1)))
    assert verdict.standing is Standing.PROVEN
    assert set(verdict.culprits) == {replica.key_id for replica in stream.replicas[1:]}


def test_a_fork_file_written_by_a_client_is_judged_as_well() -> None:
    stream, first, second = forked()
    document = {
        "schema": "e2eks.evidence/1",
        "kind": "fork",
        "what": "two heads",
        "realm": stream.realm.name,
        "realm_hash": stream.realm.hash.hex(),
        "heads": [base64.b64encode(head).decode() for head in (first, second)],
        "written_by": "a client",
    }
    assert judge(stream.realm, from_document(json.dumps(document).encode())).standing is Standing.PROVEN


def test_replicas_that_differ_are_proven_guilty_only_by_a_key_that_signed_both() -> None:
    stream = Stream().grow(1)
    one, other, *_ = stream.replicas
    shown = {
        (state, key.key_id): stream.sign_head(stream.compose(state_digest=state * 32), key)
        for state in (b"a", b"b")
        for key in (one, other)
    }

    def judged(*heads: bytes) -> tuple[Standing, tuple[bytes, ...]]:
        evidence = Evidence(kind=Kind.DIFFERENT, what="they differ", heads=heads)
        verdict = judge(stream.realm, from_document(to_document(stream.realm, evidence, 1)))
        return verdict.standing, verdict.culprits

    ours = shown[b"a", one.key_id]
    assert judged(ours, shown[b"b", one.key_id]) == (Standing.PROVEN, (one.key_id,))
    assert judged(ours, shown[b"b", other.key_id]) == (Standing.TESTIMONY, ())
    unsigned = encoding.encode_signed_head(encoding.decode_signed_head(ours).head.encoded, [])
    assert judged(unsigned, shown[b"b", one.key_id]) == (Standing.TESTIMONY, ())
    for heads in ((ours, shown[b"a", other.key_id]), (ours,), (ours, stream.heads[0])):
        assert judged(*heads) == (Standing.REFUTED, ())


def test_equal_heads_prove_nothing() -> None:
    stream, first, _ = forked()
    assert standing(stream.realm, fork_of(first, first)) is Standing.REFUTED


def test_heads_of_different_epochs_prove_no_fork() -> None:
    stream, first, _ = forked()
    other = stream.sign_head(stream.heads[0])
    assert standing(stream.realm, fork_of(first, other)) is Standing.REFUTED


def test_a_head_by_a_minority_proves_no_fork() -> None:
    stream, first, _ = forked()
    weak = stream.sign_head(stream.compose(state_digest=b"b" * 32), stream.replicas[0])
    assert standing(stream.realm, fork_of(first, weak)) is Standing.REFUTED


def test_heads_by_other_keys_prove_no_fork() -> None:
    _, first, second = forked()
    strangers = make_realm([party(5, "a"), party(5, "b"), party(5, "c")])
    assert standing(strangers, fork_of(first, second)) is Standing.REFUTED


def test_evidence_of_another_realm_is_refuted() -> None:
    stream, first, second = forked()
    other = make_realm(stream.replicas, name="example.net")
    document = from_document(to_document(stream.realm, fork_of(first, second), 1))
    assert judge(other, document).standing is Standing.REFUTED


def test_a_fork_after_a_change_of_replicas_needs_the_head_that_changed_them() -> None:
    stream = Stream().grow(1)
    new = [party(2, f"replica-{n}") for n in range(3)]
    change = stream.close_epoch(*stream.replicas, *new, next_epoch_policy=majority_of(new))
    stream.replicas = new
    first, second = (stream.sign_head(stream.compose(state_digest=bytes((n,)) * 32)) for n in (1, 2))
    assert standing(stream.realm, fork_of(first, second)) is Standing.REFUTED
    with_chain = fork_of(first, second, policy_heads=(change.encoded,))
    assert standing(stream.realm, with_chain) is Standing.PROVEN


@pytest.mark.parametrize("kind", [Kind.CHAIN, Kind.HISTORY])
def test_heads_that_follow_each_other_prove_no_contradiction(kind: Kind) -> None:
    stream = Stream().grow(2)
    heads = tuple(stream.sign_head(head) for head in stream.heads)
    assert standing(stream.realm, Evidence(kind=kind, what="x", heads=heads)) is Standing.REFUTED
    alone = Evidence(kind=kind, what="x", heads=heads[:1])
    assert standing(stream.realm, alone) is Standing.REFUTED


def test_a_head_of_this_realm_proves_no_other_realm() -> None:
    stream = Stream().grow(1)
    lone = Evidence(kind=Kind.REALM, what="x", heads=(stream.sign_head(stream.heads[0]),))
    assert standing(stream.realm, lone) is Standing.REFUTED


def test_a_lawful_update_refutes_the_accusation() -> None:
    stream = Stream().grow(1)
    stream.put("alice")
    before = proof_encoding.decode_step(stream.steps[0])
    assert isinstance(before, proof_encoding.UpdateStep)
    evidence = Evidence(kind=Kind.UPDATE, what="x", steps=(stream.steps[-1],), entry=before.update.encoded)
    assert standing(stream.realm, evidence) is Standing.REFUTED


def test_a_well_signed_head_refutes_missing_signatures() -> None:
    stream = Stream().grow(1)
    evidence = Evidence(kind=Kind.SIGNATURE, what="x", heads=(stream.sign_head(stream.heads[0]),))
    assert standing(stream.realm, evidence) is Standing.REFUTED


@pytest.mark.parametrize("kind", list(Kind))
def test_empty_evidence_proves_nothing(kind: Kind) -> None:
    verdict = standing(Stream().realm, Evidence(kind=kind, what="x"))
    assert verdict is not Standing.PROVEN


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"schema":"e2eks.evidence/2"}', b"[" * 100_000],
    ids=["empty", "object", "list", "bytes", "schema", "nested"],
)
def test_a_file_that_is_no_evidence_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        from_document(data)


def test_changed_evidence_is_never_proof_of_something_else(rng: random.Random) -> None:
    """Any byte of the signed heads flipped: still a value, and proven only if the signed bytes are
    untouched.
    """
    stream, first, second = forked()
    for _ in range(300):
        heads = [bytearray(first), bytearray(second)]
        victim = rng.randrange(2)
        heads[victim][rng.randrange(len(heads[victim]))] ^= 1 << rng.randrange(8)
        evidence = fork_of(*map(bytes, heads))
        verdict = judge(stream.realm, from_document(to_document(stream.realm, evidence, 1)))
        if verdict.standing is Standing.PROVEN:  # one of three signatures is broken, two are enough
            assert len(verdict.culprits) == 2


def test_evidence_found_twice_is_one_file(tmp_path: Path) -> None:
    stream, first, second = forked()
    folder = tmp_path / "evidence"
    one = keep_evidence(folder, stream.realm, fork_of(first, second), 1)
    two = keep_evidence(folder, stream.realm, fork_of(first, second), 2)
    assert one == two
    assert list(folder.iterdir()) == [one]
    assert read_evidence(one).time_ms == 1


def test_a_torn_file_of_evidence_is_written_anew(tmp_path: Path) -> None:
    stream, first, second = forked()
    kept = keep_evidence(tmp_path, stream.realm, fork_of(first, second), 1)
    kept.rename(kept.with_suffix(".new"))
    kept.with_suffix(".new").write_bytes(b"{")
    again = keep_evidence(tmp_path, stream.realm, fork_of(first, second), 2)
    assert read_evidence(again).kind == Kind.FORK
