"""What every engine must pass with several members: `await check(open_cluster, rng)` for CLUSTER_CHECKS.

The scenarios are those that the ancestor's raft log was tried with (proposals by each member, partitions
that change, full disconnect, a standby, a thousand proposals), and what an operator does: stopping, killing,
starting again from any index. A proposal that fails is repeated, so a payload may be committed more than once
where something broke, and never where nothing did: to miss the leader, on a busy machine, is to break.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import cycle

import trio

from clusters import Cluster, OpenCluster
from replication.insisting import assert_once, insist
from replication.interface import ReplicatedLog
from replication.testing import NO_LIMIT, numbered, take, take_until
from replication.types import LogEntry, LogNotRunning, ReplicationError

# Far above what any check takes, on any machine: only a cluster that hangs meets it.
HANGS_AFTER_S = 180

Logs = dict[str, ReplicatedLog]


async def say(log: ReplicatedLog, payload: bytes) -> None:
    """Propose until it is committed. Raises LogNotRunning when the log is stopped or killed."""
    with trio.fail_after(HANGS_AFTER_S):
        while True:
            try:
                await log.propose(payload)
            except LogNotRunning:
                raise
            except ReplicationError:
                await trio.lowlevel.checkpoint()
            else:
                return


async def say_all(log: ReplicatedLog, payloads: Iterable[bytes], said: set[bytes] | None = None) -> None:
    """Propose one after the other until the log is stopped; `said` collects what was acknowledged."""
    for payload in payloads:
        try:
            await say(log, payload)
        except LogNotRunning:
            return
        if said is not None:
            said.add(payload)


async def start_all(cluster: Cluster) -> Logs:
    return {name: await cluster.start(name) for name in cluster.names}


async def agree(logs: Mapping[str, ReplicatedLog], mark: bytes) -> list[bytes]:
    """Commit a mark; return the payloads before it, which all members have in one dense order."""
    await say(next(iter(logs.values())), mark)
    seen: dict[str, list[LogEntry]] = {}

    async def follow(name: str) -> None:
        seen[name] = await take_until(logs[name], mark)

    async with trio.open_nursery() as nursery:
        for name in logs:
            nursery.start_soon(follow, name)
    entries = next(iter(seen.values()))
    assert [entry.index for entry in entries] == list(range(1, len(entries) + 1))
    for name, log in logs.items():
        assert seen[name] == entries, name
        assert list(log.read(1, len(entries) + 1, NO_LIMIT)) == entries, name
        log.verify_chain(1, len(entries) + 1)
    return [entry.payload for entry in entries[:-1]]


async def leader_of(logs: Mapping[str, ReplicatedLog]) -> str:
    """The member that says it leads; proposals pass the time until one does."""
    with trio.fail_after(HANGS_AFTER_S):
        for log in cycle(list(logs.values())):
            for name in logs:
                if logs[name].leader_hint():
                    return name
            await say(log, b"who leads?")
    raise AssertionError


def payloads(name: str, count: int) -> list[bytes]:
    return [b"%s %d" % (name.encode(), number) for number in range(count)]


async def check_clusters_start_and_stop(open_cluster: OpenCluster, rng: random.Random) -> None:
    """Also with nobody else there, and before anything was agreed."""
    for members in (1, 3, 5):
        async with open_cluster(members) as cluster:
            with trio.fail_after(HANGS_AFTER_S):
                first = cluster.names[0]
                await cluster.start(first)
                await cluster.stop(first)
                await start_all(cluster)
                for name in rng.sample(cluster.names, members):
                    await cluster.stop(name)


async def check_every_member_proposes(open_cluster: OpenCluster, rng: random.Random) -> None:
    for members, each in ((5, 1), (3, 13)):
        async with open_cluster(members) as cluster:
            logs = await start_all(cluster)
            async with trio.open_nursery() as nursery:
                for name, log in logs.items():
                    nursery.start_soon(say_all, log, payloads(name, each))
            agreed = await agree(logs, b"end")
            for name in cluster.names:
                own = [payload for payload in dict.fromkeys(agreed) if payload in payloads(name, each)]
                assert own == payloads(name, each)


async def check_nothing_is_doubled_while_nothing_breaks(
    open_cluster: OpenCluster, rng: random.Random
) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        await leader_of(logs)
        lost: Counter[bytes] = Counter()
        with trio.fail_after(HANGS_AFTER_S):
            async with trio.open_nursery() as nursery:
                for name, log in logs.items():
                    for payload in payloads(name, 40):
                        nursery.start_soon(insist, log, payload, lost)
        agreed = await agree(logs, b"end")
        assert_once([payload for payload in agreed if payload != b"who leads?"], lost)


async def check_a_member_starts_from_any_index(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        await say_all(logs["r1"], payloads("r1", 20))
        agreed = [*await agree(logs, b"end"), b"end"]
        for lo in (1, 2, len(agreed), len(agreed) + 1):
            name = rng.choice(cluster.names)
            await cluster.stop(name)
            logs[name] = await cluster.start(name, lo)
            mark = b"from %d" % lo
            await say(logs["r1"], mark)
            read = await take_until(logs[name], mark)
            agreed += [entry.payload for entry in read[len(agreed) + 1 - lo :]]
            assert read == numbered(agreed[lo - 1 :], lo)


async def check_a_member_that_was_away_catches_up(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        await say(logs["r1"], b"all are here")
        away = rng.choice(cluster.names)
        await cluster.kill(away)
        rest = {name: log for name, log in logs.items() if name != away}
        await say_all(next(iter(rest.values())), payloads("rest", 300))
        await agree(rest, b"without one")
        logs[away] = await cluster.start(away)
        agreed = await agree(logs, b"all are back")
        assert set(payloads("rest", 300)) < set(agreed)


async def check_a_killed_leader_takes_nothing_along(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        said: set[bytes] = set()
        for round_ in range(3):
            leader = await leader_of(logs)
            async with trio.open_nursery() as nursery:
                for name, log in logs.items():
                    own = payloads(f"{round_} {name}", 60)
                    nursery.start_soon(say_all, log, own, said)
                await take(logs[leader], round_ * 100 + 20)
                await cluster.kill(leader)
            logs[leader] = await cluster.start(leader)
        agreed = await agree(logs, b"end")
        assert said <= set(agreed)
        assert len(said) >= 3 * 2 * 60


async def check_a_whole_cluster_comes_back(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        said: set[bytes] = set()
        for round_ in range(3):
            logs = await start_all(cluster)
            async with trio.open_nursery() as nursery:
                for name, log in logs.items():
                    nursery.start_soon(say_all, log, payloads(f"{round_} {name}", 200), said)
                await take(logs["r1"], len(said) + 50)
                for name in rng.sample(cluster.names, 3):
                    nursery.start_soon(cluster.kill, name)
        agreed = await agree(await start_all(cluster), b"end")
        assert said <= set(agreed)


async def check_a_standby_never_blocks(open_cluster: OpenCluster, rng: random.Random) -> None:
    """A member that proposes nothing and takes nothing holds nobody up."""
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        logs["r3"].committed()
        busy = {name: logs[name] for name in ("r1", "r2")}
        async with trio.open_nursery() as nursery:
            for name, log in busy.items():
                nursery.start_soon(say_all, log, payloads(name, 100))
        await agree(busy, b"end")
        assert set(payloads("r1", 100)) < set(await agree(logs, b"and the standby"))


# With links that can be cut


async def check_a_minority_commits_nothing(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        await say(logs["r1"], b"all are here")
        alone = await leader_of(logs) if rng.random() < 0.5 else rng.choice(cluster.names)
        others = [name for name in cluster.names if name != alone]
        await cluster.cut(others)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_all, logs[alone], payloads(alone, 1))
            await say_all(logs[others[0]], payloads("majority", 30))
            agreed = await agree({name: logs[name] for name in others}, b"without one")
            assert not set(payloads(alone, 1)) & set(agreed)
            assert not any(
                run.payload in payloads("majority", 30) for run in logs[alone].read(1, 999, NO_LIMIT)
            )
            await cluster.heal()
        assert {*payloads(alone, 1), *payloads("majority", 30)} <= set(await agree(logs, b"end"))


async def check_partitions_may_change(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        said: set[bytes] = set()
        async with trio.open_nursery() as nursery:
            for round_, alone in enumerate(("r1", "r2", "r3", "r1")):
                await cluster.cut([name for name in cluster.names if name != alone])
                for name, log in logs.items():
                    nursery.start_soon(say_all, log, payloads(f"{round_} {name}", 7), said)
                await say(logs["r2" if alone == "r1" else "r1"], b"round %d" % round_)
            await cluster.heal()
        agreed = await agree(logs, b"end")
        assert len(said) == 4 * 3 * 7
        assert said <= set(agreed)


async def check_a_full_disconnect_is_recovered_from(open_cluster: OpenCluster, rng: random.Random) -> None:
    async with open_cluster(3) as cluster:
        logs = await start_all(cluster)
        await say(logs["r1"], b"all are here")
        await cluster.cut()
        said: set[bytes] = set()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(say_all, logs[rng.choice(cluster.names)], [b"%d" % number], said)
            await cluster.cut(("r1", "r2"))
            await say(logs["r1"], b"two are back")
            await cluster.heal()
        assert said == {b"%d" % number for number in range(100)}
        assert said <= set(await agree(logs, b"end"))


async def check_lots(open_cluster: OpenCluster, rng: random.Random) -> None:
    """Five members, a thousand proposals, links that are cut at random all the while."""
    async with open_cluster(5) as cluster:
        logs = await start_all(cluster)
        said: set[bytes] = set()
        done = trio.Event()

        async def propose(name: str) -> None:
            await say_all(logs[name], payloads(name, 200), said)
            if len(said) == 1000:
                done.set()

        async def disturb() -> None:
            while not done.is_set():
                names = rng.sample(cluster.names, 5)
                where = rng.randrange(1, 5)
                await cluster.cut(names[:where], names[where:])
                seen = len(said)
                with trio.move_on_after(rng.choice((0.2, 0.5, 1.5))):
                    await done.wait()
                if len(said) < seen + 5:
                    await cluster.heal()
                    with trio.move_on_after(1):
                        await done.wait()
            await cluster.heal()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb)
            for name in cluster.names:
                nursery.start_soon(propose, name)
        agreed = await agree(logs, b"end")
        assert said == {payload for name in cluster.names for payload in payloads(name, 200)}
        assert said <= set(agreed)


Check = Callable[[OpenCluster, random.Random], Awaitable[None]]

CLUSTER_CHECKS: tuple[Check, ...] = (
    check_clusters_start_and_stop,
    check_every_member_proposes,
    check_nothing_is_doubled_while_nothing_breaks,
    check_a_member_starts_from_any_index,
    check_a_member_that_was_away_catches_up,
    check_a_killed_leader_takes_nothing_along,
    check_a_whole_cluster_comes_back,
    check_a_standby_never_blocks,
)
# For engines whose links can be cut (Cluster.can_cut).
PARTITION_CHECKS: tuple[Check, ...] = (
    check_a_minority_commits_nothing,
    check_partitions_may_change,
    check_a_full_disconnect_is_recovered_from,
    check_lots,
)
