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
    with BlackBoxRealm(tmp_path_factory.mktemp("realm") / "realm", ("v1", "v2", "v3", "v4")).used() as stage:
        yield stage


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
