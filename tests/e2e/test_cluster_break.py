"""Every replica of a cluster is lost: the backup is put back whole, answers, signs nothing, and says so."""

import json
import shutil
from pathlib import Path

import pytest
from realm_processes.people import Authority, connect, new_person, register
from realm_processes.realm import RealmProcesses

from keyserver.demo.processes import wait_until
from verifier.lookup import Present

THREE = ("r1", "r2", "r3")


def ratified_at(realm: RealmProcesses, name: str) -> int:
    """The newest epoch of which a replica has v1's ratification."""
    verifiers = (realm.standing(name).get("head") or {}).get("verifiers", [])
    return max((int(row["ratified_epoch"]) for row in verifiers), default=0)


@pytest.mark.slow
def test_a_cluster_that_is_lost_is_put_back_as_an_admitted_break(tmp_path: Path) -> None:
    realm = RealmProcesses(tmp_path / "realm", ("v1",), THREE)
    backup, notice = tmp_path / "r2.e2eks", tmp_path / "notice.json"
    try:
        realm.open()
        client, transport = connect(realm.realm())
        person = new_person(realm.realm(), Authority())
        known = register(client, person).head.head.epoch
        transport.close()
        wait_until(lambda: ratified_at(realm, "r2") >= known, "r2 to have what is copied from it")
        realm.ok("keyserver", "backup", "create", "-c", realm.config_of("r2"), backup)
        for name in THREE:
            realm.kill(name)
            shutil.rmtree(realm.folder_of(name) / "data")
        refused = realm.run("keyserver", "backup", "restore", str(backup), "-c", str(realm.config_of("r1")))
        assert refused.returncode == 2
        assert "--break-history" in refused.stderr
        for name in THREE:
            flag = ("--break-history", notice)
            realm.ok("keyserver", "backup", "restore", backup, *flag, "-c", realm.config_of(name))
            realm.spawn_replica(name)
        assert len(json.loads(notice.read_text())["signatures"]) == 3
        judged = realm.run(
            "verifier.client", "verify-notice", str(notice), "--realm-file", str(realm.realm_file)
        )
        assert judged.returncode == 0, judged.stderr
        wait_until(lambda: all(realm.standing(name).get("listening") for name in THREE), "they listen")
        for name in THREE:
            assert "restored from a backup" in realm.standing(name)["quarantined"]
        client, transport = connect(realm.realm())
        assert isinstance(client.lookup(person.user_id), Present)
        transport.close()
    finally:
        realm.close()
