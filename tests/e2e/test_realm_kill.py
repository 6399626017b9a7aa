"""SIGKILL at random moments under load: nothing acknowledged is lost, nobody signs an epoch twice, and a new
ratified epoch follows.

`--seed N` repeats the victims and the moments; what the processes were at when it struck is the machine's.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from realm_processes.ledger import Ledger, SeenSignatures
from realm_processes.load import Load, check_promises, see_ratified_heads
from realm_processes.realm import RealmProcesses

from keyserver.config import Epochs
from keyserver.demo.stage import REPLICA
from verifier.signonce import SignOnceRegister

VERIFIERS = ("v1", "v2")
VICTIMS = (
    (REPLICA,),
    (REPLICA,),
    (REPLICA,),
    ("v1",),
    ("v2",),
    (REPLICA, "v1"),
    VERIFIERS,
    (REPLICA, *VERIFIERS),
)
PEOPLE = 3
MOMENT_S = 0.3  # an epoch and its ratifications fit in, and so does a part of a start
IMPATIENCE = 0.2  # how often the next blow falls before everything is up again


class KilledRealm(RealmProcesses):
    epochs_plan = Epochs(min_interval_ms=100, max_interval_ms=2_000, retry_interval_ms=200)


def see_register(realm: RealmProcesses, name: str, seen: SeenSignatures) -> None:
    """Every row of a killed process's register, read from a copy: reading repairs a torn end."""
    copy = realm.folder / "copy.register"
    shutil.copy(realm.register_of(name), copy)
    key_id = realm.key_id_of(name)
    register = SignOnceRegister.open(copy, key_id=key_id)
    newest = register.newest()
    rows = {row.epoch: row for n in range(1, newest.epoch + 1 if newest else 1) if (row := register.get(n))}
    register.close()
    missing = seen.signed_by(key_id) - rows.keys()
    assert not missing, f"{name} signed {sorted(missing)}, of which its register knows nothing"
    for row in rows.values():
        seen.see_row(key_id, row)


def strike(realm: RealmProcesses, victims: tuple[str, ...], seen: SeenSignatures) -> None:
    """Kill, look at what is left, start again from the same directories."""
    for name in victims:
        realm.kill(name)
    for name in victims:
        see_register(realm, name, seen)
    for name in victims:
        if name == REPLICA:
            realm.spawn_replica()
        else:
            realm.start_verifier(name)


def test_killed_at_random_moments_under_load_nothing_is_lost_and_nothing_signed_twice(
    tmp_path: Path, rng: random.Random, count: Callable[[int], int]
) -> None:
    realm = KilledRealm(tmp_path / "realm", VERIFIERS)
    ledger = Ledger(tmp_path / "ledger")
    try:
        realm.open()
        listed = realm.realm()
        seen = SeenSignatures(listed.genesis_policy.keys, {v.key_id: v.public_key for v in listed.verifiers})
        load = Load(realm, ledger, seen, name=f"p{rng.getrandbits(32)}")
        try:
            load.start(PEOPLE)
            load.wait_beyond(0)
            for _ in range(count(50)):
                victims = rng.choice(VICTIMS)
                load.pause(rng.uniform(0, MOMENT_S))
                strike(realm, victims, seen)
                if rng.random() >= IMPATIENCE:
                    load.wait_beyond(seen.newest)
            load.wait_beyond(seen.newest)
        finally:
            load.stop()
        check_everything(realm, load, ledger, seen)
    finally:
        realm.processes.stop_all()


def check_everything(realm: RealmProcesses, load: Load, ledger: Ledger, seen: SeenSignatures) -> None:
    assert not load.failures, load.failures
    promises = list(ledger.read())
    assert len(promises) == load.acknowledged
    assert len({promise.user_id for promise in promises}) > PEOPLE
    check_promises(load, promises)
    newest = seen.newest
    for name in VERIFIERS:
        see_ratified_heads(realm, name, newest, seen)
        assert seen.signed_by(realm.key_id_of(name)) >= set(range(1, newest + 1))
    for name in (REPLICA, *VERIFIERS):
        assert realm.processes.stop(name) == 0
        see_register(realm, name, seen)
        assert "Traceback" not in realm.log_of(name)
    assert seen.contradictions() == []
    print(f"{len(promises)} promises in {newest} epochs, all kept")
