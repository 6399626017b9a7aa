"""What a seed means: who takes part, what goes wrong and when; and the run of it, from start to verdict."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from simulator import faults
from simulator.checkers import Checker, Judges, progress
from simulator.checkers.agreement import Agreement
from simulator.checkers.append_only import AppendOnly
from simulator.checkers.durability import Durability
from simulator.checkers.lawful import Lawful
from simulator.checkers.one_head import OneHead
from simulator.checkers.proofs import Proofs
from simulator.checkers.split_view import SplitView
from simulator.checkers.spoken import Spoken
from simulator.checkers.times import Times
from simulator.checkers.twin import Twin
from simulator.client import Client
from simulator.faults import TAINTING, Fault
from simulator.replica import ReplicaSite
from simulator.verifier import VerifierSite
from simulator.world import MS, SECOND, Violation, World

CHECKERS: Sequence[type[Checker]] = (
    OneHead, SplitView, Spoken, Agreement, AppendOnly, Durability, Proofs, Lawful, Times, Twin,
)  # fmt: skip
FAULTS_MS = 6_000  # until everything is healed
ENTRIES_MIN, EPOCHS_MIN, FAULTS_MIN = 60, 5, 3
EXTRA_US = 20 * SECOND  # in which a healed world must reach them


@dataclass(frozen=True)
class Plan:
    """One schedule."""

    seed: int
    replicas: int
    verifiers: int
    clients: int
    think_ms: int
    wrong_clock: int  # the replica whose clock goes wrong, if one does
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Result:
    """What became of a schedule. `fired`: how often each kind of fault took effect."""

    seed: int
    violation: Violation | None
    trace: str
    tail: Sequence[str]
    fired: Counter[str]
    entries: int
    epochs: int
    acknowledged: int
    events: int
    virtual_s: float
    progress_owed: bool

    @property
    def is_full(self) -> bool:
        """Whether it was as eventful as a schedule has to be."""
        enough = self.entries >= ENTRIES_MIN and self.epochs >= EPOCHS_MIN
        return enough and len(self.fired) >= FAULTS_MIN


def plan_of(seed: int) -> Plan:
    """The schedule of a seed."""
    rng = Random(f"plan/{seed}")
    replicas = 5 if rng.random() < 0.15 else 3
    verifiers = 3 if rng.random() < 0.15 else 2
    plain = [kind for kind in faults.KINDS if kind not in TAINTING]
    kinds = rng.sample(plain, rng.randint(4, 6))
    if rng.random() < 0.6:
        kinds.append(rng.choices(TAINTING, (2, 2, 2, 3))[0])
        if verifiers == 3 and "byzantine_verifier" in kinds and kinds[-1] != "lying_replica":
            kinds.remove(
                "byzantine_verifier"
            )  # together they could outvote the one honest verifier they share
    made = tuple(Fault(kind, rng.randint(800, FAULTS_MS - 1_500), rng.randint(400, 2_500)) for kind in kinds)
    return Plan(
        seed=seed,
        replicas=replicas,
        verifiers=verifiers,
        clients=rng.randint(2, 3),
        think_ms=rng.choice((150, 250, 400)),
        wrong_clock=rng.randrange(replicas),
        faults=made,
    )


def run(seed: int, plan: Plan | None = None) -> Result:
    """Run one schedule to its end, or to the first violation."""
    world = World(plan or plan_of(seed))
    violation = None
    owed = False
    with world.entered():
        world.judges = Judges(world, CHECKERS)
        try:
            _populate(world)
            for fault in world.plan.faults:
                world.at(fault.start_ms * MS, lambda fault=fault: faults.begin(world, fault))
            world.run_until(FAULTS_MS * MS)
            _heal(world)
            owed = progress.is_owed(world)
            _until_full(world)
            progress.check(world)
            world.judges.finished()
        except Violation as found:
            violation = found
        except Exception as error:  # shipped code ends by errors with names
            where = traceback.extract_tb(error.__traceback__)[-1]
            violation = Violation("traceback", f"{error!r} at {where.filename}:{where.lineno}")
        if violation is not None:
            world.note("-", "VIOLATION", violation)
    return _result(world, violation, owed)


def _populate(world: World) -> None:
    world.replicas = [ReplicaSite(world, number) for number in range(world.plan.replicas)]
    verifiers = [VerifierSite(world, number) for number in range(world.plan.verifiers)]
    world.sites = {site.name: site for site in (*world.replicas, *verifiers)}
    for site in (*world.replicas, *verifiers):
        site.start()
    share = 8
    for number in range(world.plan.clients):
        users = range(number * share, (number + 1) * share)
        world.clients.append(Client(world, number, users, at_once=2))


def _heal(world: World) -> None:
    """End every fault, as operators would; what was found out stays found out."""
    world.healed_at = world.now
    for end in world.ends:
        end()
    world.network.heal()
    for site in world.sites.values():
        site.ambush = None
        site.disk.trouble = None
        site.clock.correct()
        if site.paused:
            site.resume()
    for site in world.replicas:
        if site.stays_down and site.kept is not None:
            site.disk.restore(site.kept, files=True)  # the newest copy is put back
            site.stays_down, site.tainted = "", ""
        if not site.runs:
            site.start()
    for number in range(world.plan.verifiers):
        site = world.sites[f"v{number}"]
        site.stopped_by = ""  # its operator has looked at the evidence, and follows others from now on
        site.start()
    world.note("-", "healed")


def _until_full(world: World) -> None:
    """Go on until the schedule is as long as it has to be, where it can go on."""
    if progress.is_owed(world):
        world.run_until(world.now + EXTRA_US, lambda: _reached(world))


def _reached(world: World) -> bool:
    entries, epochs = _lengths(world)
    return entries >= ENTRIES_MIN and epochs >= EPOCHS_MIN


def _lengths(world: World) -> tuple[int, int]:
    running = [site.process.replica for site in world.replicas if site.process is not None]
    entries = max((replica.position.index for replica in running), default=0)
    return entries, max((replica.state.signed_epoch for replica in running), default=0)


def _result(world: World, violation: Violation | None, owed: bool) -> Result:
    entries, epochs = _lengths(world)
    return Result(
        seed=world.plan.seed,
        violation=violation,
        trace=world.trace,
        tail=world.tail,
        fired=world.fired_kinds,
        entries=entries,
        epochs=epochs,
        acknowledged=sum(len(one.history) for client in world.clients for one in client.users),
        events=world.events,
        virtual_s=world.seconds(),
        progress_owed=owed,
    )
