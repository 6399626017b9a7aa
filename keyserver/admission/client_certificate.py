"""Admission by a certificate for the address, from an authority the domain trusts (contract section 1).

The certificate says who holds the address; a fresh signature by its key says that the holder wants this very
entry. Path validation is RFC 5280 as the cryptography library implements it. Authorities have RSA or
NIST-curve keys (that library follows no Ed25519 authority); the holder's key is ECDSA P-256, RSA of at least
2048 bits, or Ed25519.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from e2eks.v1 import client_pb2 as pb

from keyserver.admission.proof_id import proof_id
from keyserver.undecodable import UNDECODABLE
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError, Reason, Refused
from verifier.files import read_file

METHOD = "client-certificate"
CHAIN_CERTIFICATES = 8  # leaf, root and more intermediates than any authority uses
CHAIN_DEPTH = 4  # intermediates between leaf and root
AUTHORITY_BYTES = 256 * 1024
FRESH_MS = 300_000  # between signing a proof and showing it, in either direction of the clocks
RSA_BITS_MIN = 2048
MAX_TIME_MS = 253_402_300_799_999  # the year 9999: beyond it there are no dates to compare with

_PURPOSES: Final = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.EMAIL_PROTECTION})


class ClientCertificateMethod:
    """Verifies proofs against one file of authorities. Any thread may call it."""

    def __init__(self, ca: Path, realm: str) -> None:
        """`ca`: PEM file with one or more authorities. Raises ConfigError."""
        data = read_file(ca, AUTHORITY_BYTES, "certificate authority")
        try:
            roots = x509.load_pem_x509_certificates(data)
            for root in roots:
                _check_authority(root)
        except UNDECODABLE as error:
            raise ConfigError(f"{ca} holds no usable certificate authority: {error}") from None
        self._policy = PolicyBuilder().store(Store(roots)).max_chain_depth(CHAIN_DEPTH)
        self._policy = self._policy.extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=_leaf_policy()
        )
        self._realm = realm

    def verify(self, proof: pb.RegistrationProof, *, user_id: str, entry_hash: bytes, now_ms: int) -> bytes:
        """The id (32 bytes) of a proof: certificate, entry and time, never what can be varied in its bytes.

        Raises Refused with PROOF_INVALID or PROOF_EXPIRED.
        """
        shown = proof.client_certificate
        if abs(now_ms - shown.time_ms) > FRESH_MS:
            what = f"the proof was signed more than {FRESH_MS // 60_000} minutes from this replica's time"
            raise Refused(Reason.PROOF_EXPIRED, what)
        leaf, intermediates = _load_chain(list(shown.chain))
        now = datetime.fromtimestamp(min(now_ms, MAX_TIME_MS) / 1000, UTC)
        self._check_chain(leaf, intermediates, now)
        if user_id not in _addresses(leaf):
            raise _invalid("the certificate is not for this address")
        message = proof_message(self._realm, user_id, entry_hash, shown.time_ms)
        _check_signature(leaf, shown.signature, message)
        identity = leaf.issuer.public_bytes(), str(leaf.serial_number).encode("ascii")
        return proof_id(METHOD, *identity, entry_hash, _u64(shown.time_ms))

    def _check_chain(
        self, leaf: x509.Certificate, intermediates: list[x509.Certificate], now: datetime
    ) -> None:
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise Refused(Reason.PROOF_EXPIRED, "the certificate is not valid now")
        try:
            self._policy.time(now).build_client_verifier().verify(leaf, intermediates)
        except (VerificationError, *UNDECODABLE):
            raise _invalid("the certificate does not lead to an authority of this domain") from None


def proof_message(realm: str, user_id: str, entry_hash: bytes, time_ms: int) -> bytes:
    """The 32 bytes that the certificate's key signs."""
    label = "e2eks/1/admission/client-certificate"
    return hashing.tagged(label, realm.encode("ascii"), user_id.encode("ascii"), entry_hash, _u64(time_ms))


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _invalid(what: str) -> Refused:
    return Refused(Reason.PROOF_INVALID, what)


_REQUIRED: Final = {
    ExtensionOID.BASIC_CONSTRAINTS: "basic constraints",
    ExtensionOID.KEY_USAGE: "key usage",
}


def _check_authority(root: x509.Certificate) -> None:
    """Raises ValueError for a root no chain could be verified with."""
    if not isinstance(root.public_key(), rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise ValueError("its key is neither RSA nor of a NIST curve")
    try:
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise ValueError(f"it has no {_REQUIRED[error.oid]}") from None
    if not constraints.value.ca:
        raise ValueError("it is an end certificate")
    if not constraints.critical:
        raise ValueError("its basic constraints are not critical")
    if not usage.value.key_cert_sign:
        raise ValueError("its key usage is not to sign certificates")


def _leaf_policy() -> ExtensionPolicy:
    return (
        ExtensionPolicy.webpki_defaults_ee()
        .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_purpose)
    )


def _check_purpose(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if not _PURPOSES & set(usage):
        raise ValueError("neither for clients nor for mail")


def _load_chain(chain: list[bytes]) -> tuple[x509.Certificate, list[x509.Certificate]]:
    if not 1 <= len(chain) <= CHAIN_CERTIFICATES:
        raise _invalid(f"a proof shows 1 to {CHAIN_CERTIFICATES} certificates, the holder's first")
    try:
        leaf, *others = [x509.load_der_x509_certificate(der) for der in chain]
    except UNDECODABLE:
        raise _invalid("a certificate in the proof does not decode") from None
    return leaf, others


def _addresses(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNDECODABLE:
        return []
    return names.get_values_for_type(x509.RFC822Name)


def _check_signature(leaf: x509.Certificate, signature: bytes, message: bytes) -> None:
    """By the leaf's key over `message`. Raises Refused."""
    try:
        signed = _is_signed(leaf.public_key(), signature, message)
    except UNDECODABLE:
        signed = None
    if signed is None:
        raise _invalid("the certificate's key is neither ECDSA P-256, RSA of 2048 bits or more, nor Ed25519")
    if not signed:
        raise _invalid("the certificate's key did not sign this address, entry and time")


def _is_signed(key: CertificatePublicKeyTypes, signature: bytes, message: bytes) -> bool | None:
    """None for a key of another kind."""
    try:
        match key:
            case ed25519.Ed25519PublicKey():
                return signatures.verify(key.public_bytes_raw(), message, signature)
            case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey() if key.key_size >= RSA_BITS_MIN:
                key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return None
    except InvalidSignature:
        return False
    return True
