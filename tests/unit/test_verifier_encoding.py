"""Strict decoding: exact lengths, limits, and one encoding for each value (contract section 2)."""

from __future__ import annotations

import pytest
from e2eks.v1 import client_pb2, verification_pb2
from e2eks.v1 import types_pb2 as pb
from google.protobuf.message import Message
from samples import (
    ALICE,
    BOB,
    REALM,
    START_MS,
    any_of,
    key,
    make_entry,
    make_revocation,
    sign_entry,
    sign_head,
)

from verifier import encoding, limits, proof_encoding
from verifier import epoch as epoch_law
from verifier.errors import Malformed, Reason
from verifier.types import QuorumExpr

USER = "alice@example.test"
ENTRY = make_entry(USER)
HEAD = epoch_law.compose_head(
    REALM,
    epoch_law.genesis_chain(REALM),
    root_hash=b"r" * 32,
    issue_time_ms=START_MS,
    history_root=b"h" * 32,
    state_digest=b"d" * 32,
)
PROFILE = encoding.encode_profile({"age": b"age1", "ssh": b"ssh-ed25519"})


def reason(decode: object, data: bytes) -> Reason:
    with pytest.raises(Malformed) as caught:
        decode(data)  # type: ignore[operator]
    return caught.value.reason


def with_field(message: Message, **fields: object) -> bytes:
    changed = type(message)()
    changed.CopyFrom(message)
    for name, value in fields.items():
        setattr(changed, name, value)
    return encoding.canonical(changed)


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        pytest.param(encoding.decode_entry, ENTRY.encoded, id="entry"),
        pytest.param(encoding.decode_profile, PROFILE, id="profile"),
        pytest.param(encoding.decode_head, HEAD, id="head"),
        pytest.param(encoding.decode_quorum, encoding.encode_quorum(any_of(ALICE).quorum), id="quorum"),
        pytest.param(encoding.decode_update, sign_entry(ENTRY, ALICE).encoded, id="update"),
        pytest.param(encoding.decode_signed_head, sign_head(HEAD).encoded, id="signed head"),
    ],
)
class TestOneEncoding:
    def test_its_own_encoding_is_accepted_and_kept(self, decode, data: bytes) -> None:  # type: ignore[no-untyped-def]
        value = decode(data)
        assert isinstance(value, QuorumExpr) or value.encoded == data

    def test_trailing_bytes_are_refused(self, decode, data: bytes) -> None:  # type: ignore[no-untyped-def]
        assert reason(decode, data + b"\x00") is Reason.MALFORMED

    def test_an_unknown_field_is_refused(self, decode, data: bytes) -> None:  # type: ignore[no-untyped-def]
        assert reason(decode, data + b"\xf8\x3f\x01") is Reason.MALFORMED  # field 1023, varint 1

    def test_a_field_given_twice_is_refused(self, decode, data: bytes) -> None:  # type: ignore[no-untyped-def]
        assert reason(decode, data + data) in (Reason.MALFORMED, Reason.TOO_LARGE)

    def test_truncation_is_refused(self, decode, data: bytes) -> None:  # type: ignore[no-untyped-def]
        assert reason(decode, data[:-1]) is Reason.MALFORMED


def test_a_default_valued_field_is_refused() -> None:
    assert (
        reason(encoding.decode_entry, ENTRY.encoded + b"\x10\x00") is Reason.MALFORMED
    )  # version 0 written out


def test_a_non_minimal_varint_is_refused() -> None:
    v1 = make_entry(USER, 1, previous=ENTRY).encoded
    at = v1.index(b"\x10\x01", 34)
    assert reason(encoding.decode_entry, v1[:at] + b"\x10\x81\x00" + v1[at + 2 :]) is Reason.MALFORMED


@pytest.mark.parametrize("field", ["index", "profile_commitment"])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_hashes_in_an_entry_are_exactly_32_bytes(field: str, size: int) -> None:
    data = with_field(pb.Entry.FromString(ENTRY.encoded), **{field: b"x" * size})
    assert reason(encoding.decode_entry, data) is Reason.MALFORMED


def test_previous_entry_hash_is_empty_at_version_0_and_32_bytes_later() -> None:
    later = pb.Entry.FromString(make_entry(USER, 1, previous=ENTRY).encoded)
    assert reason(encoding.decode_entry, with_field(later, version=0)) is Reason.MALFORMED
    assert reason(encoding.decode_entry, with_field(later, previous_entry_hash=b"")) is Reason.MALFORMED


