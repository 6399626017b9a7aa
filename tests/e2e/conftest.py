"""One realm of real processes for all black-box tests: three verifiers run, the tests play a fourth."""

from collections.abc import Iterator

import pytest
from realm_processes.people import Authority, Person, connect, new_person
from realm_processes.realm import RealmProcesses

from verifier.client.client import Client


class BlackBoxRealm(RealmProcesses):
    authority = Authority()
    mute = ("v4",)


@pytest.fixture(scope="session")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealmProcesses]:
    """The realm; at the end every process still runs, and none has logged an exception or a user id."""
    stage = BlackBoxRealm(tmp_path_factory.mktemp("realm") / "realm", ("v1", "v2", "v3", "v4"))
    try:
        stage.open()
        yield stage
        stage.check_alive()
        for name in list(stage.processes.running):
            assert stage.processes.stop(name) == 0, f"{name} did not stop cleanly"
            log = stage.log_of(name)
            assert "Traceback" not in log, f"{name} logged an exception"
            assert "person-" not in log, f"{name} logged a user id"
    finally:
        stage.processes.stop_all()


@pytest.fixture
def client(realm: RealmProcesses) -> Iterator[Client]:
    """A client that knows nothing but the realm's file."""
    made, transport = connect(realm.realm())
    with transport:
        yield made


@pytest.fixture
def person(realm: RealmProcesses) -> Person:
    """Somebody not yet registered."""
    assert realm.authority is not None
    return new_person(realm.realm(), realm.authority)
