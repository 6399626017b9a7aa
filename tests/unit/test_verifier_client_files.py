"""What the client keeps on disk: pins, evidence, identities, contexts, settings; and what damage does."""

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from e2eks.v1 import client_pb2
from samples import ALICE, BOB, REALM, make_realm
from simulated_realm import SimulatedRealm, one_of_each, signing_key
from simulated_realm.asking import KEYS, USER, three_epochs_of_alice

from verifier import encoding, files
from verifier.client.client import Client
from verifier.client.evidence import EvidenceFolder
from verifier.client.historian import BadAnswer
from verifier.client.identity import Identities, file_name
from verifier.client.outcome import Exit, exit_of_error
from verifier.client.pins import HEADS_HELD, FilePins, MemoryPins, PinState, quorum_name
from verifier.daemon.evidence import Standing, from_document, judge
from verifier.errors import ConfigError, HistoryConflict


@pytest.fixture
def world() -> SimulatedRealm:
    return three_epochs_of_alice()


# Files


def test_files_are_set_aside_under_a_name_that_says_when_and_never_over_another(tmp_path: Path) -> None:
    now = datetime(2026, 11, 22, 21, 2, 3, tzinfo=UTC)
    key, gone = tmp_path / "key", tmp_path / "gone"
    key.write_text("old")
    (aside,) = files.set_aside((gone, key), now)
    assert aside.name == "key.retired-20261122T210203Z"
    assert aside.read_text() == "old"
    assert not key.exists()
    key.write_text("new")
    with pytest.raises(ConfigError, match="exists already: wait a second"):
        files.set_aside((key,), now)
    assert (aside.read_text(), key.read_text()) == ("old", "new")


def test_a_file_is_replaced_whole_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    files.store_private(path, b"one")
    files.store_private(path, b"two")
    assert files.read_file(path, 3, "file") == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    with pytest.raises(ConfigError):
        files.read_file(path, 2, "file")
    assert files.find_file(tmp_path / "none", 1, "file") is None


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    files.store_private(path, b"s")
    assert files.read_private(path, 1, "secret") == b"s"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        files.read_private(path, 1, "secret")


def test_a_folder_that_cannot_be_written_is_a_matter_of_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError) as refused:
        files.store_private(tmp_path / "file" / "below", b"")
    assert exit_of_error(refused.value) is Exit.USAGE


# Pins


def test_pins_outlive_the_process(world: SimulatedRealm, tmp_path: Path) -> None:
    Client(world.realm, world, FilePins(tmp_path, world.realm.hash), clock=world.now_ms).lookup(USER)
    state = FilePins(tmp_path, world.realm.hash).load()
    assert state.newest == world.head(3)
    assert state.epoch_of(world.realm.verification_policy.quorum) == 3
    assert state.epoch_of(one_of_each()) == 0


def test_a_second_realm_has_pins_of_its_own(world: SimulatedRealm, tmp_path: Path) -> None:
    Client(world.realm, world, FilePins(tmp_path, world.realm.hash), clock=world.now_ms).lookup(USER)
    assert FilePins(tmp_path, make_realm(name="other.test").hash).load() == PinState()


def test_policy_changes_are_kept_with_the_pins(world: SimulatedRealm, tmp_path: Path) -> None:
    pins = FilePins(tmp_path, world.realm.hash)
    state = PinState().holding(world.head(2), linked=False)
    assert pins.swap(PinState(), replace(state, changes=(world.head(1),)))
    again = pins.load()
    assert again.changes == (world.head(1),)
    assert [held.linked for held in again.heads] == [False]


def test_a_swap_needs_the_state_it_was_made_from(world: SimulatedRealm, tmp_path: Path) -> None:
    for pins in (MemoryPins(), FilePins(tmp_path, world.realm.hash)):
        first = PinState().holding(world.head(1), linked=True)
        assert pins.swap(PinState(), first)
        assert not pins.swap(PinState(), PinState().holding(world.head(2), linked=True))
        assert pins.load() == first


