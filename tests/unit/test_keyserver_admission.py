"""Admission: what a registration must prove by domain; the client certificate method (contract section 1)."""

import random
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from authorities import ALICE, DAY, DOMAIN, ENTRY, NOW_MS, Leaf, authority, base, common_name, der, key, prove
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from e2eks.v1 import client_pb2 as pb
from samples import REALM

from keyserver.admission.client_certificate import FRESH_MS
from keyserver.admission.gate import Gate
from keyserver.config import ClientCertificateAuthority, Registration
from verifier.client.admission import client_certificate_proof
from verifier.errors import ConfigError, Reason, Refused

INDEX = b"i" * 32
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return gate_for(tmp_path, authority("ca"))


def gate_for(folder: Path, *authorities: x509.Certificate, domains: tuple[str, ...] = (DOMAIN,)) -> Gate:
    """Each authority in a file, hence a method, of its own."""
    methods = []
    for number, certificate in enumerate(authorities):
        path = folder / f"ca{number}.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        methods.append(ClientCertificateAuthority(domains, path))
    return Gate(Registration(False, tuple(methods)), REALM)


def verify(gate: Gate, proof: pb.RegistrationProof | None, **changes: Any) -> bytes:
    given = {"user_id": ALICE, "index": INDEX, "entry_hash": ENTRY, "now_ms": NOW_MS} | changes
    return gate.verify(proof, **given)


def refusal(gate: Gate, proof: pb.RegistrationProof | None, **changes: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        verify(gate, proof, **changes)
    assert ALICE not in str(caught.value)
    return caught.value.reason


# The gate


def test_a_registration_without_a_proof_is_refused(gate: Gate) -> None:
    assert refusal(gate, None) is Reason.PROOF_REQUIRED
    assert refusal(gate, pb.RegistrationProof()) is Reason.PROOF_REQUIRED


def test_a_refusal_names_proofs_as_people_type_them(gate: Gate) -> None:
    with pytest.raises(Refused, match=r"accepted here: client-certificate$"):
        verify(gate, None)
    with pytest.raises(Refused, match=r"^oidc-token is not accepted .*: client-certificate$"):
        verify(gate, pb.RegistrationProof(oidc_token="t"))


def test_without_a_method_registration_is_closed() -> None:
    closed = Gate(Registration(False, ()), REALM)
    assert refusal(closed, None) is Reason.PROOF_REQUIRED
    assert refusal(closed, prove()) is Reason.PROOF_INVALID


def test_a_method_that_is_not_configured_is_refused(gate: Gate) -> None:
    assert refusal(gate, pb.RegistrationProof(oidc_token="t")) is Reason.PROOF_INVALID


def test_a_proof_beyond_its_limit_is_refused(gate: Gate) -> None:
    assert refusal(gate, pb.RegistrationProof(dkim=bytes(70_000))) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("user_id", "reason"),
    [("alice@other.net", Reason.DOMAIN_NOT_SERVED), (f"Alice@{DOMAIN}", Reason.MALFORMED)],
)
def test_a_user_id_of_another_realm_is_refused_also_when_open(
    gate: Gate, user_id: str, reason: Reason
) -> None:
    for one in (gate, Gate(Registration(True, ()), REALM)):
        assert refusal(one, prove(), user_id=user_id) is reason


def test_open_registration_asks_for_nothing_and_binds_to_the_entry() -> None:
    gate = Gate(Registration(True, ()), REALM)
    ids = {
        verify(gate, None),
        verify(gate, None, index=b"j" * 32),
        verify(gate, None, entry_hash=b"f" * 32),
    }
    assert len(ids) == 3
    assert verify(gate, None) in ids
    assert all(len(proof_id) == 32 for proof_id in ids)


def test_any_authority_of_the_domain_will_do(tmp_path: Path) -> None:
    gate = gate_for(tmp_path, authority("other"), authority("ca"), authority("third"))
    assert verify(gate, prove())
    assert refusal(gate, prove(Leaf(issuer="fourth"))) is Reason.PROOF_INVALID


def test_an_authority_proves_nothing_about_other_domains(tmp_path: Path) -> None:
    gate = gate_for(tmp_path, authority("ca"), domains=("elsewhere.example",))
    assert refusal(gate, prove()) is Reason.PROOF_INVALID


# What is accepted


@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_a_fresh_signature_by_a_certified_key_is_accepted(gate: Gate, kind: str) -> None:
    assert len(verify(gate, prove(Leaf(kind=kind)))) == 32


