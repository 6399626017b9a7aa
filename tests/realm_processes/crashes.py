"""A realm under load whose processes end at moments of the test's choosing, and what must be true then."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from keyserver.config import Epochs, Storage
from keyserver.demo.processes import wait_until
from keyserver.demo.stage import REPLICA
from realm_processes.ledger import Acknowledged, Ledger, SeenSignatures
from realm_processes.load import Load, check_promises, see_ratified_heads
from realm_processes.realm import RealmProcesses
from verifier.signonce import ROWS_KEPT, SignOnceRegister


class CrashingRealm(RealmProcesses):
    """One whose epochs are short."""

    epochs_plan = Epochs(min_interval_ms=100, max_interval_ms=2_000, retry_interval_ms=200)
    # Verifiers with another key than at the beginning -> the first epoch that it may sign.
    rekeyed: Mapping[str, int] = MappingProxyType({})
    storage = Storage(min_free_bytes=2_000_000, ballast_bytes=1_000_000)

    def set_up(self) -> None:
        super().set_up()
        for config in map(self.config_of, self.replicas):
            text = config.read_text()
            for name in Storage.__struct_fields__:
                text = re.sub(
                    rf"^{name} = \d+", f"{name} = {getattr(self.storage, name)}", text, flags=re.MULTILINE
                )
            config.write_text(text)

    def spawn_replica(self, name: str = REPLICA, *, counting_crashes: bool = False) -> None:
        """Start a replica without waiting; it does not know how often it crashed before."""
        (self.folder_of(name) / "data" / "crashes.json").unlink(missing_ok=True)
        super().spawn_replica(name, counting_crashes=counting_crashes)

    def spawn(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a process without waiting, this once with these variables on top of those it always has."""
        always = self.processes.variables.get(name, {})
        self.processes.variables[name] = {**always, **(environment or {})}
        try:
            if name in self.replicas:
                self.spawn_replica(name)
            else:
                self.start_verifier(name)
        finally:
            self.processes.variables[name] = always

    def check_at_rest(self) -> None:
        """Raises AssertionError if what is true without load is not."""

    def wait_end(self, name: str) -> int:
        """The status with which a process ends by itself; it counts as stopped."""
        process = self.processes.running[name]
        wait_until(lambda: process.poll() is not None, f"{name} to end")
        del self.processes.running[name]
        status = process.returncode
        assert status is not None
        return status


def see_register(realm: RealmProcesses, name: str, seen: SeenSignatures) -> None:
    """Every row of a killed process's register, read from a copy: reading repairs a torn end."""
    copy = realm.folder / "copy.register"
    shutil.copy(realm.register_of(name), copy)
    key_id = realm.key_id_of(name)
    register = SignOnceRegister.open(copy, key_id=key_id)
    newest, floor = register.newest(), register.floor
    rows = {row.epoch: row for n in range(1, newest.epoch + 1 if newest else 1) if (row := register.get(n))}
    register.close()
    dropped_to = floor if len(rows) >= ROWS_KEPT else 0  # else it began there, and nothing below is signed
    missing = {epoch for epoch in seen.signed_by(key_id) - rows.keys() if epoch > dropped_to}
    for row in rows.values():
        seen.see_row(key_id, row)
    assert not missing, f"{name} signed {sorted(missing)}, of which its register knows nothing"


@dataclass
class Trial:
    """A realm under load, with everything it has promised so far."""

    realm: CrashingRealm
    load: Load
    ledger: Ledger
    seen: SeenSignatures

    def wait_epoch(self) -> None:
        """Return once an update is proven in an epoch newer than any that was seen signed."""
        self.load.wait_beyond(self.seen.newest)

    def see_end(self, name: str, *statuses: int) -> None:
        """Wait until a process ends by itself with one of the statuses; then look at its register."""
        status = self.realm.wait_end(name)
        assert status in (statuses or (-signal.SIGKILL,)), f"{name} ended with status {status}"
        see_register(self.realm, name, self.seen)

    def promises(self) -> list[Acknowledged]:
        return list(self.ledger.read())


def strike(trial: Trial, victims: Sequence[str]) -> None:
    """Kill, look at what is left, start again from the same directories."""
    for name in victims:
        trial.realm.kill(name)
    for name in victims:
        see_register(trial.realm, name, trial.seen)
    for name in victims:
        trial.realm.spawn(name)


@contextmanager
def under_load(
    folder: Path,
    verifiers: tuple[str, ...],
    people: int,
    rng: random.Random,
    kind: type[CrashingRealm] = CrashingRealm,
    replicas: tuple[str, ...] = (REPLICA,),
) -> Iterator[Trial]:
    """A realm of real processes and people who use it without end. At the end every promise is checked;
    of a drill that failed, all that can be told without a process.
    """
    realm = kind(folder / "realm", verifiers, replicas)
    ledger = Ledger(folder / "ledger")
    try:
        realm.open()
        listed = realm.realm()
        seen = SeenSignatures(listed.genesis_policy.keys, {v.key_id: v.public_key for v in listed.verifiers})
        load = Load(realm, ledger, seen, name=f"p{rng.getrandbits(32)}")
        trial = Trial(realm, load, ledger, seen)
        with judged(trial):
            try:
                load.start(people)
                load.wait_beyond(0)
                yield trial
                trial.wait_epoch()
            except BaseException:
                load.stop(in_order=False)
                raise
            load.stop()
            check_processes(trial)
        print(f"{load.acknowledged} promises in {seen.newest} epochs, all kept")
    finally:
        realm.close()


def check_processes(trial: Trial) -> None:
    """Nothing acknowledged is lost, verifiers have ratified everything, and nobody ends in disorder."""
    realm, load, seen = trial.realm, trial.load, trial.seen
    assert not load.failures, load.failures
    realm.check_at_rest()
    check_promises(load, trial.promises())
    newest = seen.newest
    for name in realm.verifiers:
        ratified = range(realm.rekeyed.get(name, 1), newest + 1)
        see_ratified_heads(realm, name, ratified, seen)
        assert seen.signed_by(realm.key_id_of(name)) >= set(ratified)
    for name in (*realm.replicas, *realm.verifiers):
        assert realm.processes.stop(name) == 0
        assert "Traceback" not in realm.log_of(name)


@contextmanager
def judged(trial: Trial) -> Iterator[None]:
    """Judge what was seen, promised and left on the disks, whatever happened. A failure before that goes on,
    with the verdict in its notes.
    """
    try:
        yield
    except BaseException as failure:
        verdict = find_faults(trial) or ["nothing was found"]
        failure.add_note("\n  ".join(("What was left was judged all the same:", *verdict)))
        raise
    faults = find_faults(trial)
    assert not faults, "\n".join(faults)


def find_faults(trial: Trial) -> list[str]:
    """Every broken promise and every second signature that shows when no process runs any more."""
    realm, load, seen = trial.realm, trial.load, trial.seen
    realm.stop_all()
    faults = list(load.failures)
    for name in (*realm.replicas, *realm.verifiers):
        try:
            see_register(realm, name, seen)
        except Exception as error:  # what the other registers say counts all the same
            faults.append(f"the register of {name}: {error!r}")
    promises = trial.promises()
    if len(promises) != load.acknowledged:
        faults.append(f"the ledger has {len(promises)} of {load.acknowledged} promises")
    return [*faults, *load.find_lost(promises), *seen.contradictions()]
