"""A change of the replicas as operators carry it around: what each command writes and refuses."""

import json
import re
from pathlib import Path

import pytest
from operators import NOW, certificate_pem, set_up

from keyserver import replica_change
from keyserver.cluster import MemberTable
from keyserver.config import Config, check_files, load_config
from keyserver.installation import member_tables, new_replica
from keyserver.installation.plan import Ports, Replica
from keyserver.replica_change import PresentSet
from keyserver.signer import load_signer
from verifier.crypto import hashing
from verifier.crypto.signatures import SigningKey
from verifier.errors import ConfigError, Refused
from verifier.files import read_secret

HOSTS = tuple(Replica(f"r{n}", f"{letter}.example.org") for n, letter in enumerate("abc", 1))


@pytest.fixture
def configs(tmp_path: Path) -> list[Config]:
    return [load_config(path) for path in set_up(tmp_path / "realm", replicas=HOSTS).configs]


def key_of(config: Config) -> SigningKey:
    return SigningKey(read_secret(config.head_key))


def told(config: Config) -> PresentSet:
    realm = config.realm
    return PresentSet(
        schema=replica_change.SET_SCHEMA,
        realm_hash=realm.hash.hex(),
        base=realm.hash,
        policy=realm.genesis_policy.encoded,
        log_time_ms=1_000,
        epoch=0,
        pending=False,
    )


def replacing(config: Config, new: SigningKey) -> replica_change.Proposed:
    old = hashing.key_id(key_of(config).public_key)
    return replica_change.propose(told(config), add=new.public_key, remove=old, not_after_ms=2_000)


def test_a_change_is_complete_with_a_majority_of_the_present_and_the_added_key(configs: list[Config]) -> None:
    first, second, third = configs
    new = SigningKey(bytes(32))
    realm, change = first.realm, replacing(second, new)
    assert (change.approvals(realm).missing, change.approvals(realm).complete) == (2, False)
    for key in (key_of(first), key_of(first), key_of(third)):  # twice is once
        change = replica_change.approve(change, realm, key)
    assert change.approvals(realm).missing == 0
    assert change.approvals(realm).unconfirmed == change.added == (hashing.key_id(new.public_key),)
    assert replica_change.approve(change, realm, new).approvals(realm).complete


def test_approvals_of_copies_add_up_and_survive_the_file(configs: list[Config], tmp_path: Path) -> None:
    first, second, third = configs
    realm, new = first.realm, SigningKey(bytes(32))
    blank = replacing(second, new)
    paths = []
    for number, key in enumerate((key_of(first), key_of(third), new)):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_bytes(replica_change.encode_file(replica_change.approve(blank, realm, key), realm))
    merged = replica_change.read_files(paths, realm)
    assert merged.approvals(realm).complete
    again = replica_change.decode_file(replica_change.encode_file(merged, realm), realm)
    assert again == merged


def test_a_key_whose_approval_is_worth_nothing_is_told_so(configs: list[Config]) -> None:
    change = replacing(configs[1], SigningKey(bytes(32)))
    with pytest.raises(ConfigError, match="count for nothing"):
        replica_change.approve(change, configs[0].realm, SigningKey(b"\1" * 32))


@pytest.mark.parametrize("what", ["text", "schema", "realm", "other"])
def test_what_is_no_file_of_this_change_is_refused(configs: list[Config], tmp_path: Path, what: str) -> None:
    realm = configs[0].realm
    change = replacing(configs[1], SigningKey(bytes(32)))
    good = tmp_path / "good.json"
    good.write_bytes(replica_change.encode_file(change, realm))
    bad = tmp_path / "bad.json"
    document = json.loads(good.read_text())
    bad.write_text(
        {
            "text": "none",
            "schema": json.dumps(document | {"schema": "e2eks.evidence/1"}),
            "realm": json.dumps(document | {"realm_hash": "00" * 32}),
            "other": replica_change.encode_file(replacing(configs[2], SigningKey(bytes(32))), realm).decode(),
        }[what]
    )
    with pytest.raises(ConfigError):
        replica_change.read_files([good, bad], realm)


def test_more_than_one_key_at_a_time_is_refused(configs: list[Config]) -> None:
    with pytest.raises(Refused):
        replica_change.propose(told(configs[0]), add=None, remove=None, not_after_ms=1)


# The folder of a new replica, and the tables of the others


def test_a_new_replica_has_a_folder_keys_and_settings_of_its_own(
    configs: list[Config], tmp_path: Path
) -> None:
    config = configs[0]
    made = new_replica.new_replica(
        config, Replica("r4", "d.example.org", Ports.from_base(20_000)), tmp_path / "realm" / "ca", NOW
    )
    own = load_config(made)
    check_files(own)
    assert (own.replica_name, own.listen.public) == ("r4", "0.0.0.0:20000")
    assert own.cluster is not None
    assert own.cluster.members["r4"] == MemberTable("d.example.org:20006", "d.example.org:20005")
    assert own.cluster.members.keys() == {"r1", "r2", "r3", "r4"}
    assert own.epochs == config.epochs
    assert read_secret(own.vrf_key) == read_secret(config.vrf_key)
    assert key_of(own).public_key not in {key_of(other).public_key for other in configs}
    with pytest.raises(ConfigError, match="not the key of a replica"):
        own.sign_once_register.unlink()
        load_signer(own)


