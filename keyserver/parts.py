"""What one replica is made of, and how its parts are put together upon an open store and log."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from keyserver import quarantine
from keyserver.admission.gate import Gate
from keyserver.config import Epochs
from keyserver.duties import Duties
from keyserver.lives import Lives
from keyserver.machine.state import Machine
from keyserver.metrics import Metrics
from keyserver.own_key import KeyWatch
from keyserver.peers import majority
from keyserver.peers.endorsing import Endorser
from keyserver.peers.exchange import Exchange
from keyserver.peers.giving_way import GivingWay
from keyserver.peers.lines import PeerLine
from keyserver.peers.majority import Majority
from keyserver.peers.service import Peers
from keyserver.proposer import Clock, Proposer
from keyserver.rate_limits import Limits, RateLimits
from keyserver.replica import Replica
from keyserver.service import Service
from keyserver.signer import Signer
from keyserver.status import Status
from keyserver.vrf_cache import VrfCache
from kv.interface import Store
from replication.interface import ReplicatedLog
from verifier.types import Realm


def now_ms() -> int:
    """Unix time in milliseconds, by the clock of this machine."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What works together in one replica."""

    replica: Replica
    signer: Signer
    log: ReplicatedLog
    proposer: Proposer
    duties: Duties
    service: Service
    status: Status
    metrics: Metrics
    rates: RateLimits
    watch: KeyWatch
    exchange: Exchange
    peers: Peers
    majority: Majority
    giving_way: GivingWay


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is not deterministic: clocks and chance."""

    clock: Clock = now_ms
    chance: Callable[[], float] = random.random
    fresh_salt: Callable[[], bytes] = lambda: secrets.token_bytes(32)
    seconds: Callable[[], float] = time.monotonic


def assemble(
    *,
    name: str,
    realm: Realm,
    realm_json: bytes,
    epochs: Epochs,
    update_timeout_ms: int,
    store: Store,
    log: ReplicatedLog,
    signer: Signer,
    gate: Gate,
    around: Surroundings,
    limits: Limits | None = None,
    evidence: Path | None = None,
    lives: Lives | None = None,
    ready_alone: bool = False,
    lines: Collection[PeerLine] = (),
) -> Parts:
    """Put a replica together; `evidence` is a folder for it, `lines` lead to other members. Raises Halt."""
    lives, metrics, clock = lives or Lives(), Metrics(), around.clock
    rates = _rates(metrics, limits or Limits(), around)
    vrf = _vrf_cache(store, signer, rates, metrics)
    replica = Replica(Machine(realm, epochs.min_interval_ms), store, vrf, metrics)
    log_end, former_ms = log.status().stored_index, lives.former_ms
    watch = KeyWatch(replica, signer, clock, log_end=log_end, evidence=evidence, former_ms=former_ms)
    proposer = Proposer(
        log, signer, clock, watch.proposed, replica.applied.wake, lives, lambda: replica.state.rules
    )
    exchange = Exchange(replica, signer, proposer, metrics, clock, evidence)
    endorser = Endorser(realm, gate, signer, clock, lines)
    peers = Peers(replica, signer, proposer, endorser, exchange, lines, clock)
    duties = Duties(replica, signer, proposer, log, epochs, clock, around.chance, exchange.signed.wake)
    service = Service(
        replica,
        proposer,
        endorser,
        realm_json=realm_json,
        update_timeout_ms=update_timeout_ms,
        clock=clock,
        fresh_salt=around.fresh_salt,
        rates=rates,
    )
    watched = Majority(log, proposer, replica, clock, around.seconds)
    outside = partial(_outside, replica, signer)
    status = Status(
        name,
        replica,
        signer,
        log,
        clock,
        held=lambda: proposer.held_but(majority.HOLDER if ready_alone else ""),
        alone=watched.missing,
        peers=peers.record,
    )
    return Parts(
        replica=replica,
        signer=signer,
        log=log,
        proposer=proposer,
        duties=duties,
        service=service,
        status=status,
        metrics=metrics,
        rates=rates,
        watch=watch,
        exchange=exchange,
        peers=peers,
        majority=watched,
        giving_way=GivingWay(log, proposer, replica, outside, around.seconds),
    )


def _outside(replica: Replica, signer: Signer) -> str:
    """Why nothing that this replica proposes counts, or ""."""
    return signer.quarantined or quarantine.outside(replica.state, signer.key_id)


def _rates(metrics: Metrics, limits: Limits, around: Surroundings) -> RateLimits:
    def observe(limit: str) -> None:
        metrics.count("rate_limited", limit)

    return RateLimits(limits, seconds=around.seconds, observe=observe)


def _vrf_cache(store: Store, signer: Signer, rates: RateLimits, metrics: Metrics) -> VrfCache:
    def observe(source: str) -> None:
        metrics.count("vrf", source)

    return VrfCache(store, signer.vrf_prove, limiter=rates.unknown_names, observe=observe)
