"""Domain separation, ids and commitments, against the formulas of the contract written out by hand."""

import hashlib
import hmac

import pytest

from verifier.crypto import hashing
from verifier.crypto.commitment import commit


def test_tagged_is_the_formula_of_the_contract() -> None:
    preimage = b"\x0be2eks/1/abc" + b"\x00\x00\x00\x02xy" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x01z"
    assert hashing.tagged("e2eks/1/abc", b"xy", b"", b"z") == hashlib.sha256(preimage).digest()


def test_tagged_without_parts_is_the_label_alone() -> None:
    assert hashing.tagged("x") == hashlib.sha256(b"\x01x").digest()


def test_tagged_separates_parts_and_labels() -> None:
    splits = [
        ("ab", (b"cd", b"")),
        ("ab", (b"c", b"d")),
        ("ab", (b"cd",)),
        ("abc", (b"d",)),
        ("ab", (b"", b"cd")),
    ]
    assert len({hashing.tagged(label, *parts) for label, parts in splits}) == len(splits)


@pytest.mark.parametrize("label", ["", "x" * 256, "schlüssel"])
def test_tagged_refuses_a_label_that_is_no_constant_of_ours(label: str) -> None:
    with pytest.raises(ValueError):
        hashing.tagged(label)


def test_ids_and_hashes_use_their_labels() -> None:
    assert hashing.key_id(b"k" * 32) == hashing.tagged("e2eks/1/key", b"\x01", b"k" * 32)
    assert hashing.entry_hash(b"entry") == hashing.tagged("e2eks/1/entry", b"entry")
    assert hashing.head_hash(b"head") == hashing.tagged("e2eks/1/epoch-head", b"head")
    assert hashing.sha256(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_commitment_is_hmac_over_the_tagged_profile() -> None:
    nonce, place = bytes(range(32)), b"i" * 32
    tagged = hashing.tagged("e2eks/1/profile", place, (7).to_bytes(8, "big"), b"profile")
    assert commit(nonce, place, 7, b"profile") == hmac.new(nonce, tagged, hashlib.sha256).digest()


def test_commitment_binds_every_argument() -> None:
    nonce, place = b"n" * 32, b"i" * 32
    values = {
        commit(nonce, place, 1, b"p"),
        commit(b"m" * 32, place, 1, b"p"),
        commit(nonce, b"j" * 32, 1, b"p"),
        commit(nonce, place, 2, b"p"),
        commit(nonce, place, 1, b"q"),
    }
    assert len(values) == 5


@pytest.mark.parametrize("length", [0, 31, 33])
def test_commitment_refuses_another_nonce_length(length: int) -> None:
    with pytest.raises(ValueError):
        commit(bytes(length), bytes(32), 0, b"")


@pytest.mark.parametrize("version", [-1, 2**64])
def test_commitment_refuses_a_version_outside_u64(version: int) -> None:
    with pytest.raises(OverflowError):
        commit(bytes(32), bytes(32), version, b"")
