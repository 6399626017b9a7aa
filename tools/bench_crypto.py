"""The cryptography of a lookup: the VRF, and what verifying a whole proof adds to it."""

import time
from collections.abc import Callable, Iterator

from bench_lookup import Desk, request_of
from bench_measure import CPU, Measured, Plan, alternated, median, median_ratio
from bench_realm import Ground, grown, name_of

from verifier import lookup, proof_encoding, realm
from verifier.crypto import signatures, vrf
from verifier.epoch import replica_message, verifier_message
from verifier.types import LookupProof

Check = tuple[bytes, bytes, bytes]  # public key, message, signature


def vrf_operations(plan: Plan) -> Iterator[Measured]:
    """Prove, verify and compute without a proof, over the inputs of user ids, in turn."""
    operations = plan.size(50, 5)
    key = vrf.VrfKey(bytes(range(32)))
    alphas = [realm.user_id_alpha("example.test", name_of(number)) for number in range(operations)]
    proofs = [vrf.prove(key, alpha) for alpha in alphas]
    pairs = list(zip(alphas, proofs, strict=True))
    proving, verifying, computing = alternated(
        plan.rounds,
        lambda: [vrf.prove(key, alpha) for alpha in alphas],
        lambda: [vrf.verify(key.public_key, alpha, proof) for alpha, proof in pairs],
        lambda: [vrf.evaluate(key, alpha) for alpha in alphas],
        clock=CPU,
    )
    scale = 1e6 / operations
    metrics = {
        "prove_us": scale * median(proving),
        "verify_us": scale * median(verifying),
        "compute_us": scale * median(computing),
    }
    params = {"suite": "ECVRF-EDWARDS25519-SHA512-TAI", "rounds": plan.rounds, "operations": operations}
    yield Measured("vrf", params, metrics)


def verify_lookup(plan: Plan) -> Iterator[Measured]:
    """A client's verification of whole proofs, beside the VRF and signature checks in them alone."""
    users = plan.size(100_000, 300)
    ground = grown(users)
    proofs = plan.size(50, 5)  # in a round
    with ground.store() as store:
        desk = Desk(ground, store)
        names = [name_of(number * users // proofs) for number in range(proofs)]
        answers = [(name, desk.lookup(request_of(name))) for name in names]
    law = ground.realm
    trust = lookup.Trust(law, law.verification_policy.quorum, law.genesis_policy)
    checks = [_checks(ground, name, proof_encoding.decode_lookup_proof(answer)) for name, answer in answers]

    def verify_all() -> None:
        now_ms = time.time_ns() // 1_000_000
        for name, answer in answers:
            lookup.verify_lookup(trust, name, answer, now_ms=now_ms)

    whole, crypto = alternated(plan.rounds, verify_all, lambda: [check() for check in checks], clock=CPU)
    metrics = {
        "verify_ms": 1e3 * median(whole) / proofs,
        "crypto_ms": 1e3 * median(crypto) / proofs,
        "proof_bytes": median([len(answer) for _, answer in answers]),
        "ratio_to_crypto": median_ratio(whole, crypto),
    }
    params = {
        "users": users,
        "replicas": 1,
        "verifiers": len(ground.verifiers),
        "rounds": plan.rounds,
        "proofs": proofs,
    }
    yield Measured("verify-lookup", params, metrics)


def _checks(ground: Ground, name: str, proof: LookupProof) -> Callable[[], None]:
    """Only the VRF and signature checks that verifying this proof needs, on ready values."""
    law = ground.realm
    alpha = realm.user_id_alpha(law.name, name)
    signed = list(_signed(ground, proof))

    def check() -> None:
        sound = vrf.verify(law.vrf_public_key, alpha, proof.index_proof) is not None
        for public_key, message, signature in signed:
            sound = signatures.verify(public_key, message, signature) and sound
        if not sound:
            raise AssertionError("a proof of the benchmark does not verify")

    return check


def _signed(ground: Ground, proof: LookupProof) -> Iterator[Check]:
    keys = ground.realm.verification_policy.keys
    head = proof.head.head.encoded
    for ratification in proof.head.ratifications:
        for made in ratification.signatures:
            by_replica = made.key_id in ground.realm.genesis_policy.keys
            message_of = replica_message if by_replica else verifier_message
            yield keys[made.key_id], message_of(head, ratification.timestamp_ms), made.signature
