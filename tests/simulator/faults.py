"""Every kind of fault: how it begins, and what ends it. The totals go by these names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from simulator.disk import Trouble
from simulator.liars import ByzantineClient, ByzantineVerifier, LyingLeader, LyingReplica
from simulator.world import MS, World
from verifier.limits import DAY_MS

if TYPE_CHECKING:
    from simulator.replica import ReplicaSite

End = Callable[[], None]
POINTS = ("P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P11", "P12", "S1", "S2", "S3", "S4", "S5", "S6")


@dataclass(frozen=True)
class Fault:
    """A fault of a schedule, in milliseconds from its start."""

    kind: str
    start_ms: int
    length_ms: int


def begin(world: World, fault: Fault) -> None:
    """Let a fault begin, and end in its time."""
    rng = world.chance("fault", fault.kind, fault.start_ms)
    world.note("-", "begins", fault.kind)
    end = KINDS[fault.kind](world, fault, rng)
    world.ends.append(end)
    world.after(fault.length_ms * MS, end)


def _nothing() -> None: ...


def _anybody(world: World, rng: Random) -> Any:
    """Mostly a replica, and of these often the leader."""
    if rng.random() < 0.2:
        return world.sites[f"v{rng.randrange(world.plan.verifiers)}"]
    return _replica(world, rng)


def _replica(world: World, rng: Random) -> ReplicaSite:
    leaders = [site for site in world.replicas if site.process is not None and site.process.leads]
    chosen: ReplicaSite = rng.choice(leaders if leaders and rng.random() < 0.5 else world.replicas)
    return chosen


def suspect(world: World, rng: Random) -> ReplicaSite:
    """The one replica whose machine or operator does what the promises do not cover."""
    if world.suspect is None:
        world.suspect = _replica(world, rng)
    return world.suspect


# Network


def _delay(world: World, fault: Fault, rng: Random) -> End:
    site = _anybody(world, rng)
    world.network.slow_us[site.name] = rng.choice((30, 150, 500, 2_500)) * MS
    world.fired("delay", site.name)
    return lambda: world.network.slow_us.pop(site.name, None)  # type: ignore[func-returns-value]


def _drop(world: World, fault: Fault, rng: Random) -> End:
    world.network.drop = rng.uniform(0.05, 0.3)
    return lambda: setattr(world.network, "drop", 0.0)


def _duplicate(world: World, fault: Fault, rng: Random) -> End:
    world.network.repeat = rng.uniform(0.2, 0.8)
    return lambda: setattr(world.network, "repeat", 0.0)


def _partition(world: World, fault: Fault, rng: Random) -> End:
    names = [*world.sites, *(client.name for client in world.clients)]
    alone = {_replica(world, rng).name}
    if len(world.members) > 3 and rng.random() < 0.5:
        alone.add(rng.choice(world.members))
    alone |= {name for name in names if name not in world.members and rng.random() < 0.4}
    rest = [name for name in names if name not in alone]
    world.network.cut(sorted(alone), rest, both=True)
    world.fired("partition")
    return lambda: _mend(world, alone)


def _one_way(world: World, fault: Fault, rng: Random) -> End:
    site, others = _replica(world, rng), list(world.members)
    others.remove(site.name)
    if rng.random() < 0.5:
        world.network.cut([site.name], others, both=False)
    else:
        world.network.cut(others, [site.name], both=False)
    return lambda: _mend(world, {site.name})


def _mend(world: World, names: set[str]) -> None:
    network = world.network
    network.cuts = {(one, two) for one, two in network.cuts if not {one, two} & names}
    network.mend()


# Disks


def _disk(trouble: Trouble) -> Callable[[World, Fault, Random], End]:
    def arm(world: World, fault: Fault, rng: Random) -> End:
        site = _anybody(world, rng)
        site.disk.arm(trouble, rng.randint(0, 12))
        if trouble is Trouble.FULL and site in world.replicas and rng.random() < 0.5:
            site.hold("too little room is left")  # which is noticed before the disk is full, mostly

        def clear() -> None:
            site.disk.trouble = None
            if site in world.replicas:
                site.release()

        return clear

    return arm


# Clocks: only as many are wrong at one time as there may be faulty replicas


def _clock_of(world: World, rng: Random) -> Any:
    if rng.random() < 0.2:
        return world.sites[f"v{rng.randrange(world.plan.verifiers)}"].clock
    return world.sites[world.members[world.plan.wrong_clock]].clock


def _skew(world: World, fault: Fault, rng: Random) -> End:
    clock = _clock_of(world, rng)
    clock.offset_ms = rng.choice((-1, 1)) * rng.choice((2_000, 30_000, 3_600_000, DAY_MS))
    world.fired("skew")
    return clock.correct  # type: ignore[no-any-return]


def _jump(world: World, fault: Fault, rng: Random) -> End:
    clock = _clock_of(world, rng)
    jumping = True

    def jump() -> None:
        if jumping:
            clock.offset_ms = rng.randint(-1, 1) * rng.choice((500, 8_000, 3_600_000))
            world.after(rng.randint(150, 500) * MS, jump)

    def end() -> None:
        nonlocal jumping
        jumping = False
        clock.correct()

    jump()
    world.fired("jump")
    return end


def _freeze(world: World, fault: Fault, rng: Random) -> End:
    clock = _clock_of(world, rng)
    clock.freeze()
    world.fired("freeze")
    return clock.correct  # type: ignore[no-any-return]


# Processes


def _pause(world: World, fault: Fault, rng: Random) -> End:
    site = _anybody(world, rng)
    if not site.runs:
        return _nothing
    site.pause()
    world.fired("pause", site.name)
    return site.resume  # type: ignore[no-any-return]


def _restart(world: World, fault: Fault, rng: Random) -> End:
    """Kill a process once, or again and again at a crash point; or tell a replica to stop."""
    site = _anybody(world, rng)
    if site in world.replicas and site.runs and rng.random() < 0.3:
        site.stop()
        world.fired("restart", site.name)
        return _nothing
    if rng.random() < 0.5:
        site.ambush = Ambush(world, rng.choice(POINTS), rng.randint(1, 4))
        return lambda: setattr(site, "ambush", None)
    if site.runs:
        site.crash("killed")
        site.start_later()
        world.fired("restart", site.name)
    return _nothing


class Ambush:
    """What `kv.crash_points` takes for an armed point."""

    def __init__(self, world: World, name: str, visits: int) -> None:
        self.name, self._world, self._visits = name, world, visits

    def reach(self, before: Callable[[], None] | None) -> None:
        from simulator.disk import Crash

        self._visits -= 1
        if self._visits <= 0:
            self._visits = 6
            self._world.fired("restart")
            raise Crash(self.name)


def _clone(world: World, fault: Fault, rng: Random) -> End:
    """A second machine with a copy of the disk, register and all, beside the first."""
    site = suspect(world, rng)
    if not site.runs or not world.may_taint(site):
        return _nothing
    site.tainted = site.tainted or "cloned"
    world.log_forged = True
    other = site.cloned(fault.start_ms)
    world.fired("clone", site.name)
    return other.stop


def _restore(world: World, fault: Fault, rng: Random) -> End:
    """An old copy of the disk takes the place of the newest, with the register or without it."""
    site = suspect(world, rng)
    if not site.runs or not world.may_taint(site):
        return _nothing
    old, with_register = site.disk.image(), rng.random() < 0.4

    def put_back() -> None:
        if site.kept is not None or world.healed_at:
            return
        site.crash("restored")
        site.tainted = site.tainted or "restored"
        site.kept, site.key_at_large = site.disk.image(), with_register
        site.disk.restore(old, files=with_register)
        world.fired("restore", site.name)
        site.start()
        world.log_forged = world.log_forged or site.runs

    return put_back


# Liars


def _lying_replica(world: World, fault: Fault, rng: Random) -> End:
    site = suspect(world, rng)
    return LyingReplica(world, site, rng).stop if world.may_taint(site) else _nothing


def _lying_leader(world: World, fault: Fault, rng: Random) -> End:
    if world.suspect is None:
        leaders = [site for site in world.replicas if site.process is not None and site.process.leads]
        world.suspect = leaders[0] if leaders else None
    site = suspect(world, rng)
    victim = rng.choice([other for other in world.replicas if other is not site])
    return LyingLeader(world, site, victim, rng).stop if world.may_taint(site) else _nothing


def _byzantine_verifier(world: World, fault: Fault, rng: Random) -> End:
    return ByzantineVerifier(world, world.sites[f"v{world.plan.verifiers - 1}"], rng).stop


def _byzantine_client(world: World, fault: Fault, rng: Random) -> End:
    return ByzantineClient(world, rng).stop


KINDS: dict[str, Callable[[World, Fault, Random], End]] = {
    "delay": _delay,
    "drop": _drop,
    "duplicate": _duplicate,
    "partition": _partition,
    "one_way": _one_way,
    "unsynced_lost": _disk(Trouble.LOST),
    "torn": _disk(Trouble.TORN),
    "eio": _disk(Trouble.EIO),
    "full": _disk(Trouble.FULL),
    "skew": _skew,
    "jump": _jump,
    "freeze": _freeze,
    "pause": _pause,
    "restart": _restart,
    "clone": _clone,
    "restore": _restore,
    "lying_replica": _lying_replica,
    "lying_leader": _lying_leader,
    "byzantine_verifier": _byzantine_verifier,
    "byzantine_client": _byzantine_client,
}
TAINTING = ("clone", "restore", "lying_replica", "lying_leader")
