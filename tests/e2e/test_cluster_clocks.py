"""Three replicas, and the leader's clock is a day off: epochs go on, and say the right time."""

import random
import sys
import time
from pathlib import Path

import pytest
from realm_processes import load
from realm_processes.cluster import ClusterProcesses, cluster_under_load
from realm_processes.realm import REPLICA
from runbooks import SKEWED

from verifier import limits
from verifier.errors import Reason

DAY_S = 86_400
ATTEMPTS = 20  # on a busy machine the others may miss a leader, whatever its clock says
EPOCH_S = 60.0  # enough on any machine; how long it takes is printed


class SkewedCluster(ClusterProcesses):
    """Every replica's clock is off by what a file says, in seconds; at first by nothing."""

    def offset(self, name: str) -> Path:
        return self.folder / f"{name}.offset"

    def spawn_replica(self, name: str = REPLICA, *, counting_crashes: bool = False) -> None:
        (self.folder_of(name) / "data" / "crashes.json").unlink(missing_ok=True)
        skewed = [sys.executable, "-I", str(SKEWED), str(self.offset(name))]
        serve = ["keyserver", "serve", "-c", str(self.config_of(name)), "--leave-diagnostic"]
        self.processes.spawn(name, [*skewed, *serve])


@pytest.mark.slow
@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S])
def test_epochs_go_on_and_say_the_right_time_when_the_leaders_clock_is_a_day_off(
    tmp_path: Path, rng: random.Random, off_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Until the others were asked for the time again, a replica endorses by its own.
    monkeypatch.setattr(load, "PASSING", load.PASSING | {Reason.PROOF_EXPIRED})
    with cluster_under_load(tmp_path, rng, kind=SkewedCluster) as (trial, realm):
        assert isinstance(realm, SkewedCluster)
        for _ in range(ATTEMPTS):
            leader = realm.wait_leader()
            (right, *_) = realm.others(leader)
            realm.offset(leader).write_text(str(off_s))
            for _ in range(3):
                print(f"a new epoch {trial.load.wait_issued_from_now(EPOCH_S):.2f} s later")
            issued_ms = realm.standing(right)["head"]["issue_time_ms"]
            assert abs(issued_ms - time.time() * 1000) <= limits.DELIMITER_DRIFT_MS + EPOCH_S * 1000
            has_led = realm.wait_leader() == leader
            realm.offset(leader).unlink()
            trial.wait_epoch()
            if has_led:
                return
    pytest.fail("nobody leads for three epochs whose clock is off")