@pytest.mark.parametrize("usage", [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION])
def test_certificates_for_clients_and_for_mail_are_accepted(gate: Gate, usage: x509.ObjectIdentifier) -> None:
    assert verify(gate, prove(Leaf(usage=(ExtendedKeyUsageOID.SERVER_AUTH, usage))))


@pytest.mark.parametrize("offset", [-FRESH_MS, -1, 0, 1, FRESH_MS])
def test_a_proof_signed_within_five_minutes_is_accepted(gate: Gate, offset: int) -> None:
    assert verify(gate, prove(time_ms=NOW_MS + offset))


def test_a_chain_over_an_intermediate_is_accepted_with_and_without_its_root(gate: Gate) -> None:
    leaf = Leaf(issuer="middle")
    middle, root = authority("middle", "ca"), authority("ca")
    for chain in ((middle,), (middle, root)):
        assert verify(gate, prove(leaf, chain=(der(leaf.issue()), *map(der, chain))))


@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_what_the_client_makes_is_accepted(gate: Gate, kind: str) -> None:
    leaf = Leaf(kind=kind, issuer="middle")
    chain = (leaf.issue(), authority("middle", "ca"))
    made = client_certificate_proof(
        REALM,
        ALICE,
        ENTRY,
        chain_pem=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
        key_pem=key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        time_ms=NOW_MS,
    )
    assert verify(gate, pb.RegistrationProof.FromString(made))


def test_one_of_several_addresses_is_enough(gate: Gate) -> None:
    assert verify(gate, prove(Leaf(addresses=(f"bob@{DOMAIN}", ALICE))))


# What is refused


@pytest.mark.parametrize("offset", [-FRESH_MS - 1, FRESH_MS + 1, -NOW_MS, 2**63])
def test_a_proof_signed_at_another_time_has_expired(gate: Gate, offset: int) -> None:
    assert refusal(gate, prove(time_ms=NOW_MS + offset)) is Reason.PROOF_EXPIRED


@pytest.mark.parametrize("leaf", [Leaf(start=-2 * DAY, end=-DAY / 24), Leaf(start=DAY / 24)])
def test_a_certificate_that_is_not_valid_now_has_expired(gate: Gate, leaf: Leaf) -> None:
    assert refusal(gate, prove(leaf)) is Reason.PROOF_EXPIRED


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(addresses=(f"bob@{DOMAIN}",)),
        Leaf(addresses=(f"ALICE@{DOMAIN}",)),
        Leaf(addresses=(f"alice@{DOMAIN}.evil.example",)),
        Leaf(addresses=(DOMAIN,)),
        Leaf(addresses=(), dns=DOMAIN),
        Leaf(addresses=()),
        Leaf(usage=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        Leaf(usage=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)),
        Leaf(usage=()),
        Leaf(issuer="stranger"),
        Leaf(unknown_critical=True),
        Leaf(kind="rsa1024"),
        Leaf(kind="p384"),
    ],
    ids=str,
)
def test_a_certificate_that_does_not_certify_the_address_is_refused(gate: Gate, leaf: Leaf) -> None:
    assert refusal(gate, prove(leaf)) is Reason.PROOF_INVALID


@pytest.mark.parametrize(
    "changes",
    [{"user_id": f"bob@{DOMAIN}"}, {"entry_hash": b"f" * 32}, {"realm": "other"}],
    ids=["address", "entry", "realm"],
)
@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_a_signature_about_something_else_is_refused(gate: Gate, kind: str, changes: dict[str, Any]) -> None:
    assert refusal(gate, prove(Leaf(kind=kind), **changes)) is Reason.PROOF_INVALID


def test_a_signature_for_another_time_is_refused(gate: Gate) -> None:
    proof = prove()
    proof.client_certificate.time_ms += 1
    assert refusal(gate, proof) is Reason.PROOF_INVALID


def test_a_signature_by_another_key_is_refused(gate: Gate) -> None:
    proof = prove(Leaf(kind="ed25519"), chain=(der(Leaf().issue()),))
    assert refusal(gate, proof) is Reason.PROOF_INVALID


def test_an_end_certificate_issues_nothing(gate: Gate) -> None:
    """The classic mistake: any customer of an authority becomes an authority."""
    customer = authority("customer", "ca", is_ca=False)
    leaf = Leaf(issuer="customer")
    proof = prove(leaf, chain=(der(leaf.issue()), der(customer)))
    assert refusal(gate, proof) is Reason.PROOF_INVALID


