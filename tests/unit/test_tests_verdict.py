"""A realm under load is judged at the end even when the drill failed; the drill's own failure stays first."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from realm_processes import crashes
from realm_processes.crashes import CrashingRealm, Trial, under_load
from realm_processes.ledger import Acknowledged
from realm_processes.load import Load
from streams.build import Stream

from verifier.signonce import Row, SignOnceRegister
from verifier.types import Realm

STREAM = Stream().grow(2)
NEWEST = 2
ROW = Row(
    epoch=NEWEST, head_hash=bytes(32), timestamp_ms=1, digest=bytes(32), log_index=1, signature=bytes(64)
)
OTHER_ROW = replace(ROW, head_hash=b"other".ljust(32))
GOOD = Acknowledged("alice", 1, NEWEST, STREAM.entries["alice"].encoded.hex(), "")
BAD = replace(GOOD, entry="00")
LATER = replace(BAD, epoch=NEWEST + 1)

Deed = Callable[[Trial], None]


class StillRealm(CrashingRealm):
    """Sign-once registers, and nothing that runs."""

    def open(self) -> None:
        for name in (*self.replicas, *self.verifiers):
            self.register_of(name).parent.mkdir(parents=True)
            SignOnceRegister.create(self.register_of(name), key_id=self.key_id_of(name)).close()

    def realm(self) -> Realm:
        return STREAM.realm

    def key_id_of(self, name: str) -> bytes:
        parties = STREAM.replicas if name in self.replicas else STREAM.verifiers
        return parties[int(name[1:]) - 1].key_id


class StillLoad(Load):
    """Followers have read the verifier log; nobody else is there."""

    def start(self, people: int) -> None:
        for follower in self._followers:
            follower.steps = list(STREAM.steps)

    def wait_beyond(self, number: int, deadline_s: float = 60.0) -> None: ...


def sign(name: str, row: Row) -> Deed:
    """In the register, as a process does."""

    def deed(trial: Trial) -> None:
        key_id = trial.realm.key_id_of(name)
        register = SignOnceRegister.open(trial.realm.register_of(name), key_id=key_id)
        register.sign_once(row.epoch, row.head_hash, lambda: row)
        register.close()

    return deed


def show(name: str, row: Row) -> Deed:
    """Elsewhere, for the load to see."""
    return lambda trial: trial.seen.see_row(trial.realm.key_id_of(name), row)


def begin_above(name: str, floor: int) -> Deed:
    """With a register that allows nothing up to there, as for a new key."""

    def deed(trial: Trial) -> None:
        path = trial.realm.register_of(name)
        path.unlink()
        SignOnceRegister.create(path, key_id=trial.realm.key_id_of(name), floor=floor).close()

    return deed


def damage(name: str) -> Deed:
    return lambda trial: trial.realm.register_of(name).unlink()


def promise(promised: Acknowledged, counted: int = 1) -> Deed:
    def deed(trial: Trial) -> None:
        trial.ledger.write(promised)
        trial.load.acknowledged += counted

    return deed


def log_of_another_realm(trial: Trial) -> None:
    trial.load._followers[0].steps = Stream(seed=2).grow(1).steps


@pytest.fixture
def still(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], AbstractContextManager[Trial]]:
    monkeypatch.setattr(crashes, "Load", StillLoad)
    monkeypatch.setattr(crashes, "check_processes", lambda trial: None)

    @contextmanager
    def open_still() -> Iterator[Trial]:
        with under_load(tmp_path, ("v1",), 1, rng, StillRealm, ("r1", "r2")) as trial:
            yield trial

    return open_still


Open = Callable[[], AbstractContextManager[Trial]]
FAULTS: dict[str, tuple[tuple[Deed, ...], str]] = {
    "two heads": ((sign("r1", ROW), show("r1", OTHER_ROW)), f"epoch {NEWEST} has 2 heads"),
    "two signatures": ((sign("v1", ROW), show("v1", OTHER_ROW)), f"signed epoch {NEWEST} 2 times"),
    "two signers of two heads": ((sign("r1", ROW), sign("r2", OTHER_ROW)), f"epoch {NEWEST} has 2 heads"),
    "forgotten, and signed twice": (
        (show("r1", replace(ROW, epoch=1)), sign("r1", ROW), show("r2", OTHER_ROW)),
        f"epoch {NEWEST} has 2 heads",
    ),
    "forgotten": ((show("r2", ROW),), f"r2 signed [{NEWEST}], of which its register knows nothing"),
    "signed before it began": ((begin_above("v1", NEWEST), show("v1", ROW)), f"v1 signed [{NEWEST}]"),
    "behind a damaged one": ((damage("r1"), show("v1", ROW)), f"v1 signed [{NEWEST}]"),
    "damaged": ((damage("r1"),), "the register of r1: "),
    "lost": ((promise(BAD),), f"r2 is past epoch {NEWEST} without a version 1 promised then"),
    "not written down": ((promise(GOOD, 2),), "the ledger has 1 of 2 promises"),
    "served differently": ((log_of_another_realm,), "two replicas serve different verifier logs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_drill_that_failed_is_judged_all_the_same(still: Open, fault: str) -> None:
    deeds, expected = FAULTS[fault]
    with pytest.raises(TimeoutError, match="the drill") as failed, still() as trial:
        for deed in deeds:
            deed(trial)
        raise TimeoutError("the drill")
    (note,) = failed.value.__notes__
    assert expected in note


@pytest.mark.parametrize("fault", FAULTS)
def test_a_drill_that_succeeded_fails_by_the_verdict(still: Open, fault: str) -> None:
    deeds, expected = FAULTS[fault]
    with pytest.raises(AssertionError) as failed, still() as trial:
        for deed in deeds:
            deed(trial)
    assert expected in str(failed.value)


def test_nothing_is_held_against_a_drill_that_only_failed(still: Open) -> None:
    with pytest.raises(TimeoutError) as failed, still() as trial:
        for deed in (sign("r1", ROW), show("r1", ROW), sign("v1", ROW), promise(GOOD), promise(LATER)):
            deed(trial)
        raise TimeoutError("the drill")
    (note,) = failed.value.__notes__
    assert note.endswith("nothing was found")


def test_a_register_may_have_dropped_its_old_rows(still: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crashes, "ROWS_KEPT", 1)  # the fewest it has left then
    with still() as trial:
        newer = replace(ROW, epoch=NEWEST + 1)
        for deed in (begin_above("v1", NEWEST), sign("v1", newer), show("v1", ROW)):
            deed(trial)


def test_nothing_more_is_asked_of_replicas_when_a_drill_failed(
    still: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be dead, and each would be waited for."""
    asked: list[str] = []

    class Door:
        def stream(self, path: str, request: bytes) -> tuple[list[bytes], None]:
            asked.append(path)
            return [], None

    monkeypatch.setattr(StillRealm, "verification", lambda realm, name: Door())
    with pytest.raises(TimeoutError), still() as trial:
        (follower, _) = trial.load._followers
        follower.steps.clear()
        raise TimeoutError("the drill")
    follower.work()
    assert asked == []
    trial.load.in_order = True
    follower.work()
    assert len(asked) == 1


def test_processes_that_still_run_are_ended_before_their_registers_are_read(
    still: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(StillRealm, "stop_all", lambda realm: done.append("ended"))
    monkeypatch.setattr(crashes, "see_register", lambda realm, name, seen: done.append(name))
    with still():
        pass
    assert done[:4] == ["ended", "r1", "r2", "v1"]
