"""The VRF: a keyserver that wants two places for one user, a key that anybody can prove with."""

from __future__ import annotations

from hashlib import sha512
from typing import NamedTuple

from nacl import bindings
from samples import REALM, VRF_KEY

from attacks.surface import Surface, flipped
from verifier import realm as realms
from verifier.crypto import vrf
from verifier.crypto.signatures import GROUP_ORDER, IDENTITY

USER, OTHER = "alice@example.test", "bob@example.test"
SEED = b"an owner who cheats".ljust(32)
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
POINTS = {"identity": IDENTITY, "order 8": ORDER_8}


class Proof(NamedTuple):
    public_key: bytes
    alpha: bytes
    proof: bytes


def alpha(user_id: str, realm: str = REALM.name) -> bytes:
    return realms.user_id_alpha(realm, user_id)


def times(number: int, point: bytes = b"") -> bytes:
    """A multiple of a point, by default of the base."""
    scalar = number.to_bytes(32, "little")
    if not point:
        return bindings.crypto_scalarmult_ed25519_base_noclamp(scalar)
    return bindings.crypto_scalarmult_ed25519_noclamp(scalar, point)


class Vrf(Surface):
    def make_proof(self, of: str = USER, shown_as: str = USER, realm: str = REALM.name) -> Proof:
        """The proof for one user id in some realm, shown as the proof for another in ours."""
        return Proof(VRF_KEY.public_key, alpha(shown_as), vrf.prove(VRF_KEY, alpha(of, realm)))

    def make_proof_by_another_key(self) -> Proof:
        return self.make_proof()._replace(proof=vrf.prove(vrf.VrfKey(SEED), alpha(USER)))

    def make_of_length(self, proof: int = 80, public_key: int = 32) -> Proof:
        good = self.make_proof()
        key = (good.public_key + bytes(1))[:public_key]
        return good._replace(public_key=key, proof=(good.proof + bytes(80))[:proof])

    def make_with_flipped_bit(self, at: int) -> Proof:
        good = self.make_proof()
        return good._replace(proof=flipped(good.proof, at))

    def make_with_gamma(self, point: str) -> Proof:
        good = self.make_proof()
        return good._replace(proof=bytes.fromhex(point) + good.proof[32:])

    def make_with_torsion(self, part: str) -> Proof:
        """The key or Gamma plus a point of order 8, which multiplying by the cofactor hides."""
        good = self.make_proof()
        if part == "key":
            mixed = bindings.crypto_core_ed25519_add(good.public_key, ORDER_8)
            return good._replace(public_key=mixed)
        mixed = bindings.crypto_core_ed25519_add(good.proof[:32], ORDER_8)
        return good._replace(proof=mixed + good.proof[32:])

    def make_with_s_plus_order(self, times: int) -> Proof:
        good = self.make_proof()
        s = int.from_bytes(good.proof[48:], "little") + times * GROUP_ORDER
        return good._replace(proof=good.proof[:48] + s.to_bytes(32, "little"))

    def make_under_a_key_of_small_order(self, point: str) -> Proof:
        """Valid by the equations for any input: Gamma the identity, a challenge divisible by 8, s = k."""
        key = POINTS[point]
        hashed = vrf._encode_to_curve(key, alpha(USER))
        for k in range(1, 10_000):
            challenge = vrf._challenge(key, hashed, IDENTITY, times(k), times(k, hashed))
            if challenge[0] % 8 == 0:
                return Proof(key, alpha(USER), IDENTITY + challenge + k.to_bytes(32, "little"))
        raise AssertionError("no challenge is divisible by 8")

    def make_second_output(self, binds: str) -> Proof:
        """The owner's second output for one user, if the challenge binds only what is named.

        It fixes U = aB and V = bH, learns the challenge c, and solves V = sH - c Gamma for Gamma.
        """
        key, a, b = vrf.VrfKey(SEED), 2, 3
        hashed = vrf._encode_to_curve(key.public_key, alpha(USER))
        bound = {"nothing": (), "key": (key.public_key,), "key and input": (key.public_key, hashed)}[binds]
        points = (*bound, times(a), times(b, hashed))
        challenge = sha512(b"\x03\x02" + b"".join(points) + b"\x00").digest()[:16]
        c, x = int.from_bytes(challenge, "little"), int.from_bytes(key._scalar, "little")
        s = (a + c * x) % GROUP_ORDER
        gamma = times((s - b) * pow(c, -1, GROUP_ORDER) % GROUP_ORDER, hashed)
        shown = gamma + challenge + s.to_bytes(32, "little")
        left = bindings.crypto_core_ed25519_sub(times(s, hashed), times(c, gamma))
        assert left == times(b, hashed), "the forgery holds by its own equations"
        assert vrf.proof_to_hash(shown) != vrf.evaluate(key, alpha(USER)), "and gives another output"
        return Proof(key.public_key, alpha(USER), shown)

    def make_honest_output(self) -> Proof:
        key = vrf.VrfKey(SEED)
        return Proof(key.public_key, alpha(USER), vrf.prove(key, alpha(USER)))

    def judge_proof(self, shown: Proof) -> str:
        return "invalid" if vrf.verify(*shown) is None else "valid"

    def make_key(self) -> bytes:
        return VRF_KEY.public_key

    def judge_key(self, public_key: bytes) -> str:
        return "valid" if vrf.validate_key(public_key) else "invalid"