@pytest.mark.parametrize(
    "chain", [(), (b"",), (b"\x30\x00",), (der(Leaf().issue()),) * 9], ids=["none", "empty", "junk", "long"]
)
def test_a_chain_that_is_none_is_refused(gate: Gate, chain: tuple[bytes, ...]) -> None:
    assert refusal(gate, prove(chain=chain)) is Reason.PROOF_INVALID


@pytest.mark.parametrize("signature", [b"", b"\x00", bytes(64), bytes(300)])
@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_a_signature_that_is_none_is_refused(gate: Gate, kind: str, signature: bytes) -> None:
    proof = prove(Leaf(kind=kind))
    proof.client_certificate.signature = signature
    assert refusal(gate, proof) is Reason.PROOF_INVALID


# The library warns of what it loads all the same: what it means to refuse one day, names of unusual lengths.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_altered_certificates_are_refused_with_a_reason(
    gate: Gate, rng: random.Random, count: Callable[[int], int]
) -> None:
    leaf = Leaf(issuer="middle")
    whole = [der(leaf.issue()), der(authority("middle", "ca"))]
    proof = prove(leaf, chain=tuple(whole))
    assert verify(gate, proof)
    for _ in range(count(1500)):
        chain = list(whole)
        which = rng.randrange(2)
        altered = bytearray(chain[which])
        for _ in range(rng.randint(1, 3)):
            altered[rng.randrange(len(altered))] = rng.randrange(256)
        if altered == chain[which]:
            continue
        chain[which] = bytes(altered)
        changed_proof = prove(leaf, chain=tuple(chain))
        assert refusal(gate, changed_proof) in (Reason.PROOF_INVALID, Reason.PROOF_EXPIRED)


# Proof ids


def test_a_proof_id_is_of_one_certificate_entry_and_time(gate: Gate) -> None:
    bob = f"bob@{DOMAIN}"
    ids = {
        verify(gate, prove()),
        verify(gate, prove(time_ms=NOW_MS + 1)),
        verify(gate, prove(entry_hash=b"f" * 32), entry_hash=b"f" * 32),
    }
    assert len(ids) == 3
    both = Leaf(addresses=(ALICE, bob))
    assert verify(gate, prove(both)) == verify(gate, prove(changed(both, end=2 * DAY)))


def test_a_proof_id_does_not_change_with_bytes_that_can_be_varied(gate: Gate) -> None:
    """Anybody can turn an ECDSA signature (r, s) into (r, -s): it must stay the same proof, used once."""
    proof = prove()
    r, s = decode_dss_signature(proof.client_certificate.signature)
    varied = pb.RegistrationProof()
    varied.CopyFrom(proof)
    varied.client_certificate.signature = encode_dss_signature(r, P256_ORDER - s)
    varied.client_certificate.chain.append(der(authority("ca")))
    assert varied != proof
    assert verify(gate, varied) == verify(gate, proof)


# Configured authorities


CERTIFIES = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
REVOKES = x509.KeyUsage(False, False, False, False, False, False, True, False, False)


def root(usage: x509.KeyUsage | None = CERTIFIES, *, is_critical: bool = True) -> x509.Certificate:
    made = base(common_name("ca"), "ca", key("p256", "ca").public_key())
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=is_critical)
    if usage is not None:
        made = made.add_extension(usage, critical=False)
    return made.sign(key("p256", "ca"), hashes.SHA256())


def test_a_root_with_no_more_than_it_needs_will_do(tmp_path: Path) -> None:
    assert verify(gate_for(tmp_path, root()), prove())


def test_authorities_that_could_prove_nothing_are_refused(tmp_path: Path) -> None:
    ed = ed25519.Ed25519PrivateKey.generate()
    ed_ca = (
        base(common_name("ed"), "ed", ed.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ed, None)
    )
    cases = (
        (Leaf().issue(), "no basic constraints"),
        (root(usage=None), "no key usage"),
        (root(usage=REVOKES), "not to sign certificates"),
        (root(is_critical=False), "not critical"),
        (authority("x", is_ca=False), "end certificate"),
        (ed_ca, "neither RSA nor"),
    )
    for certificate, text in cases:
        with pytest.raises(ConfigError, match=text):
            gate_for(tmp_path, certificate)
    (tmp_path / "none.pem").write_text("nothing")
    for name in ("none.pem", "missing.pem"):
        method = ClientCertificateAuthority((DOMAIN,), tmp_path / name)
        with pytest.raises(ConfigError, match=name):
            Gate(Registration(False, (method,)), REALM)