def test_clients_of_one_user_do_not_undo_each_others_pins(world: SimulatedRealm, tmp_path: Path) -> None:
    def look_up(user_id: str) -> None:
        Client(world.realm, world, FilePins(tmp_path, world.realm.hash), clock=world.now_ms).lookup(user_id)

    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(look_up, [USER, "bob@example.test", "eve@example.test", "joe@example.test"]))
        assert FilePins(tmp_path, world.realm.hash).load().newest_epoch == world.epoch
        world.close()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema":"other/1"}',
        b'{"schema":"e2eks.pins/1"}',
        b'{"schema":"e2eks.pins/1","heads":[{"head":"!","linked":true}],"epochs":{},"policy_heads":[]}',
        b'{"schema":"e2eks.pins/1","heads":[{"head":"AAAA","linked":true}],"epochs":{},"policy_heads":[]}',
        b'{"schema":"e2eks.pins/1","heads":[],"epochs":[],"policy_heads":[]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_damaged_pins_stop_the_client_instead_of_starting_afresh(
    world: SimulatedRealm, tmp_path: Path, damage: bytes
) -> None:
    (tmp_path / f"{world.realm.hash.hex()}.json").write_bytes(damage)
    with pytest.raises(ConfigError, match="rollback"):
        FilePins(tmp_path, world.realm.hash).load()


def test_the_newest_linked_head_and_unlinked_ones_are_the_last_to_be_forgotten(world: SimulatedRealm) -> None:
    while world.epoch < HEADS_HELD + 8:
        world.close()
    state = PinState().holding(world.head(1), linked=False).holding(world.head(2), linked=True)
    for epoch in range(3, HEADS_HELD + 8):
        state = state.holding(world.head(epoch), linked=True)
    assert len(state.heads) == HEADS_HELD
    assert (state.heads[0].epoch, state.newest_epoch) == (1, HEADS_HELD + 7)
    assert state.newest == world.head(HEADS_HELD + 7)
    only_unlinked = PinState().holding(world.head(1), linked=True)
    for epoch in range(2, HEADS_HELD + 8):
        only_unlinked = only_unlinked.holding(world.head(epoch), linked=False)
    assert only_unlinked.newest == world.head(1)


def test_an_accepted_epoch_is_never_lowered() -> None:
    quorum = one_of_each()
    state = PinState().accepting(quorum, 7).accepting(quorum, 5)
    assert state.epochs == {quorum_name(quorum): 7}


# Evidence


def test_a_failed_proof_is_kept_as_it_was_received(world: SimulatedRealm, tmp_path: Path) -> None:
    received: list[bytes] = []

    def break_it(raw: bytes) -> bytes:
        received.append(raw[:-1] + bytes((raw[-1] ^ 1,)))
        return received[-1]

    world.tampering["Lookup"] = break_it
    folder = EvidenceFolder(tmp_path)
    client = Client(world.realm, world, MemoryPins(), clock=world.now_ms, evidence=folder)
    for _ in range(2):
        with pytest.raises(BadAnswer):
            client.lookup(USER)
    assert len(list(tmp_path.iterdir())) == 1
    document = json.loads(folder.kept[0].read_bytes())
    assert document["schema"] == "e2eks.evidence/1"
    assert (document["kind"], document["check"], document["realm"]) == ("proof", "commitment", "example.test")
    assert document["realm_hash"] == REALM.hash.hex()
    assert base64.b64decode(document["proof"]) == received[0]


def test_both_heads_of_a_fork_are_kept(world: SimulatedRealm, tmp_path: Path) -> None:
    other = world.without_last()
    other.put(USER, {"ssh": b"evil"})
    other.close()
    folder = EvidenceFolder(tmp_path)
    client = Client(world.realm, world, MemoryPins(), clock=world.now_ms, evidence=folder)
    client.verify_saved(world.lookup(USER, 3))
    with pytest.raises(HistoryConflict):
        client.verify_saved(other.lookup(USER, 3))
    document = json.loads(folder.kept[0].read_bytes())
    heads = [encoding.decode_signed_head(base64.b64decode(head)) for head in document["heads"]]
    assert document["kind"] == "fork"
    assert [head.head.encoded for head in heads] == [w.head(3).head.encoded for w in (world, other)]


