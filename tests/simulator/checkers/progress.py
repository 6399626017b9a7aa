"""After healing the realm goes on: a new epoch is ratified in time, everybody catches up, and every update
under way is acknowledged. Judged where enough honest replicas and verifiers are left to go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.world import MS, SECOND, Violation

if TYPE_CHECKING:
    from simulator.world import World

RATIFIED_WITHIN_US = 10 * SECOND
SETTLED_WITHIN_US = 10 * SECOND

EPILOGUE_US = 3 * SECOND  # where nothing can be demanded: long enough for what is broken to show
NAME = "progress"


def is_owed(world: World) -> bool:
    """Whether a majority of replicas and of verifiers can be counted on, by the clients' default quorum."""
    replicas = sum(site.healthy for site in world.replicas)
    verifiers = sum(world.sites[f"v{number}"].healthy for number in range(world.plan.verifiers))
    return (
        replicas > len(world.members) // 2 and verifiers > world.plan.verifiers // 2 and not world.log_forged
    )


def newest_ratified(world: World) -> int:
    """Issue time of the newest epoch that satisfies the default quorum at every healthy replica; 0: none."""
    quorum = world.cast.realm.verification_policy.quorum
    times = []
    for site in world.replicas:
        if site.healthy:
            published = site.process.replica.published
            epoch = published.newest(quorum, 0)
            times.append(published.signers(epoch).issue_time_ms if epoch else 0)
    return min(times, default=0)


def check(world: World) -> None:
    """Let the healed world run, and judge. Raises Violation."""
    if not is_owed(world):
        world.run_until(world.now + EPILOGUE_US)
        return
    healed_ms = world.replicas[0].clock.true_ms()
    # A wrong clock may have post-dated an epoch by as much as the step allows; the next one is after that.
    issued = [site.process.replica.state.issue_time_ms for site in world.replicas if site.healthy]
    dated_ms = max(healed_ms, *issued)
    until = world.now + (dated_ms - healed_ms) * MS + RATIFIED_WITHIN_US
    world.run_until(until, lambda: newest_ratified(world) > dated_ms)
    if is_owed(world) and newest_ratified(world) <= dated_ms:
        raise Violation(NAME, "no new epoch was ratified within 10 s of healing")
    for client in world.clients:
        client.stopped = True
    world.run_until(world.now + SETTLED_WITHIN_US, lambda: not any(client.open for client in world.clients))
    if is_owed(world):
        open_ones = sum(len(client.open) for client in world.clients)
        if open_ones:
            raise Violation(NAME, f"{open_ones} updates are not acknowledged 10 s after healing")
        positions = {site.process.replica.position.index for site in world.replicas if site.healthy}
        if max(positions) - min(positions) > 20:
            raise Violation(NAME, "a healthy replica does not catch up")
