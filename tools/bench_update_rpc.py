"""Registrations and later updates of a replica process over gRPC and TLS, each waited for until ratified.

Update requests are made beforehand. An update is answered when its epoch has its quorum, so latency is at
least what is left of the epoch; throughput is in-flight calls by latency until a processor is busy.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain

from bench_load import Answered, Caller, connections
from bench_measure import CPU, Measured, Plan, alternated, median, median_ratio, quantile
from bench_realm import Ground, name_of, set_up
from bench_servers import Verifier, cluster
from e2eks.v1 import client_pb2, types_pb2
from workload.cast import Draft, Key, User, draft

from keyserver.config import Epochs
from keyserver.machine import private_parts
from keyserver.run import now_ms
from verifier import lookup, realm
from verifier.crypto import signatures, vrf
from verifier.files import read_secret
from verifier.update import update_message

UPDATE = "/e2eks.v1.Keyserver/Update"
EPOCHS = Epochs(min_interval_ms=200, max_interval_ms=3_600_000, retry_interval_ms=500)


def update_rpc(plan: Plan) -> Iterator[Measured]:
    """One replica without verifiers, beside a cluster of three; and one with two verifiers as processes."""
    with _realm(1) as one, _realm(3) as three:
        yield from _beside_each_other(plan, [one, three])
    with _realm(1, verifiers=2) as watched:
        yield from _beside_each_other(plan, [watched])


@dataclass(slots=True)
class Running:
    """A realm whose processes run, and a load on all its replicas."""

    ground: Ground
    caller: Caller
    users: list[User]

    def round(self, users: Sequence[User], in_flight: int) -> Answered:
        """Update each user once; the last answer is verified as a client does."""
        realm = self.ground.realm
        drafts = [draft(realm, user) for user in users]
        answered = self.caller.ask([_request(made) for made in drafts], in_flight)
        trust = lookup.Trust(realm, realm.verification_policy.quorum, realm.genesis_policy)
        for user, made in zip(users, drafts, strict=True):
            user.accepted(made.entry)
        found = lookup.verify_lookup(trust, users[-1].user_id, answered.answers[-1], now_ms=now_ms())
        if found.proof.entry is None or found.proof.entry.encoded != drafts[-1].entry:
            raise AssertionError("an update was answered with the proof of something else")
        return answered


@contextmanager
def _realm(replicas: int, verifiers: int = 0) -> Iterator[Running]:
    ground = set_up(verifiers, EPOCHS, replicas)
    ground.lift_limits()
    with ExitStack() as started:
        processes = started.enter_context(cluster(ground))
        for verifier in ground.verifiers:
            started.enter_context(Verifier(verifier.folder))
        connect = started.enter_context(connections(ground.realm.tls_roots_pem))
        addresses = [config.listen.public for config in ground.configs]
        yield Running(ground, connect(addresses, UPDATE, processes), [])


def _beside_each_other(plan: Plan, ran: Sequence[Running]) -> Iterator[Measured]:
    """Rounds in turn. The ratio to the first realm is that of rounds side by side."""
    calls = plan.size(2000, 20)
    in_flight = plan.size(128, 20)  # half of what one connection may hold
    for running in ran:
        running.users = _users(running.ground, calls * plan.repetitions)
    for kind in ("registration", "update"):
        floor_us = _crypto_floor_us(plan, kind)
        rounds: list[list[Answered]] = [[] for _ in ran]
        for first in range(0, calls * plan.repetitions, calls):
            for running, done in zip(ran, rounds, strict=True):
                done.append(running.round(running.users[first : first + calls], in_flight))
        for running, done in zip(ran, rounds, strict=True):
            ground = running.ground
            params = {"kind": kind, "replicas": len(ground.configs), "verifiers": len(ground.verifiers)}
            turns = {"in_flight": in_flight, "min_interval_ms": EPOCHS.min_interval_ms, "calls": calls}
            metrics = _metrics(done, floor_us)
            if done is not rounds[0]:
                beside = [a.seconds for a in rounds[0]]
                metrics["ratio_to_one_replica"] = median_ratio([a.seconds for a in done], beside)
            yield Measured("update-rpc", {**params, **turns, "rounds": len(done)}, metrics)


def _users(ground: Ground, count: int) -> list[User]:
    secret = vrf.VrfKey(read_secret(ground.config.vrf_key))
    names = [name_of(number) for number in range(count)]
    outputs = [vrf.evaluate(secret, realm.user_id_alpha(ground.realm.name, name)) for name in names]
    return [
        User(vrf.index(output), name, [Key("device", name)])
        for name, output in zip(names, outputs, strict=True)
    ]


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
