"""Who may register a name: the configured methods, by the domain of the user id.

Proofs are verified at the edge, where clocks and (later) the network are. What enters the log is the proof's
id and the endorsements of replicas that came to the same result. Later updates need no proof: the entry's
policy decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from e2eks.v1 import client_pb2 as pb

from keyserver.admission.client_certificate import ClientCertificateMethod
from keyserver.admission.proof_id import proof_id
from keyserver.config import Registration
from verifier.errors import Malformed, Reason, Refused
from verifier.limits import REGISTRATION_PROOF_BYTES
from verifier.realm import check_user_id
from verifier.types import Realm


class Method(Protocol):
    """One way of proving that an address is one's own."""

    def verify(self, proof: pb.RegistrationProof, *, user_id: str, entry_hash: bytes, now_ms: int) -> bytes:
        """Proof id (32 bytes). Raises Refused with PROOF_INVALID or PROOF_EXPIRED."""
        ...


class Gate:
    """The registration policy of a replica."""

    def __init__(self, registration: Registration, realm: Realm) -> None:
        """Reads the authorities' certificates. Raises ConfigError."""
        self._open = registration.insecure_skip_registration_proof
        self._domains = realm.domains
        self._methods: Mapping[tuple[str, str], tuple[Method, ...]] = _by_domain(registration, realm)

    def verify(
        self,
        proof: pb.RegistrationProof | None,
        *,
        user_id: str,
        index: bytes,
        entry_hash: bytes,
        now_ms: int,
    ) -> bytes:
        """The id (32 bytes) of a proof that the holder of `user_id` wants the entry with `entry_hash`.

        Raises Refused with PROOF_REQUIRED, PROOF_INVALID, PROOF_EXPIRED, TOO_LARGE or DOMAIN_NOT_SERVED.
        """
        check_user_id(user_id, self._domains)
        if self._open:
            return proof_id("open", index, entry_hash)
        if proof is not None and proof.ByteSize() > REGISTRATION_PROOF_BYTES:
            raise Malformed("a registration proof is too large", Reason.TOO_LARGE)
        domain = user_id.partition("@")[2]
        kind = proof.WhichOneof("proof") if proof is not None else None
        if proof is None or kind is None:
            raise Refused(Reason.PROOF_REQUIRED, f"a registration needs a proof: {self._accepted(domain)}")
        methods = self._methods.get((domain, kind), ())
        if not methods:
            what = f"{kind.replace('_', '-')} is not accepted for this domain: {self._accepted(domain)}"
            raise Refused(Reason.PROOF_INVALID, what)
        return _first_success(methods, proof, user_id, entry_hash, now_ms)

    def _accepted(self, domain: str) -> str:
        kinds = sorted(kind.replace("_", "-") for of, kind in self._methods if of == domain)  # as people type
        return f"accepted here: {', '.join(kinds)}" if kinds else "registration is closed here"


def _by_domain(registration: Registration, realm: Realm) -> dict[tuple[str, str], tuple[Method, ...]]:
    methods: dict[tuple[str, str], tuple[Method, ...]] = {}
    for configured in registration.client_certificate:
        method = ClientCertificateMethod(configured.ca, realm.name)
        for domain in configured.domains:
            key = domain, "client_certificate"
            methods[key] = (*methods.get(key, ()), method)
    return methods


def _first_success(
    methods: tuple[Method, ...], proof: pb.RegistrationProof, user_id: str, entry_hash: bytes, now_ms: int
) -> bytes:
    """One domain may have several authorities; the refusal told is the last one's."""
    *others, last = methods
    for method in others:
        try:
            return method.verify(proof, user_id=user_id, entry_hash=entry_hash, now_ms=now_ms)
        except Refused:
            continue
    return last.verify(proof, user_id=user_id, entry_hash=entry_hash, now_ms=now_ms)
