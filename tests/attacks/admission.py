"""Admission: certificates and signatures that do not prove an address, though nearly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import authorities
from authorities import ALICE, DAY, DOMAIN, ENTRY, NOW_MS, Leaf, authority, der, prove
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from e2eks.v1 import client_pb2 as pb
from samples import REALM

from attacks.surface import Surface
from keyserver.admission.gate import Gate
from keyserver.config import ClientCertificateAuthority, Registration

USAGES = {
    "clients": ExtendedKeyUsageOID.CLIENT_AUTH,
    "mail": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "servers": ExtendedKeyUsageOID.SERVER_AUTH,
    "anything": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}


class Admission(Surface):
    """Alice registers; the domain trusts the authority "ca", of which every input is judged at NOW."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        file = folder / "ca.pem"
        file.write_bytes(authority("ca").public_bytes(Encoding.PEM))
        method = ClientCertificateAuthority((DOMAIN,), file)
        self._gate = Gate(Registration(False, (method,)), REALM)

    def make_certificate(
        self,
        addresses: Sequence[str] = (ALICE,),
        usages: Sequence[str] = ("clients",),
        starts_days: int = -1,
        ends_days: int = 1,
        **fields: Any,
    ) -> pb.RegistrationProof:
        """A proof by the key of a certificate with these contents."""
        leaf = Leaf(
            addresses=tuple(addresses),
            usage=tuple(USAGES[name] for name in usages),
            start=starts_days * DAY,
            end=ends_days * DAY,
            **fields,
        )
        return prove(leaf)

    def make_chain(self, *, over: str) -> pb.RegistrationProof:
        """A certificate that an intermediate, or somebody who may issue none, has issued."""
        middle = authority(over, "ca", is_ca=over == "middle")
        return self._chain(Leaf(issuer=over), middle)

    def make_chain_of(self, certificates: int) -> pb.RegistrationProof:
        return self._chain(Leaf(), *[authority("ca")] * (certificates - 1))

    def _chain(self, leaf: Leaf, *above: x509.Certificate) -> pb.RegistrationProof:
        return prove(leaf, chain=(der(leaf.issue()), *map(der, above)))

    def make_signed_for(self, **changes: Any) -> pb.RegistrationProof:
        """A signature over other contents; text for `entry_hash` is hexadecimal."""
        if "entry_hash" in changes:
            changes["entry_hash"] = bytes.fromhex(changes["entry_hash"])
        return prove(**changes)

    def make_signed(self, offset_ms: int = 0, claimed_ms: int = 0) -> pb.RegistrationProof:
        """Signed at NOW and an offset, and claimed to be so much later."""
        proof = prove(time_ms=NOW_MS + offset_ms)
        proof.client_certificate.time_ms += claimed_ms
        return proof

    def make_signature(self, data: str, kind: str = "p256") -> pb.RegistrationProof:
        """Bytes in place of a signature."""
        proof = prove(Leaf(kind=kind))
        proof.client_certificate.signature = bytes.fromhex(data)
        return proof

    def make_signed_by(self, kind: str, shown: str) -> pb.RegistrationProof:
        """Signed by one key, shown with the certificate of another."""
        return prove(Leaf(kind=kind), chain=(der(Leaf(kind=shown).issue()),))

    def make_no_proof(self) -> pb.RegistrationProof:
        return pb.RegistrationProof()

    def make_token(self, text: str) -> pb.RegistrationProof:
        """A proof of a kind that the domain does not take."""
        return pb.RegistrationProof(oidc_token=text)

    def judge_registration(self, proof: pb.RegistrationProof) -> str:
        index = bytes(32)
        found = self._gate.verify(
            proof, user_id=authorities.ALICE, index=index, entry_hash=ENTRY, now_ms=NOW_MS
        )
        return "admitted" if len(found) == 32 else "a proof id of another length"