def test_revocation_has_neither_commitment_nor_previous_hash() -> None:
    revocation = pb.Entry.FromString(make_revocation(USER, 4).encoded)
    assert reason(encoding.decode_entry, with_field(revocation, profile_commitment=b"c" * 32))
    assert reason(encoding.decode_entry, with_field(revocation, previous_entry_hash=b"c" * 32))


def test_entry_of_more_than_4_kib_is_too_large() -> None:
    assert reason(encoding.decode_entry, bytes(limits.ENTRY_BYTES + 1)) is Reason.TOO_LARGE


def test_update_policy_has_at_most_16_distinct_keys() -> None:
    keys = [key(f"k{n}") for n in range(17)]
    ids = tuple(k.id for k in keys)
    sixteen = encoding.make_policy([k.public for k in keys[:16]], QuorumExpr(1, ids[:16]))
    assert len(make_entry(USER, update_policy=sixteen).update_policy.keys) == 16  # type: ignore[union-attr]
    seventeen = encoding.make_policy([k.public for k in keys], QuorumExpr(1, ids))
    with pytest.raises(Malformed) as caught:
        make_entry(USER, update_policy=seventeen)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_key_twice_in_a_policy_is_refused() -> None:
    with pytest.raises(Malformed):
        encoding.make_policy([ALICE.public, ALICE.public], QuorumExpr(1, (ALICE.id,)))


def test_quorum_candidates_are_keys_of_the_policy() -> None:
    with pytest.raises(Malformed):
        encoding.make_policy([ALICE.public], QuorumExpr(1, (ALICE.id, BOB.id)))


IDS = tuple(bytes([n]) * 32 for n in range(65))


def nested(depth: int) -> QuorumExpr:
    return QuorumExpr(1, (), (nested(depth - 1),)) if depth > 1 else QuorumExpr(1, IDS[:1])


def test_quorum_depth_is_at_most_4_with_the_root() -> None:
    assert encoding.decode_quorum(encoding.encode_quorum(nested(4))) == nested(4)
    assert reason(encoding.decode_quorum, encoding.encode_quorum(nested(5))) is Reason.TOO_LARGE


def test_quorum_has_at_most_64_candidates_in_all() -> None:
    wide = QuorumExpr(1, IDS[:32], (QuorumExpr(1, IDS[32:64]),))
    assert encoding.decode_quorum(encoding.encode_quorum(wide)) == wide
    wider = QuorumExpr(1, IDS[:32], (QuorumExpr(1, IDS[32:65]),))
    assert reason(encoding.decode_quorum, encoding.encode_quorum(wider)) is Reason.TOO_LARGE


def test_key_id_occurs_at_most_once_in_a_whole_expression() -> None:
    for twice in (QuorumExpr(2, (IDS[0], IDS[0])), QuorumExpr(2, IDS[:1], (QuorumExpr(1, IDS[:1]),))):
        assert reason(encoding.decode_quorum, encoding.encode_quorum(twice)) is Reason.MALFORMED


@pytest.mark.parametrize("threshold", [0, 4])
def test_threshold_lies_in_1_to_candidates_and_subexpressions(threshold: int) -> None:
    expr = QuorumExpr(threshold, IDS[:2], (QuorumExpr(1, IDS[2:3]),))
    assert reason(encoding.decode_quorum, encoding.encode_quorum(expr)) is Reason.MALFORMED


def test_deeply_nested_bytes_do_not_exhaust_the_stack() -> None:
    data = b""
    for _ in range(900):
        size = len(data)
        length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        data = b"\x1a" + length + data
    assert reason(encoding.decode_quorum, data) is Reason.MALFORMED


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param([("ssh", b"1"), ("age", b"2")], id="unsorted"),
        pytest.param([("age", b"1"), ("age", b"2")], id="twice"),
        pytest.param([("PGP", b"1")], id="upper case"),
        pytest.param([("", b"1")], id="empty name"),
        pytest.param([("a" * 33, b"1")], id="long name"),
        pytest.param([("ssh\n", b"1")], id="line break"),
    ],
)
def test_profile_names_are_sorted_distinct_and_plain(keys: list[tuple[str, bytes]]) -> None:
    message = pb.Profile(keys=[pb.ApplicationKey(application=a, key=k) for a, k in keys])
    assert reason(encoding.decode_profile, encoding.canonical(message)) is Reason.MALFORMED


