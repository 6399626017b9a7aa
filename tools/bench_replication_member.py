"""One member of a cluster in a process of its own, for bench_replication: all engines obey the same words.

Reads one JSON object, then commands, a line each: {"load": N, "size": B, "in_flight": K} proposes and
answers with times, {"status": 1} answers how it stands. Answers are one JSON object a line.
"""

import json
import os
import resource
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from replication.interface import ReplicatedLog
from replication.raft.log import open_raft_log
from replication.types import PeerTls, ReplicationError

Answer = dict[str, Any]


# What others print goes where errors go: the answers have standard output for themselves.
ANSWERS = os.dup(1)
os.dup2(2, 1)


def rss_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def summary(count: int, elapsed_s: float, waits_s: Iterable[float], failed: int) -> Answer:
    ordered = sorted(waits_s) or [0.0]
    return {
        "per_s": count / elapsed_s,
        "p50_ms": 1e3 * ordered[len(ordered) // 2],
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "failed": failed,
    }


# --- our engines ---


async def load(log: ReplicatedLog, count: int, size: int, in_flight: int) -> Answer:
    """Propose `count` payloads, always `in_flight` at a time."""
    payload = os.urandom(size)
    left = iter(range(count))
    waits_s = array("d")
    failed = 0

    async def propose() -> None:
        nonlocal failed
        for _ in left:
            start = time.perf_counter()
            try:
                await log.propose(payload)
            except ReplicationError:
                failed += 1
            waits_s.append(time.perf_counter() - start)

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(propose)
    return summary(count, time.perf_counter() - start, waits_s, failed)


async def take(log: ReplicatedLog) -> None:
    """Take what is committed, as a replica does."""
    async for _ in log.committed():
        pass


async def serve_log(log: ReplicatedLog, lo: int, opened: float) -> None:
    """Start the log and obey commands until there are no more."""
    await log.start(lo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, log)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            command = json.loads(line)
            if "load" in command:
                say(await load(log, command["load"], command["size"], command["in_flight"]))
            else:
                status = log.status()
                say(
                    {
                        "leader": log.leader_hint(),
                        "led": bool(status.leader_name) or log.leader_hint(),
                        "committed": status.committed_index,
                        "rss_bytes": rss_bytes(),
                        "open_s": time.perf_counter() - opened,
                    }
                )
        nursery.cancel_scope.cancel()
    await log.stop()


def public_part(payload: bytes) -> bytes:
    """Everything decides."""
    return payload


def serve_raft(config: Answer) -> None:
    opened = time.perf_counter()

    async def main() -> None:
        log = open_raft_log(
            config["directory"],
            public_part,
            member=config["name"],
            members=config["members"],
            listen=config["members"][config["name"]],
            tls=PeerTls(*map(Path, config["tls"])),
        )
        await serve_log(log, config.get("lo", 1), opened)

    trio.run(main)


def serve_etcd(config: Answer) -> None:
    from replication.etcd.log import open_etcd_log

    async def main() -> None:
        log = open_etcd_log(
            config["directory"],
            public_part,
            member=config["name"],
            replicas=list(config["members"]),
            endpoints=config["endpoints"],
            tls=PeerTls(*map(Path, config["tls"])),
            prefix="/bench/",
        )
        await serve_log(log, 1, time.perf_counter())

    trio.run(main)


# --- what ours is measured against ---


class Stock(Protocol):
    """The part of pysyncobj that is used, by its public names."""

    def put(self, payload: bytes, *, callback: Callable[[object, int], None]) -> None: ...
    def destroy(self) -> None: ...
    def getStatus(self) -> dict[str, Any]: ...  # noqa: N802  # theirs
    def _isLeader(self) -> bool: ...  # noqa: N802  # theirs


def stock_member(config: Answer) -> Stock:
    """The library as it comes: one message a proposal, nothing synced, no TLS."""
    from pysyncobj import SyncObj, SyncObjConf, replicated

    class Counter(SyncObj):  # type: ignore[misc]  # it ships no types
        def __init__(self) -> None:
            members = dict(config["members"])
            own = members.pop(config["name"])
            settings = SyncObjConf(
                journalFile=str(Path(config["directory"]).with_suffix(".journal")),
                appendEntriesUseBatch=False,
                logCompactionMinEntries=1 << 60,
                logCompactionMinTime=1 << 60,
            )
            super().__init__(own, list(members.values()), settings)
            self.count = 0

        @replicated  # type: ignore[untyped-decorator]  # it ships no types
        def put(self, payload: bytes) -> int:
            self.count += len(payload) > 0
            return self.count

    member: Stock = Counter()
    return member


def load_stock(member: Stock, count: int, size: int, in_flight: int) -> Answer:
    payload = os.urandom(size)
    room = threading.Semaphore(in_flight)
    done = threading.Semaphore(0)
    waits_s = array("d")
    failures: list[int] = []

    def settled(start: float) -> Callable[[object, int], None]:
        def tell(_result: object, error: int) -> None:
            waits_s.append(time.perf_counter() - start)
            if error:
                failures.append(error)
            room.release()
            done.release()

        return tell

    start = time.perf_counter()
    for _ in range(count):
        room.acquire()
        member.put(payload, callback=settled(time.perf_counter()))
    for _ in range(count):
        done.acquire()
    return summary(count, time.perf_counter() - start, waits_s, len(failures))


def serve_stock(config: Answer) -> None:
    member = stock_member(config)
    for line in sys.stdin:
        command = json.loads(line)
        if "load" in command:
            say(load_stock(member, command["load"], command["size"], command["in_flight"]))
        else:
            status = member.getStatus()
            led = status["leader"] is not None
            say({"leader": member._isLeader(), "led": led, "rss_bytes": rss_bytes()})
    member.destroy()


def say(answer: Answer) -> None:
    os.write(ANSWERS, json.dumps(answer).encode() + b"\n")


SERVE: dict[str, Callable[[Answer], None]] = {"raft": serve_raft, "etcd": serve_etcd, "stock": serve_stock}


def main(lines: Sequence[str]) -> None:
    config = json.loads(lines[0])
    SERVE[config["engine"]](config)


if __name__ == "__main__":
    main([sys.stdin.readline()])
