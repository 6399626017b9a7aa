"""Lookups of a replica process over gRPC and TLS, in turn with a bare server's answers of the same size."""

import random
from collections.abc import Callable, Iterator
from itertools import chain, count

from bench_echo import METHOD
from bench_load import Answered, connections
from bench_lookup import request_of
from bench_measure import Measured, Plan, median, median_ratio, quantile
from bench_realm import REALM, Ground, grown
from bench_servers import Echo, Replica

LOOKUP = "/e2eks.v1.Keyserver/Lookup"
IN_FLIGHT = 16
SEED = 3


def lookup_rpc(plan: Plan) -> Iterator[Measured]:
    """Registered users, whose VRF proofs are cached, and names nobody has, whose proofs are made."""
    users = plan.size(100_000, 300)
    ground = grown(users)
    ground.lift_limits()
    dice, registered = random.Random(SEED), list(ground.users)
    strangers = count()
    names: dict[bool, Callable[[], str]] = {
        True: lambda: dice.choice(registered),
        False: lambda: f"nobody-{next(strangers)}@{REALM}",
    }
    for cached, name in names.items():
        calls = plan.size(1000 if cached else 500, 50)
        rounds = [[request_of(name()) for _ in range(calls)] for _ in range(plan.repetitions + 1)]
        size, asked, echoed = _in_turn(ground, rounds)
        params = {"users": users, "vrf_cached": cached, "in_flight": IN_FLIGHT, "answer_bytes": size}
        turns = {"rounds": len(asked), "calls": calls, "seed": SEED}
        yield Measured("lookup-rpc", {**params, **turns}, _metrics(asked, echoed))


def _in_turn(ground: Ground, rounds: list[list[bytes]]) -> tuple[int, list[Answered], list[Answered]]:
    """Ask and echo in turn, after a first round that does not count; the answers' median size too."""
    roots, address = ground.realm.tls_roots_pem, ground.config.listen.public
    with Replica(ground) as replica:
        with connections(roots) as connect:
            first = connect([address], LOOKUP, [replica]).ask(rounds[0], IN_FLIGHT)
        size = int(median([len(answer) for answer in first.answers]))
        with Echo(ground, size) as echo, connections(roots) as connect:
            lookups = connect([address], LOOKUP, [replica])
            echoes = connect([echo.address], METHOD, [echo])
            for caller in (lookups, echoes):
                caller.ask(rounds[0][:IN_FLIGHT], IN_FLIGHT)
            asked, echoed = [], []
            for requests in rounds[1:]:
                asked.append(lookups.ask(requests, IN_FLIGHT))
                echoed.append(echoes.ask(requests, IN_FLIGHT))
    return size, asked, echoed


def _metrics(asked: list[Answered], echoed: list[Answered]) -> dict[str, float]:
    latencies = list(chain.from_iterable(answered.latencies for answered in asked))
    cpu, echo_cpu = ([a.cpu_s / len(a.answers) for a in rounds] for rounds in (asked, echoed))
    return {
        "per_s": median([answered.per_s for answered in asked]),
        "p50_ms": 1e3 * median(latencies),
        "p99_ms": 1e3 * quantile(latencies, 0.99),
        "echo_per_s": median([answered.per_s for answered in echoed]),
        "ratio_to_echo": median_ratio([a.seconds for a in asked], [a.seconds for a in echoed]),
        "server_cpu_us": 1e6 * median(cpu),
        "echo_cpu_us": 1e6 * median(echo_cpu),
        "ratio_of_server_cpu": median_ratio(cpu, echo_cpu),
    }