def test_profile_has_at_most_64_keys_and_64_kib() -> None:
    assert len(encoding.decode_profile(encoding.encode_profile({f"a{n}": b"" for n in range(64)})).keys) == 64
    many = encoding.encode_profile({f"a{n}": b"" for n in range(65)})
    assert reason(encoding.decode_profile, many) is Reason.TOO_LARGE
    big = encoding.encode_profile({"a": bytes(limits.PROFILE_BYTES)})
    assert reason(encoding.decode_profile, big) is Reason.TOO_LARGE


def test_update_has_at_most_32_signatures_by_distinct_keys() -> None:
    keys = [key(f"k{n}") for n in range(33)]
    assert len(sign_entry(ENTRY, *keys[:32]).signatures) == 32
    with pytest.raises(Malformed) as caught:
        sign_entry(ENTRY, *keys)
    assert caught.value.reason is Reason.TOO_LARGE
    with pytest.raises(Malformed):
        sign_entry(ENTRY, ALICE, ALICE)


def test_head_has_at_most_64_signatures() -> None:
    keys = tuple(key(f"k{n}") for n in range(65))
    assert len(sign_head(HEAD, keys[:64], ()).ratifications[0].signatures) == 64
    with pytest.raises(Malformed) as caught:
        sign_head(HEAD, keys, ())
    assert caught.value.reason is Reason.TOO_LARGE


def test_ratification_without_signature_is_refused() -> None:
    empty = pb.SignedEpochHead(head=HEAD, ratifications=[pb.Ratification(timestamp_ms=1)])
    assert reason(encoding.decode_signed_head, encoding.canonical(empty)) is Reason.MALFORMED


def test_tree_proof_neighbours_are_empty_or_32_bytes_but_not_zero() -> None:
    for neighbor in (bytes(32), b"x" * 31, b"x" * 33):
        with pytest.raises(Malformed):
            proof_encoding.tree_proof_from(pb.TreeProof(neighbors=[neighbor]))
    assert proof_encoding.tree_proof_from(pb.TreeProof(neighbors=[b"", b"x" * 32])).neighbors == (
        b"",
        b"x" * 32,
    )


def test_tree_proof_has_at_most_256_neighbours() -> None:
    with pytest.raises(Malformed) as caught:
        proof_encoding.tree_proof_from(pb.TreeProof(neighbors=[b""] * 257))
    assert caught.value.reason is Reason.TOO_LARGE


def test_absence_shows_both_parts_of_the_other_leaf_or_none() -> None:
    with pytest.raises(Malformed):
        proof_encoding.tree_proof_from(pb.TreeProof(existing_index=b"x" * 32))


def lookup_message(**fields: object) -> bytes:
    message = client_pb2.LookupProof(
        user_id=USER,
        index=ENTRY.index,
        index_proof=bytes(80),
        head=pb.SignedEpochHead.FromString(sign_head(HEAD).encoded),
        tree_proof=pb.TreeProof(),
    )
    return with_field(message, **fields)


def test_absent_proof_has_no_profile() -> None:
    assert proof_encoding.decode_lookup_proof(lookup_message()).entry is None
    assert reason(proof_encoding.decode_lookup_proof, lookup_message(profile=PROFILE)) is Reason.MALFORMED
    assert reason(proof_encoding.decode_lookup_proof, lookup_message(profile_nonce=bytes(32)))


def test_profile_comes_with_its_nonce_of_32_bytes() -> None:
    present = lookup_message(entry=ENTRY.encoded, profile=PROFILE, profile_nonce=bytes(32))
    assert proof_encoding.decode_lookup_proof(present).profile is not None
    for nonce in (b"", bytes(16)):
        bad = lookup_message(entry=ENTRY.encoded, profile=PROFILE, profile_nonce=nonce)
        assert reason(proof_encoding.decode_lookup_proof, bad) is Reason.MALFORMED


@pytest.mark.parametrize(("field", "size"), [("index", 31), ("index_proof", 79), ("index_proof", 81)])
def test_index_and_its_proof_have_exact_lengths(field: str, size: int) -> None:
    assert reason(proof_encoding.decode_lookup_proof, lookup_message(**{field: bytes(size)}))


def test_verifier_steps_are_numbered_from_1_and_never_empty() -> None:
    assert reason(proof_encoding.decode_step, proof_encoding.encode_update_step(0, sign_entry(ENTRY).encoded))
    empty = encoding.canonical(verification_pb2.VerifierStep(index=4))
    assert reason(proof_encoding.decode_step, empty) is Reason.MALFORMED
