"""Registrations and later updates of a replica process over gRPC and TLS, each waited for until ratified.

Update requests are made beforehand. An update is answered when its epoch has its quorum, so latency is at
least what is left of the epoch; throughput is in-flight calls by latency until a processor is busy.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain

from bench_load import Answered, Caller, connections
from bench_measure import CPU, Measured, Plan, alternated, median, quantile
from bench_realm import Ground, name_of, set_up
from bench_servers import Replica, Verifier
from e2eks.v1 import client_pb2, types_pb2
from workload.cast import Draft, Key, User, draft

from keyserver.config import Epochs
from keyserver.machine import private_parts
from keyserver.run import now_ms
from verifier import lookup, realm
from verifier.crypto import signatures, vrf
from verifier.update import update_message

UPDATE = "/e2eks.v1.Keyserver/Update"
EPOCHS = Epochs(min_interval_ms=200, max_interval_ms=3_600_000, retry_interval_ms=500)


def update_rpc(plan: Plan) -> Iterator[Measured]:
    """One replica; without verifiers, and with two of them as processes on the same machine."""
    calls = plan.size(2000, 20)
    in_flight = plan.size(128, 20)  # half of what one connection may hold
    for verifiers in (0, 2):
        ground = set_up(verifiers, EPOCHS)
        ground.lift_limits()
        users = _users(ground, calls * plan.repetitions)
        groups = [users[first : first + calls] for first in range(0, len(users), calls)]
        with ExitStack() as started:
            replica = started.enter_context(Replica(ground))
            for verifier in ground.verifiers:
                started.enter_context(Verifier(verifier.folder))
            connect = started.enter_context(connections(ground.realm.tls_roots_pem))
            caller = connect(ground.config.listen.public, UPDATE, replica)
            for kind in ("registration", "update"):
                floor_us = _crypto_floor_us(plan, kind)
                rounds = [_round(ground, caller, group, in_flight) for group in groups]
                params = {"kind": kind, "replicas": 1, "verifiers": verifiers, "in_flight": in_flight}
                turns = {"min_interval_ms": EPOCHS.min_interval_ms, "rounds": len(rounds), "calls": calls}
                yield Measured("update-rpc", {**params, **turns}, _metrics(rounds, floor_us))


def _users(ground: Ground, count: int) -> list[User]:
    with ground.signer() as signer:
        names = [name_of(number) for number in range(count)]
        return [User(signer.vrf_prove(name)[0], name, [Key("device", name)]) for name in names]


def _round(ground: Ground, caller: Caller, users: Sequence[User], in_flight: int) -> Answered:
    """Update each user once; the last answer is verified as a client does."""
    drafts = [draft(ground.realm, user) for user in users]
    answered = caller.ask([_request(made) for made in drafts], in_flight)
    law = ground.realm
    trust = lookup.Trust(law, law.verification_policy.quorum, law.genesis_policy)
    for user, made in zip(users, drafts, strict=True):
        user.accepted(made.entry)
    found = lookup.verify_lookup(trust, users[-1].user_id, answered.answers[-1], now_ms=now_ms())
    if found.proof.entry is None or found.proof.entry.encoded != drafts[-1].entry:
        raise AssertionError("an update was answered with the proof of something else")
    return answered


def _request(made: Draft) -> bytes:
    private = private_parts.open_private_part(made.part, made.command.private_hash)
    if private is None:
        raise AssertionError("a draft has its private part")
    return client_pb2.UpdateRequest(
        update=types_pb2.SignedEntryUpdate.FromString(made.command.update.encoded),
        profile=private.profile,
        profile_nonce=private.nonce,
        lookup_parameters=client_pb2.LookupRequest(user_id=private.user_id),
    ).SerializeToString()


def _metrics(rounds: Sequence[Answered], floor_us: float) -> dict[str, float]:
    latencies = list(chain.from_iterable(answered.latencies for answered in rounds))
    each_us = [1e6 * answered.seconds / len(answered.answers) for answered in rounds]
    cpu_us = [1e6 * answered.cpu_s / len(answered.answers) for answered in rounds]
    return {
        "per_s": median([answered.per_s for answered in rounds]),
        "p50_ms": 1e3 * median(latencies),
        "p99_ms": 1e3 * quantile(latencies, 0.99),
        "server_cpu_us": median(cpu_us),
        "crypto_floor_us": floor_us,
        "ratio_to_crypto_floor": median(each_us) / floor_us,
        "ratio_of_server_cpu": median(cpu_us) / floor_us,
    }


def _crypto_floor_us(plan: Plan, kind: str) -> float:
    """What a replica cannot do without, once for each update: the user's signature checked; of a registration
    also the VRF proof made, and the endorsement signed and checked."""
    operations = plan.size(50, 5)
    key, endorser, secret = Key("floor", "user"), Key("floor", "replica"), vrf.VrfKey(bytes(32))
    message = update_message(bytes(32), bytes(200))
    made, endorsed = key.sign(message), endorser.sign(message)
    alphas = [realm.user_id_alpha("example.test", name_of(number)) for number in range(operations)]

    def once() -> None:
        for alpha in alphas:
            signatures.verify(key.public_key, message, made)
            if kind == "registration":
                vrf.prove(secret, alpha)
                endorser.sign(message)
                signatures.verify(endorser.public_key, message, endorsed)

    (taken,) = alternated(plan.rounds, once, clock=CPU)
    return 1e6 * median(taken) / operations
