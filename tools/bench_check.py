"""`keyserver check` of a stopped replica, beside a verifier that replays the same realm."""

from collections.abc import Iterator
from contextlib import closing

from bench_measure import Measured, Plan, alternated, median, median_ratio, progress
from bench_realm import Ground, Growth, name_of, set_up, temporary_folder
from bench_replay import replay, streamed

from keyserver.copies.check_replica import check_replica
from keyserver.machine.tables import Tables
from kv.leveldb import LevelDBStore

USERS_AN_EPOCH = 1_000
VERSIONS = 5  # of each user's entry: a registration and later updates


def check(plan: Plan) -> Iterator[Measured]:
    """Check a realm without any name in the VRF cache, and with all of them.

    The rows of that cache are no result of the log: to check one takes longer than to replay an update.
    """
    users = plan.size(20_000, 100)
    ground = set_up(verifiers=2)
    _grow(ground, users)
    with ground.store() as store:
        messages = streamed(store)
        cached = dict(store.scan(*Tables.VRF_CACHE.span()))
    for rows in (dict.fromkeys(cached), cached):
        with ground.store() as store:
            store.write(rows)
        names = users if rows is cached else 0
        checked, replayed = _measure(ground, plan.size(3, 1), messages, names)
        metrics = {
            "per_s": ground.updates / median(checked),
            "update_us": 1e6 * median(checked) / ground.updates,
            "verifier_update_us": 1e6 * median(replayed) / ground.updates,
            "ratio_to_verifier_replay": median_ratio(checked, replayed),
        }
        params = {"updates": ground.updates, "users": users, "index_proofs": "all" if names else "none"}
        yield Measured("check", params, metrics)


def _grow(ground: Ground, users: int) -> None:
    names = [name_of(number) for number in range(users)]
    with Growth(ground) as growth:
        for version in range(VERSIONS):
            for first in range(0, users, USERS_AN_EPOCH):
                growth.update(names[first : first + USERS_AN_EPOCH])
                growth.close_epoch()
            progress(f"  {users} users have version {version}")


def _measure(
    ground: Ground, repetitions: int, messages: list[bytes], names: int
) -> tuple[list[float], list[float]]:
    """Seconds of the check and of the verifier's replay, side by side."""
    folder = temporary_folder()
    numbers = iter(range(repetitions))

    def whole_check() -> None:
        report = check_replica(ground.config, lambda _: None).report
        if not report.sound or report.index_proofs != names:
            raise AssertionError("the realm of the benchmark is not sound")

    def verifier() -> None:
        with closing(LevelDBStore(folder / str(next(numbers)))) as store:
            replay(store, ground.realm, messages)

    checked, replayed = alternated(repetitions, whole_check, verifier)
    return checked, replayed
