"""Registration proofs a client can make: an authority has certified the address (contract section 1)."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from e2eks.v1 import client_pb2

from verifier.crypto import hashing
from verifier.errors import ConfigError
from verifier.types import Realm


def client_certificate_message(realm: Realm, user_id: str, entry_hash: bytes, time_ms: int) -> bytes:
    """The 32 bytes that the leaf key signs."""
    return hashing.tagged(
        "e2eks/1/admission/client-certificate",
        realm.name.encode("ascii"),
        user_id.encode("ascii"),
        entry_hash,
        time_ms.to_bytes(8, "big"),
    )


def client_certificate_proof(
    realm: Realm, user_id: str, entry_hash: bytes, *, chain_pem: bytes, key_pem: bytes, time_ms: int
) -> bytes:
    """An encoded RegistrationProof by the leaf of `chain_pem` (leaf first) and its unencrypted private key.

    Raises ConfigError if the files are not what they should be.
    """
    chain, key = _chain(chain_pem), _private_key(key_pem)
    if key.public_key() != chain[0].public_key():
        raise ConfigError("the private key is not the key of the first certificate in the chain")
    message = client_certificate_message(realm, user_id, entry_hash, time_ms)
    proof = client_pb2.ClientCertificateProof(
        chain=[certificate.public_bytes(serialization.Encoding.DER) for certificate in chain],
        time_ms=time_ms,
        signature=_sign(key, message),
    )
    return client_pb2.RegistrationProof(client_certificate=proof).SerializeToString(deterministic=True)


_PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _chain(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError("the certificate chain is not PEM: expected the leaf, then its issuers") from None


def _private_key(pem: bytes) -> _PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("the certificate's private key is not an unencrypted PEM key") from None
    if not isinstance(key, _PrivateKey):
        raise ConfigError("the certificate's private key is neither Ed25519, ECDSA nor RSA")
    return key


def _sign(key: _PrivateKey, message: bytes) -> bytes:
    match key:
        case ed25519.Ed25519PrivateKey():
            return key.sign(message)
        case ec.EllipticCurvePrivateKey():
            return key.sign(message, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
