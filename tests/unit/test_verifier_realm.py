"""The realm file, its fingerprint, and user ids."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from samples import REALM, REPLICAS, any_of, make_realm

from verifier import realm as realms
from verifier.errors import Malformed, Reason, Refused


def test_realm_json_round_trips_and_is_sorted_with_two_spaces_and_a_final_newline() -> None:
    data = realms.realm_json(REALM)
    assert realms.parse_realm_json(data) == REALM
    assert data == (json.dumps(json.loads(data), indent=2, sort_keys=True) + "\n").encode()
    assert "epoch_ttl_ms" in json.loads(data)


def test_fingerprint_stays_when_addresses_and_roots_change() -> None:
    moved = replace(REALM, addresses=("198.51.100.7:4625",), tls_roots_pem=("other",))
    assert realms.fingerprint(moved) == realms.fingerprint(REALM)


def test_fingerprint_changes_with_every_pinned_part() -> None:
    changed = [
        replace(REALM, epoch_ttl_ms=1),
        replace(REALM, domains=("example.test", "example.org")),
        replace(REALM, domains=("example.testexample.org",)),
        replace(REALM, verification_policy=any_of(*REPLICAS)),
        make_realm(name="other.test"),
    ]
    prints = {realms.fingerprint(r) for r in (REALM, *changed)}
    assert len(prints) == len(changed) + 1
    assert all(p.startswith("E2EKS1-") and "=" not in p for p in prints)


def test_realm_hash_binds_name_suite_vrf_key_and_genesis_policy() -> None:
    parts = ("example.test", 1, REALM.vrf_public_key, REALM.genesis_policy)
    others = [
        ("example.tesu", *parts[1:]),
        (parts[0], 2, *parts[2:]),
        (*parts[:2], bytes(32), parts[3]),
        (*parts[:3], any_of(*REPLICAS)),
    ]
    assert len({realms.realm_hash(*p) for p in (parts, *others)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"suite": 2}, id="unknown suite"),
        pytest.param({"unknown": 1}, id="unknown field"),
        pytest.param({"realm": "Example.Test"}, id="upper-case name"),
        pytest.param({"realm": "exämple"}, id="name outside ASCII"),
        pytest.param({"epoch_ttl_ms": "0"}, id="no time to live"),
        pytest.param({"vrf_public_key": "AAAA"}, id="short VRF key"),
        pytest.param({"vrf_public_key": base64.b64encode(bytes(32)).decode()}, id="VRF key of small order"),
        pytest.param({"genesis_policy": {}}, id="no genesis policy"),
        pytest.param({"tls_roots_pem": ["-----BEGIN CERTIFICATE-----\n\u00e4"]}, id="root outside ASCII"),
    ],
)
def test_realm_json_that_does_not_fit_is_malformed(change: dict[str, object]) -> None:
    tree = {**json.loads(realms.realm_json(REALM)), **change}
    with pytest.raises(Malformed):
        realms.parse_realm_json(json.dumps(tree).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{" * 1000, b'{"realm": 1}'])
def test_bytes_that_are_no_realm_json_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        realms.parse_realm_json(data)


def test_verifier_key_may_not_be_a_replicas_key() -> None:
    with pytest.raises(Malformed):
        realms.parse_realm_json(realms.realm_json(make_realm(verifiers=REPLICAS[:1])))


@pytest.mark.parametrize(
    "user_id", ["alice@example.test", "a+tag.x_y@example.test", "!#$%&'*/=?^`{|}~@example.test"]
)
def test_canonical_user_ids_are_accepted(user_id: str) -> None:
    assert realms.check_user_id(user_id, REALM.domains) == user_id


@pytest.mark.parametrize(
    "user_id",
    [
        "", "@", "alice", "alice@", "@example.test", "a@b@example.test", "alice@example.test@",
        "Alice@example.test", "alice@Example.test", 'al"ice@example.test', "al ice@example.test",
        "alice\n@example.test", "alice\x7f@example.test", "älice@example.test", "alice@example.test\x00",
    ],
)  # fmt: skip
def test_other_spellings_are_malformed(user_id: str) -> None:
    with pytest.raises(Refused) as caught:
        realms.check_user_id(user_id, REALM.domains)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize("user_id", ["alice@example.org", "alice@sub.example.test", "alice@example.test."])
def test_user_id_of_another_domain_is_refused(user_id: str) -> None:
    with pytest.raises(Refused) as caught:
        realms.check_user_id(user_id, REALM.domains)
    assert caught.value.reason is Reason.DOMAIN_NOT_SERVED


def test_user_id_of_more_than_254_bytes_is_too_large() -> None:
    fits = "a" * (254 - len("@example.test")) + "@example.test"
    assert realms.check_user_id(fits, REALM.domains) == fits
    with pytest.raises(Malformed) as caught:
        realms.check_user_id("a" + fits, REALM.domains)
    assert caught.value.reason is Reason.TOO_LARGE


def test_refusal_never_repeats_the_user_id() -> None:
    for user_id in ("secret name@example.test", "secretname@elsewhere.test"):
        with pytest.raises(Refused) as caught:
            realms.check_user_id(user_id, REALM.domains)
        assert "secret" not in str(caught.value)
