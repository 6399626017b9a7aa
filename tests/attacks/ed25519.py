"""Signatures: what one library accepts and another refuses, and signatures made for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from samples import ALICE, EVE, REALM, Key, key, make_entry, make_realm, sign_entry

from attacks.surface import Surface, flipped
from verifier import encoding, epoch
from verifier.crypto import hashing, signatures
from verifier.types import QuorumExpr, Signature, SignedUpdate
from verifier.update import verify_update

VECTORS = Path(__file__).parent.parent / "vectors" / "ed25519_edge_cases.json"
USER = "alice@example.test"
MESSAGE = b"a message"


class Signed(NamedTuple):
    public_key: bytes
    message: bytes
    signature: bytes


class Ed25519(Surface):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._vectors: list[dict[str, Any]] = json.loads(VECTORS.read_text())["signatures"]

    # A key, a message, a signature

    def make_vector(self, name: str) -> Signed:
        """A published edge case, by its name in the file of vectors."""
        (found,) = [case for case in self._vectors if case["name"] == name]
        return Signed(*(bytes.fromhex(found[field]) for field in ("key", "message", "signature")))

    def make_signed(self, by: str = "alice") -> Signed:
        signer = key(by)
        return Signed(signer.public, MESSAGE, signatures.sign(signer.seed, MESSAGE))

    def make_with_s_plus_order(self, times: int) -> Signed:
        """The same R, and S + times * L: the same residue."""
        made = self.make_signed()
        s = int.from_bytes(made.signature[32:], "little") + times * signatures.GROUP_ORDER
        return made._replace(signature=made.signature[:32] + s.to_bytes(32, "little"))

    def make_with_negated_s(self) -> Signed:
        """R and L - S, which fit the negated R."""
        made = self.make_signed()
        s = signatures.GROUP_ORDER - int.from_bytes(made.signature[32:], "little")
        return made._replace(signature=made.signature[:32] + s.to_bytes(32, "little"))

    def make_of_length(self, signature: int = 64, public_key: int = 32) -> Signed:
        """A good signature cut or padded with zeros."""
        made = self.make_signed()
        padded = made.signature + bytes(64)
        return Signed((made.public_key + bytes(32))[:public_key], MESSAGE, padded[:signature])

    def make_with_parts(self, r: str = "", s: str = "", public_key: str = "") -> Signed:
        """A good signature with its halves or its key replaced by the given bytes."""
        made = self.make_signed()
        halves = [bytes.fromhex(r) or made.signature[:32], bytes.fromhex(s) or made.signature[32:]]
        return Signed(bytes.fromhex(public_key) or made.public_key, MESSAGE, b"".join(halves))

    def make_with_flipped_bit(self, at: int) -> Signed:
        made = self.make_signed()
        return made._replace(signature=flipped(made.signature, at))

    def make_over(self, message: str, by: str = "alice") -> Signed:
        """A signature over MESSAGE shown with other text or another key."""
        return self.make_signed()._replace(public_key=key(by).public, message=message.encode())

    def judge_signature(self, made: Signed) -> str:
        return "valid" if signatures.verify(*made) else "invalid"

    def judge_key(self, public_key: bytes) -> str:
        return "valid" if signatures.is_valid_public_key(public_key) else "invalid"

    def make_key(self, of: str) -> bytes:
        return key(of).public

    # Signatures in their places

    def make_update(self, by: str = "alice", realm: str = "") -> SignedUpdate:
        """Alice's registration, signed by somebody for some realm."""
        signer = {"alice": ALICE, "eve": EVE}[by]
        return sign_entry(make_entry(USER), signer, realm=make_realm(name=realm) if realm else REALM)

    def make_malleated_update(self) -> SignedUpdate:
        (made,) = self.make_update().signatures
        s = int.from_bytes(made.signature[32:], "little") + signatures.GROUP_ORDER
        return self._with_signature(made.key_id, made.signature[:32] + s.to_bytes(32, "little"))

    def make_update_signed_under_anothers_id(self) -> SignedUpdate:
        """Eve's signature under Alice's key id."""
        (made,) = self.make_update(by="eve").signatures
        return self._with_signature(ALICE.id, made.signature)

    def make_update_signed_as_a_head(self) -> SignedUpdate:
        """Alice's signature over the same bytes, for another purpose."""
        message = epoch.verifier_message(make_entry(USER).encoded, 0)
        return self._with_signature(ALICE.id, signatures.sign(ALICE.seed, message))

    def make_update_signed_bare(self) -> SignedUpdate:
        """Alice's signature over the entry itself, without label and realm."""
        return self._with_signature(ALICE.id, signatures.sign(ALICE.seed, make_entry(USER).encoded))

    def make_update_without_owner(self, public_key: str) -> SignedUpdate:
        """A registration whose policy names a key of small order, and a signature anybody can write."""
        point = bytes.fromhex(public_key)
        owner = Key(seed=b"", public=point, id=hashing.key_id(point))
        law = encoding.make_policy([point], QuorumExpr(1, (owner.id,)))
        entry = make_entry(USER, update_policy=law)
        forged = Signature(owner.id, point + bytes(32))
        return encoding.decode_update(encoding.encode_update(entry.encoded, [forged]))

    def judge_update(self, update: SignedUpdate) -> str:
        return verify_update(None, update, realm_hash=REALM.hash).value

    @staticmethod
    def _with_signature(key_id: bytes, signature: bytes) -> SignedUpdate:
        made = [Signature(key_id, signature)]
        return encoding.decode_update(encoding.encode_update(make_entry(USER).encoded, made))
