"""The log alone: ours over raft and over etcd beside stock pysyncobj, three members each, a process a member.

Ours sync every batch and speak mutual TLS. Stock pysyncobj does neither: it is the speed one gives up safety
for. All clusters stand at the same time and are asked in turn, so that a slow minute slows each alike.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from bench_measure import Measured, Plan, median, median_ratio, progress
from bench_realm import HOST, temporary_folder
from clusters.certificates import PeersAuthority
from etcd_members import EtcdMembers

from keyserver.demo.processes import free_port
from replication.types import PeerTls

MEMBER = Path(__file__).with_name("bench_replication_member.py")
NAMES = ("r1", "r2", "r3")
SIZE = 200
IN_FLIGHT = 128
WARM_UP = 500
CHUNK = 20_000
ELECTED_S = 60.0
ATTEMPTS = 5
POLL_S = 0.02

Answer = dict[str, Any]


class Member:
    """A process of bench_replication_member."""

    def __init__(self, config: Mapping[str, object]) -> None:
        log = (temporary_folder() / "member.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(MEMBER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        log.close()
        self._log = Path(log.name)
        self._tell(config)

    def ask(self, **command: object) -> Answer:
        """Give a command and return the answer. Raises RuntimeError when the process has ended."""
        self._tell(command)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a member ended: {self._log.read_text(errors='replace')[-2000:]}")
        answer: Answer = json.loads(line)
        return answer

    def end(self) -> None:
        """Let it end by itself, as it does when there are no more commands."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(ELECTED_S)
        self._process.stdout.close()

    def _tell(self, what: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


class Members:
    """A cluster of members; the one that leads is asked."""

    def __init__(self, stack: ExitStack, configs: Sequence[Mapping[str, object]]) -> None:
        self._members = [stack.enter_context(Member(config)) for config in configs]
        self._leader = self._find_leader()
        self.load(WARM_UP)

    def load(self, count: int, size: int = SIZE, in_flight: int = IN_FLIGHT) -> Answer:
        """Propose at the leader; anew, if meanwhile another one came to lead: such a figure means nothing.

        Raises RuntimeError if something is never committed.
        """
        for _ in range(ATTEMPTS):
            answer = self._leader.ask(load=count, size=size, in_flight=in_flight)
            if not answer["failed"]:
                return answer
            self._leader = self._find_leader()
        raise RuntimeError(f"{answer['failed']} proposals were not committed")

    def _find_leader(self) -> Member:
        deadline = time.monotonic() + ELECTED_S
        while time.monotonic() < deadline:
            for member in self._members:
                if member.ask(status=1)["leader"]:
                    return member
            time.sleep(POLL_S)
        raise RuntimeError("no leader")


def paths(tls: PeerTls) -> list[str]:
    return [str(tls.certificate), str(tls.key), str(tls.authority)]


def raft_configs(names: Sequence[str] = NAMES) -> list[dict[str, object]]:
    """What the members of a new raft cluster are told."""
    folder = temporary_folder()
    authority = PeersAuthority(folder / "peers")
    members = {name: f"{HOST}:{free_port()}" for name in names}
    return [
        {
            "engine": "raft",
            "name": name,
            "directory": str(folder / name),
            "members": members,
            "tls": paths(authority.member(name)),
        }
        for name in names
    ]


def stock_configs() -> list[dict[str, object]]:
    return [{**config, "engine": "stock"} for config in raft_configs()]


def etcd_configs(stack: ExitStack) -> list[dict[str, object]]:
    """The same for our etcd engine, over a new cluster of three etcd members."""
    etcd = EtcdMembers(temporary_folder(), len(NAMES))
    stack.callback(etcd.stop_all)
    etcd.start()
    return [
        {
            **config,
            "engine": "etcd",
            "endpoints": etcd.endpoints(own),
            "tls": paths(etcd.tls),
        }
        for config, own in zip(raft_configs(), etcd.names, strict=True)
    ]


def replication(plan: Plan) -> Iterator[Measured]:
    """Proposals a second at the leader of three members: raft, stock pysyncobj, etcd, in turn."""
    count = plan.size(10_000, 300)
    with ExitStack() as stack:
        progress("replication: three clusters of three members")
        clusters = {
            "raft": Members(stack, raft_configs()),
            "stock": Members(stack, stock_configs()),
            "etcd": Members(stack, etcd_configs(stack)),
        }
        for in_flight, share in ((IN_FLIGHT, 1), (16, 4), (1, 20)):
            rounds = [
                {
                    name: cluster.load(max(in_flight, count // share), in_flight=in_flight)
                    for name, cluster in clusters.items()
                }
                for _ in range(plan.repetitions)
            ]
            yield _measured(rounds, in_flight)


def _measured(rounds: Sequence[Mapping[str, Answer]], in_flight: int) -> Measured:
    raft, stock, etcd = ([each[name] for each in rounds] for name in ("raft", "stock", "etcd"))
    rates = [[answer["per_s"] for answer in answers] for answers in (raft, stock, etcd)]
    metrics = {
        "per_s": median(rates[0]),
        "p50_ms": median([answer["p50_ms"] for answer in raft]),
        "p99_ms": median([answer["p99_ms"] for answer in raft]),
        "stock_pysyncobj_per_s": median(rates[1]),
        "etcd_per_s": median(rates[2]),
        "ratio_to_stock_pysyncobj": median_ratio(rates[0], rates[1]),
        "ratio_to_etcd": median_ratio(rates[0], rates[2]),
    }
    params = {"members": len(NAMES), "payload_bytes": SIZE, "in_flight": in_flight, "rounds": len(rounds)}
    return Measured("replication", params, metrics)


def replication_size(plan: Plan) -> Iterator[Measured]:
    """A member with few and with many entries: its memory, and its start when all of them were applied."""
    figures: dict[int, dict[str, float]] = {}
    for entries in (plan.size(10_000, 500), plan.size(1_000_000, 2_000)):
        (config,) = raft_configs(("r1",))
        progress(f"replication-size: {entries} entries")
        with Member(config) as member:
            for _ in range(0, entries, CHUNK):  # a member that loads remembers the times of one chunk
                member.ask(load=min(CHUNK, entries), size=SIZE, in_flight=1024)
            grown = member.ask(status=1)
        taken, opening, again = [], [], []
        for _ in range(plan.repetitions):
            begun = time.perf_counter()
            with Member({**config, "lo": entries + 1}) as member:
                while not (status := member.ask(status=1))["leader"]:
                    time.sleep(POLL_S)
                taken.append(time.perf_counter() - begun)
                opening.append(status["open_s"])
                again.append(status["rss_bytes"])
        figures[entries] = {
            "p50_s": median(taken),
            "max_s": max(taken),
            "open_p50_s": median(opening),
            "rss_bytes": grown["rss_bytes"],
            "restarted_rss_bytes": median(again),
        }
    few, many = sorted(figures)
    for entries, metrics in figures.items():
        if entries == many:
            metrics["more_rss_bytes"] = metrics["rss_bytes"] - figures[few]["rss_bytes"]
            metrics["ratio_of_opening"] = metrics["open_p50_s"] / figures[few]["open_p50_s"]
            metrics["ratio_to_few_entries"] = metrics["p50_s"] / figures[few]["p50_s"]
        yield Measured("replication-size", {"entries": entries, "payload_bytes": SIZE}, metrics)