@pytest.mark.parametrize(("ahead", "kind"), [(0, "fork"), (1, "chain"), (3, "consistency")])
def test_a_conflict_is_kept_in_the_form_that_verifiers_judge(
    world: SimulatedRealm, tmp_path: Path, ahead: int, kind: str
) -> None:
    other = world.without_last()
    other.put(USER, {"ssh": b"evil"})
    for _ in range(1 + ahead):
        other.close()
    pins, folder = MemoryPins(), EvidenceFolder(tmp_path)
    Client(world.realm, world, pins, clock=world.now_ms).lookup(USER)
    other.tampering["Consistency"] = lambda raw: hide_the_other_past(world, raw)
    with pytest.raises(HistoryConflict):
        Client(other.realm, other, pins, clock=other.now_ms, evidence=folder).lookup(USER)
    document = from_document(folder.kept[0].read_bytes())
    assert document.kind == kind
    proven = {"fork": Standing.PROVEN, "chain": Standing.PROVEN, "consistency": Standing.TESTIMONY}
    assert judge(REALM, document).standing is proven[kind]


def hide_the_other_past(world: SimulatedRealm, raw: bytes) -> bytes:
    """A consistency proof that starts from the head the client holds."""
    proof = client_pb2.ConsistencyProof.FromString(raw)
    proof.old_head.ParseFromString(world.head(proof_epoch(proof)).encoded)
    return encoding.canonical(proof)


def proof_epoch(proof: client_pb2.ConsistencyProof) -> int:
    return encoding.decode_head(proof.old_head.head).epoch


# Identities


def test_an_identity_is_made_once_and_found_again(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    made = identities.make(USER, os.urandom)
    assert identities.load(USER) == made
    assert identities.all() == [made]
    assert identities.path(USER).stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError):
        identities.make(USER, os.urandom)
    with pytest.raises(ConfigError):
        identities.load("bob@example.test")


def test_no_key_of_an_identity_is_ever_dropped_or_shown(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    made = identities.make(USER, os.urandom)
    identities.store(made.with_key(ALICE.seed))
    found = identities.load(USER)
    assert found.seeds == (*made.seeds, ALICE.seed)
    assert found.newest.public_key == ALICE.public
    assert repr(ALICE.seed) not in repr(found)


def test_a_pending_update_is_kept_per_realm(world: SimulatedRealm, tmp_path: Path) -> None:
    client = Client(world.realm, world, MemoryPins(), clock=world.now_ms)
    draft = client.draft_registration("bob@example.test", KEYS, [signing_key(BOB)])
    identities = Identities(tmp_path)
    made = identities.make("bob@example.test", lambda _: BOB.seed)
    identities.store(made.with_pending(REALM.hash, draft))
    assert identities.load("bob@example.test").pending == {REALM.hash.hex(): draft}
    identities.store(made.with_pending(REALM.hash, draft).with_pending(REALM.hash, None))
    assert identities.load("bob@example.test").pending == {}


def test_a_backup_put_back_is_the_identity(tmp_path: Path) -> None:
    made = Identities(tmp_path).make(USER, os.urandom)
    saved = Identities(tmp_path).backup(USER)
    other = Identities(tmp_path / "other")
    files.store_private(other.path(USER), saved)
    assert other.load(USER) == made


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"schema":"e2eks.identity/1","keys":[]}', b"\xff"])
def test_a_damaged_identity_is_refused(tmp_path: Path, damage: bytes) -> None:
    files.store_private(Identities(tmp_path).path(USER), damage)
    with pytest.raises(ConfigError, match="backup"):
        Identities(tmp_path).find(USER)


def test_every_user_id_has_a_file_name_of_its_own(tmp_path: Path) -> None:
    ids = ["a/b@x.test", "a%2fb@x.test", "..@x.test", "a@x.test", "a+b@x.test", "*" * 240 + "@x.test"]
    names = [file_name(user_id) for user_id in ids]
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name) <= 200 for name in names)
    for user_id in ids:
        Identities(tmp_path).make(user_id, os.urandom)
    assert {identity.user_id for identity in Identities(tmp_path).all()} == set(ids)
