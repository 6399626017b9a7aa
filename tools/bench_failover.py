"""How long people wait when the leader of a cluster is killed: three replicas and a verifier, all processes.

The load is that of the tests: people who update without end, believe only proofs, and go to another replica
when one does not answer. At the end nothing that was promised to them is lost, or there is no figure.
"""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from threading import Event, Thread

from bench_measure import Measured, Plan, median, progress
from bench_realm import temporary_folder
from realm_processes.crashes import CrashingRealm, Trial, see_register, under_load

REPLICAS = ("r1", "r2", "r3")
VERIFIERS = ("v1",)
PEOPLE = 4
POLL_S = 0.01
SEED = 4


def failover(plan: Plan) -> Iterator[Measured]:
    """Seconds from SIGKILL of the leader to the next committed entry, and to the next ratified update."""
    kills = plan.size(30, 2)
    committed, ratified = [], []
    folder = temporary_folder()
    with (
        redirect_stdout(sys.stderr),  # what the tests print
        under_load(folder, VERIFIERS, PEOPLE, random.Random(SEED), CrashingRealm, REPLICAS) as trial,
    ):
        for number in range(kills):
            after = _kill_leader(trial)
            committed.append(after[0])
            ratified.append(after[1])
            progress(
                f"  kill {number + 1}: committed after {after[0]:.2f} s, ratified after {after[1]:.2f} s"
            )
    metrics = {
        "p50_s": median(ratified),
        "max_s": max(ratified),
        "committed_p50_s": median(committed),
        "committed_max_s": max(committed),
    }
    params = {"replicas": len(REPLICAS), "verifiers": len(VERIFIERS), "callers": PEOPLE, "kills": kills}
    interval = {"min_interval_ms": CrashingRealm.epochs_plan.min_interval_ms, "seed": SEED}
    yield Measured("failover", {**params, **interval}, metrics)


def _kill_leader(trial: Trial) -> tuple[float, float]:
    """Seconds to the next committed entry and to the next ratified update; then all are there again."""
    realm = trial.realm
    leader = realm.wait_leader()
    others = [name for name in realm.replicas if name != leader]
    start = time.monotonic()
    realm.kill(leader)
    watch = Commits(realm, others, start)
    ratified = trial.load.wait_issued_from_now()
    committed = watch.wait()
    see_register(realm, leader, trial.seen)
    realm.spawn(leader)
    realm.wait_ready(leader)
    return committed, ratified


class Commits:
    """Waits, beside everything else, for an entry that none of the replicas had when it was made."""

    def __init__(self, realm: CrashingRealm, names: list[str], start: float) -> None:
        self._realm = realm
        self._names = names
        self._before = self._newest("stored_index")
        self._seconds = 0.0
        self._seen = Event()
        self._start = start
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def wait(self) -> float:
        """Seconds from the start until it was applied somewhere. Raises TimeoutError."""
        if not self._seen.wait(60):
            raise TimeoutError("nothing new was committed")
        return self._seconds

    def _look(self) -> None:
        while self._newest("applied_index") <= self._before:
            time.sleep(POLL_S)
        self._seconds = time.monotonic() - self._start
        self._seen.set()

    def _newest(self, what: str) -> int:
        return max(int(self._realm.standing(name).get(what, 0)) for name in self._names)
