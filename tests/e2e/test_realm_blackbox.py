"""A realm seen from outside: what anybody may ask of it, lawful or not, over the network.

The scenarios of the ancestor's own tests and its known defects (tests/README.md has the tables), as far as
one replica has them.
"""

import pytest
from e2eks.v1 import client_pb2
from realm_processes.people import (
    KEYS,
    OTHER_KEYS,
    Person,
    all_of,
    connect,
    register,
    registration,
    version_0,
)
from realm_processes.realm import KEYSERVER, RealmProcesses

from keyserver.demo.processes import wait_until
from keyserver.demo.stage import REPLICA
from verifier import encoding
from verifier.client.client import Client
from verifier.errors import Reason, Refused
from verifier.lookup import Absent, Present, Revoked
from verifier.proof_encoding import decode_lookup_proof


def test_a_replica_stops_cleanly_and_comes_back_with_everything(
    realm: RealmProcesses, client: Client, person: Person
) -> None:
    before = register(client, person)
    assert realm.processes.stop(REPLICA) == 0
    realm.start_replica()
    after, transport = connect(realm.realm())
    with transport:
        result = after.lookup(person.user_id)
    assert isinstance(result, Present)
    assert result.entry == before.entry
    assert result.head.head.epoch >= before.head.head.epoch


def test_epochs_go_on_without_updates_and_everybody_signs_them(realm: RealmProcesses) -> None:
    everybody = {REPLICA, "v1", "v2", "v3"}
    request = client_pb2.LookupRequest(user_id="nobody@example.test", epoch=3)
    wait_until(lambda: realm.epochs() >= 3, "epoch 3")
    quorum = all_of(*map(realm.key_id_of, sorted(everybody)))
    request.quorum_requirement.CopyFrom(encoding.quorum_message(quorum))

    wait_until(lambda: realm.lookup(request).code == "OK", "everybody's signature on epoch 3")
    head = decode_lookup_proof(realm.lookup(request).data).head
    assert head.head.epoch == 3
    assert realm.signers_of(head) == everybody


def test_an_unknown_user_is_proven_absent(client: Client, person: Person) -> None:
    result = client.lookup(person.user_id)
    assert isinstance(result, Absent)
    assert result.head.head.epoch >= 1
    assert result.proof.entry is None
    assert result.proof.profile is None


def test_a_profile_comes_back_byte_for_byte(client: Client, person: Person) -> None:
    draft, proof = registration(client, person)
    answer = client.submit(draft, proof)
    found = client.lookup(person.user_id)
    assert isinstance(found, Present)
    assert found.profile.encoded == draft.profile
    assert dict(found.profile.keys) == KEYS
    assert found.entry.encoded == draft.update.entry.encoded
    assert found.head.head.epoch >= answer.newest_epoch


def test_an_entry_sent_again_succeeds_and_changes_nothing(client: Client, person: Person) -> None:
    draft, proof = registration(client, person)
    first, second = client.submit(draft, proof), client.submit(draft, proof)
    assert isinstance(second.result, Present)
    assert second.result.entry == draft.update.entry
    assert second.newest_epoch >= first.newest_epoch


def test_an_update_without_version_increase_is_refused(client: Client, person: Person) -> None:
    entry = register(client, person).entry
    with pytest.raises(Refused) as refused:
        client.submit(*version_0(client, person, client.realm))
    assert refused.value.reason is Reason.VERSION_MISMATCH
    found = client.lookup(person.user_id)
    assert isinstance(found, Present)
    assert found.entry == entry


def test_an_update_to_version_1_by_the_same_key_succeeds(client: Client, person: Person) -> None:
    register(client, person)
    result = client.update(person.user_id, OTHER_KEYS, [person.key])
    assert isinstance(result, Present)
    assert result.entry.version == 1
    assert dict(result.profile.keys) == OTHER_KEYS


def test_a_specific_epoch_shows_what_was_true_then(client: Client, person: Person) -> None:
    first = register(client, person)
    second = client.update(person.user_id, OTHER_KEYS, [person.key])
    then = client.lookup(person.user_id, epoch=first.head.head.epoch)
    assert isinstance(then, Present)
    assert dict(then.profile.keys) == KEYS
    assert then.head.head.encoded == first.head.head.encoded
    assert then.head.head.epoch < second.head.head.epoch


def test_before_a_registration_the_user_is_absent_and_far_epochs_do_not_exist(
    client: Client, person: Person
) -> None:
    register(client, person)
    assert isinstance(client.lookup(person.user_id, epoch=1), Absent)
    for epoch in (555_555, 2**63, 2**64 - 1):
        with pytest.raises(Refused) as refused:
            client.lookup(person.user_id, epoch=epoch)
        assert refused.value.reason is Reason.NO_SUCH_EPOCH


def test_a_client_may_require_every_verifier(realm: RealmProcesses, person: Person) -> None:
    quorum = all_of(*map(realm.key_id_of, (REPLICA, "v1", "v2", "v3")))
    demanding, transport = connect(realm.realm(), quorum=quorum)
    with transport:
        register(demanding, person)
        found = demanding.lookup(person.user_id)
    assert isinstance(found, Present)
    assert realm.signers_of(found.head) == {REPLICA, "v1", "v2", "v3"}


def test_a_revoked_name_is_free_for_a_new_registration_with_a_new_proof(
    client: Client, person: Person
) -> None:
    register(client, person)
    assert isinstance(client.revoke(person.user_id, [person.key]), Revoked)
    with pytest.raises(Refused) as refused:
        client.register(person.user_id, OTHER_KEYS, [person.key])
    assert refused.value.reason is Reason.PROOF_REQUIRED
    again = client.register(person.user_id, OTHER_KEYS, [person.key], admission=person.admission())
    assert isinstance(again, Present)
    assert again.entry.version == 2


def test_server_and_verifiers_publish_the_realms_own_file(realm: RealmProcesses) -> None:
    reply = realm.public().call(KEYSERVER + "GetRealm", b"")
    published = client_pb2.GetRealmResponse.FromString(reply.data).realm_json
    assert published == realm.realm_file.read_bytes()


def test_every_head_continues_every_older_one(client: Client, person: Person) -> None:
    """The client checks consistency with each of the heads it holds, and historic ones against the newest."""
    heads = [client.lookup(person.user_id).head]
    heads.append(register(client, person).head)
    heads.append(client.update(person.user_id, OTHER_KEYS, [person.key]).head)
    for head in heads:
        assert client.lookup(person.user_id, epoch=head.head.epoch).head.head == head.head