def deployed(config: Config, state: Path, **settings: str) -> Config:
    """As deploy/README.md has it: the realm file beside the configuration, data and register elsewhere."""
    state.mkdir()
    config.realm_file.rename(config.path.parent / "realm.json")
    config.sign_once_register.rename(state / "register")
    text = config.path.read_text()
    places = {
        "realm": "realm.json",
        "data": str(state / "data"),
        "sign_once_register": str(state / "register"),
    }
    for name, place in (places | settings).items():
        text, found = re.subn(rf'(?m)^{name} = "[^"]*"', f'{name} = "{place}"', text)
        assert found == 1
    config.path.write_text(text)
    return load_config(config.path)


def test_a_new_replica_takes_no_file_of_the_configured_one_for_its_own(
    configs: list[Config], tmp_path: Path
) -> None:
    config = deployed(configs[0], tmp_path / "state")
    own = load_config(
        new_replica.new_replica(config, Replica("r4", "d.example.org"), tmp_path / "realm" / "ca", NOW)
    )
    check_files(own)
    load_signer(own)
    folder = own.path.parent
    assert (own.data, own.sign_once_register) == (folder / "data", folder / "sign-once.register")
    assert (folder / "realm.json").read_bytes() == config.realm_json


def test_a_new_replica_whose_secrets_would_be_the_configured_ones_is_not_made(
    configs: list[Config], tmp_path: Path
) -> None:
    config = deployed(configs[0], tmp_path / "state", head=str(configs[0].head_key))
    with pytest.raises(ConfigError, match="by hand"):
        new_replica.new_replica(config, Replica("r4", "d.example.org"), tmp_path / "realm" / "ca", NOW)
    assert not (tmp_path / "realm" / "replicas" / "r4").exists()


@pytest.mark.parametrize("name", ["r2", "R4", "../r4"])
def test_a_new_replica_has_a_name_that_never_was(configs: list[Config], tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        new_replica.new_replica(configs[0], Replica(name, "d.example.org"), tmp_path / "realm" / "ca", NOW)


def test_a_new_replica_that_cannot_be_made_leaves_nothing(configs: list[Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        new_replica.new_replica(configs[0], Replica("r4", "d"), tmp_path / "nowhere", NOW)
    assert not (tmp_path / "realm" / "replicas" / "r4").exists()


def test_a_new_replica_without_its_registration_authority_is_not_made(tmp_path: Path) -> None:
    ca = tmp_path / "registration-ca.pem"
    ca.write_text(certificate_pem("ca", authority=True))
    config = load_config(set_up(tmp_path / "realm", replicas=HOSTS, registration_ca=ca).configs[0])
    made = new_replica.new_replica(config, Replica("r4", "d.example.org"), tmp_path / "realm" / "ca", NOW)
    assert (made.parent / ca.name).read_bytes() == ca.read_bytes()
    (config.path.parent / ca.name).unlink()
    with pytest.raises(ConfigError, match=r"registration-ca\.pem cannot be read"):
        new_replica.new_replica(config, Replica("r5", "e.example.org"), tmp_path / "realm" / "ca", NOW)
    assert not (tmp_path / "realm" / "replicas" / "r5").exists()


@pytest.mark.parametrize("behind", ["", "\n", "\n# Ours: as slow as the disk.\n", "# Ours.\n\n\n"])
def test_a_dropped_member_takes_no_word_of_the_next_table_along(configs: list[Config], behind: str) -> None:
    config = configs[0]
    text = config.path.read_text().replace("\n[epochs]", f"{behind}[epochs]", 1)
    config.path.write_text(text)
    member_tables.drop(config, "r3")  # the last one before it
    left = config.path.read_text()
    assert "cluster.members.r3" not in left
    assert comments(left) == comments(text)


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def test_members_are_named_and_dropped_as_text_that_keeps_everything_else(configs: list[Config]) -> None:
    config = configs[0]
    before = config.path.read_text()
    member_tables.enlist(config, "r4", MemberTable("d:1", "d:2"))
    named = load_config(config.path)
    assert named.cluster is not None
    assert named.cluster.members["r4"] == MemberTable("d:1", "d:2")
    member_tables.enlist(named, "r4", MemberTable("d:3", "d:4"))  # another address
    moved = load_config(config.path)
    assert moved.cluster is not None
    assert moved.cluster.members["r4"] == MemberTable("d:3", "d:4")
    member_tables.drop(moved, "r4")
    assert config.path.read_text().rstrip() == before.rstrip()
    member_tables.drop(config, "r2")
    left = load_config(config.path)
    assert left.cluster is not None
    assert left.cluster.members.keys() == {"r1", "r3"}
    assert left.epochs == config.epochs
    assert "[epochs]" in config.path.read_text()


def test_a_table_that_would_not_start_is_not_written(configs: list[Config]) -> None:
    config = configs[0]
    before = config.path.read_bytes()
    for name, member in (("r4", MemberTable("b.example.org:4629", "d:2")), ("r4", MemberTable("d:1"))):
        with pytest.raises(ConfigError):
            member_tables.enlist(config, name, member)
    for name in ("r1", "r7"):
        with pytest.raises(ConfigError):
            member_tables.drop(config, name)
    assert config.path.read_bytes() == before
    assert sorted(path.name for path in config.path.parent.glob("*.draft")) == []
