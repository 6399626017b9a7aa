"""What docs/operations/registration.md tells operators to type leads to certificates that admit."""

import time
from pathlib import Path

from e2eks.v1 import client_pb2
from runbooks import BLOCK, ROOT, Operator
from samples import REALM

from keyserver.admission.gate import Gate
from keyserver.config import ClientCertificateAuthority, Registration
from verifier.client.admission import client_certificate_proof

PAGE = (ROOT / "docs" / "operations" / "registration.md").read_text()
ENTRY = b"e" * 32


def test_the_commands_make_certificates_that_admit(tmp_path: Path) -> None:
    operator = Operator(tmp_path / "ca")
    user_id = f"alice@{REALM.domains[0]}"
    for commands in BLOCK.findall(PAGE):
        operator.run(commands.replace("alice@example.org", user_id))
    authority = ClientCertificateAuthority(REALM.domains, operator.folder / "people-ca.pem")
    chain, key = ((operator.folder / name).read_bytes() for name in ("alice.pem", "alice.key"))
    now_ms = time.time_ns() // 1_000_000
    proof = client_certificate_proof(REALM, user_id, ENTRY, chain_pem=chain, key_pem=key, time_ms=now_ms)
    gate = Gate(Registration(False, (authority,)), REALM)
    shown = client_pb2.RegistrationProof.FromString(proof)
    assert gate.verify(shown, user_id=user_id, index=b"i" * 32, entry_hash=ENTRY, now_ms=now_ms)
