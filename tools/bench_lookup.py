"""Lookups inside a replica, without RPC: from the bytes of a request to the bytes of a proof."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from typing import cast

from bench_measure import CPU, Measured, Plan, alternated, median, median_ratio, quantile
from bench_realm import Ground, grown
from e2eks.v1 import client_pb2

from keyserver.metrics import Metrics
from keyserver.peers.endorsing import Endorser
from keyserver.proposer import Proposer
from keyserver.replica import Replica
from keyserver.run import now_ms
from keyserver.service import Service
from keyserver.vrf_cache import VrfCache
from kv.interface import Store
from kv.leveldb import LevelDBStore
from verifier import realm
from verifier.crypto import vrf
from verifier.files import read_secret

SEED = 2
FEW = 1000
WARMING = 5  # rounds that do not count


class CountingStore(LevelDBStore):
    """A replica's database that counts its gets."""

    gets = 0

    def get(self, key: bytes) -> bytes | None:
        self.gets += 1
        return super().get(key)


class Desk:
    """The lookups of a replica's service. Each VRF proof comes from its table, as after a restart."""

    def __init__(self, ground: Ground, store: Store) -> None:
        config = ground.config
        names = VrfCache(store, _never, capacity=1)
        self._service = Service(
            Replica(ground.machine, store, names, Metrics()),
            cast("Proposer", None),  # lookups neither propose nor endorse
            cast("Endorser", None),
            realm_json=config.realm_json,
            update_timeout_ms=config.update_timeout_ms,
            clock=now_ms,
            fresh_salt=lambda: bytes(32),
        )

    def lookup(self, request: bytes) -> bytes:
        """The encoded proof that answers an encoded request."""
        return self._service.lookup(request, "bench")


def _never(_: str) -> tuple[bytes, bytes]:
    raise AssertionError("every user of the benchmark has a row in the VRF cache")


def request_of(name: str) -> bytes:
    """An encoded request for the latest proof of a user, under the realm's quorum."""
    return client_pb2.LookupRequest(user_id=name).SerializeToString()


class Visitor:
    """Looks up random users of one realm, others in every round."""

    def __init__(self, ground: Ground, lookups: int) -> None:
        self.store = CountingStore(ground.config.data / "db")
        self._desk = Desk(ground, self.store)
        self._names = list(ground.users)
        self._dice = random.Random(SEED)
        self._lookups = lookups
        self.answers: list[bytes] = []

    def requests(self) -> list[bytes]:
        """A round of requests."""
        names = self._dice.choices(self._names, k=self._lookups)
        return [request_of(name) for name in names]

    def ask(self, requests: Sequence[bytes]) -> None:
        self.answers += [self._desk.lookup(request) for request in requests]


def tree_lookup(plan: Plan) -> Iterator[Measured]:
    """Whole proofs of random users, VRF cached, among few and many, side by side with proving the VRF."""
    sizes = (plan.size(FEW, 100), plan.size(100_000, 300))
    lookups = plan.size(400, 50)  # in a round
    grounds = [grown(users) for users in sizes]
    with ExitStack() as closed:
        visitors = [Visitor(ground, lookups) for ground in grounds]
        for visitor in visitors:
            closed.callback(visitor.store.close)
            for _ in range(WARMING):
                visitor.ask(visitor.requests())
            visitor.store.gets, visitor.answers = 0, []
        few, many, proving = _rounds(plan, visitors, grounds[0])
        for visitor, users, taken in zip(visitors, sizes, (few, many), strict=True):
            per_lookup = [t / lookups for t in taken]
            sizes_of_proofs = [_size_without_profile(answer) for answer in visitor.answers]
            metrics = {
                "lookup_us": 1e6 * median(per_lookup),
                "gets_per_lookup": visitor.store.gets / len(visitor.answers),
                "ratio_to_vrf_prove": median_ratio(per_lookup, proving),
                "proof_bytes_median": median(sizes_of_proofs),
                "proof_bytes_p99": quantile(sizes_of_proofs, 0.99),
            }
            if taken is many:
                metrics[f"ratio_to_{sizes[0]}_users"] = median_ratio(many, few)
            params = {"users": users, "replicas": 1, "verifiers": 2}
            turns = {"rounds": plan.rounds, "lookups": lookups, "seed": SEED}
            yield Measured("tree-lookup", {**params, **turns}, metrics)


def _rounds(plan: Plan, visitors: Sequence[Visitor], ground: Ground) -> list[list[float]]:
    """Seconds of a round of lookups by each visitor, and of one VRF proof; made in turn."""
    proofs = plan.size(50, 10)
    rounds = [iter([v.requests() for _ in range(plan.rounds)]) for v in visitors]
    runs = [lambda v=v, r=r: v.ask(next(r)) for v, r in zip(visitors, rounds, strict=True)]
    numbers = count()
    key_of_realm = vrf.VrfKey(read_secret(ground.config.vrf_key))
    alphas = (realm.user_id_alpha(ground.realm.name, f"nobody-{n}@{ground.realm.name}") for n in numbers)

    def prove() -> None:
        for _ in range(proofs):
            vrf.prove(key_of_realm, next(alphas))

    few, many, proving = alternated(plan.rounds, *runs, prove, clock=CPU)
    return [few, many, [taken / proofs for taken in proving]]


def _size_without_profile(answer: bytes) -> int:
    proof = client_pb2.LookupProof.FromString(answer)
    proof.ClearField("profile")
    return proof.ByteSize()
