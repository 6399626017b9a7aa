"""What `keyserver init` and `keyserver realm add-verifier` leave on the disk."""

import datetime as dt
import os
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from operators import NOW, REALM, certificate_pem, set_up, strange_pem, verifier_file

from keyserver.config import check_files, check_split_view, load_config
from keyserver.installation import setup
from keyserver.installation.setup import Ports, Replica
from keyserver.signer import load_signer
from keyserver.verifier_list import read_verifier_info
from verifier import policy
from verifier.errors import ConfigError
from verifier.realm import fingerprint, parse_realm_json

SECRETS = ("ca/realm-ca.key", *(f"replicas/r1/{name}" for name in ("head.key", "vrf.key", "tls.key")))


def add(config: Path, *infos: Path) -> None:
    setup.add_verifiers(load_config(config), [read_verifier_info(path) for path in infos])


# init


def test_a_realm_is_set_up_ready_to_serve(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    config = load_config(made.configs[0])
    check_files(config)
    signer = load_signer(config)
    assert signer.quarantined == ""
    assert config.realm == made.realm == parse_realm_json(made.realm_file.read_bytes())
    assert made.fingerprint == fingerprint(config.realm)
    assert list(config.realm.genesis_policy.keys) == [signer.key_id]
    assert config.realm.vrf_public_key == signer.vrf_public_key
    assert (config.realm.name, config.realm.domains) == (REALM, (REALM,))
    assert config.realm.addresses == ("localhost:4625",)
    signer.close()


def test_every_secret_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        set_up(tmp_path / "realm")
    finally:
        os.umask(before)
    for name in SECRETS:
        assert (tmp_path / "realm" / name).stat().st_mode & 0o777 == 0o600
    for name in ("ca", "replicas/r1"):
        assert (tmp_path / "realm" / name).stat().st_mode & 0o777 == 0o700


def test_no_secret_is_in_a_file_that_others_may_read(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    secrets = [(made.configs[0].parent / name).read_text().strip() for name in ("head.key", "vrf.key")]
    for path in (tmp_path / "realm").rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o077:
            text = path.read_bytes().decode("utf-8", "replace")
            assert "PRIVATE KEY" not in text
            assert not any(secret in text for secret in secrets)


def test_two_realms_share_no_secret(tmp_path: Path) -> None:
    one, two = set_up(tmp_path / "one"), set_up(tmp_path / "two")
    assert one.realm.hash != two.realm.hash
    assert one.fingerprint != two.fingerprint


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="not an empty folder"):
        set_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"realm": "Example.org"}, "lower case"),
        ({"realm": ""}, "realm's name"),
        ({"domains": ("a b",)}, "a domain"),
        ({"replicas": (Replica("r1", "a"), Replica("r2", "b"))}, "not 2"),
        ({"replicas": (Replica("../r1", "a"),)}, "not a replica's name"),
        ({"replicas": (Replica("r1", "exa mple"),)}, "neither a DNS name"),
        ({"listen_host": '"x'}, "neither a DNS name"),
        ({"epoch_ttl_ms": 30_000}, "epoch_ttl_ms"),
        ({"registration_ca": Path("missing.pem")}, "missing.pem"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        set_up(tmp_path / "realm", **changes)
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "realm"])


@pytest.mark.parametrize(
    ("host", "listens", "public"),
    [
        ("localhost", "127.0.0.1:4625", "localhost:4625"),
        ("127.0.0.1", "127.0.0.1:4625", "127.0.0.1:4625"),
        ("::1", "[::1]:4625", "[::1]:4625"),
        ("2001:db8::1", "[::]:4625", "[2001:db8::1]:4625"),
        ("keys.example.org", "0.0.0.0:4625", "keys.example.org:4625"),
        ("192.0.2.7", "0.0.0.0:4625", "192.0.2.7:4625"),
    ],
)
def test_a_replica_listens_to_the_world_only_if_the_world_is_to_reach_it(
    tmp_path: Path, host: str, listens: str, public: str
) -> None:
    config = load_config(set_up(tmp_path / "realm", replicas=(Replica("r1", host),)).configs[0])
    assert (config.listen.public, config.realm.addresses) == (listens, (public,))
    assert config.listen.http.startswith("127.0.0.1:")


def test_ports_domains_and_registration_are_as_asked(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text(certificate_pem("ca", authority=True))
    made = set_up(
        tmp_path / "realm",
        domains=("example.org", "example.net"),
        ports=Ports(public=1001, verification=1002, push=1003, http=1004),
        listen_host="192.0.2.1",
        registration_ca=ca,
        insecure_skip_registration_proof=True,
    )
    config = load_config(made.configs[0])
    assert config.listen.public == "192.0.2.1:1001"
    assert config.listen.push == "192.0.2.1:1003"
    assert config.realm.domains == ("example.org", "example.net")
    assert config.registration.insecure_skip_registration_proof
    [method] = config.registration.client_certificate
    assert method.domains == ("example.org", "example.net")
    assert method.ca.read_text() == ca.read_text()


# Certificates


def verify(made: setup.SetUp, host: x509.DNSName | x509.IPAddress, now: dt.datetime = NOW) -> None:
    roots = x509.load_pem_x509_certificates("".join(made.realm.tls_roots_pem).encode())
    leaf = x509.load_pem_x509_certificate((made.configs[0].parent / "tls.pem").read_bytes())
    PolicyBuilder().store(Store(roots)).time(now).build_server_verifier(host).verify(leaf, [])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "keys.example.org", "2001:db8::1"])
def test_a_replicas_certificate_is_valid_for_its_host(tmp_path: Path, host: str) -> None:
    made = set_up(tmp_path / "realm", replicas=(Replica("r1", host),))
    is_address = host[0].isdigit() or ":" in host
    verify(made, x509.IPAddress(ip_address(host)) if is_address else x509.DNSName(host))
    with pytest.raises(VerificationError):
        verify(made, x509.DNSName("other.example.org"))


def test_a_replicas_certificate_is_valid_now_and_ends(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    for days, valid in ((-1, False), (0, True), (800, True), (900, False)):
        moment = NOW + dt.timedelta(days=days)
        if valid:
            verify(made, x509.DNSName("localhost"), moment)
        else:
            with pytest.raises(VerificationError):
                verify(made, x509.DNSName("localhost"), moment)


# Verifiers


def test_verifiers_are_listed_with_their_majority_in_the_policy(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    eff, umich = verifier_file(tmp_path, "eff"), verifier_file(tmp_path, "umich")
    add(made.configs[0], eff.path, umich.path)
    config = load_config(made.configs[0])
    realm = config.realm
    [replica] = realm.genesis_policy.keys
    quorum = realm.verification_policy.quorum
    assert [(v.name, v.address, v.key_id) for v in realm.verifiers] == [
        ("eff", "eff.example.net:4630", eff.key_id),
        ("umich", "umich.example.net:4630", umich.key_id),
    ]
    assert policy.satisfied(quorum, {replica, eff.key_id, umich.key_id})
    for missing in ({eff.key_id, umich.key_id}, {replica, eff.key_id}, {replica}):
        assert not policy.satisfied(quorum, missing)
    assert {row.key_id for row in config.verifier_certificates()} == {eff.key_id, umich.key_id}
    assert eff.tls_certificate_pem in realm.tls_roots_pem
    assert realm.hash == made.realm.hash
    assert fingerprint(realm) != made.fingerprint


def test_a_verifier_added_again_changes_nothing(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    eff = verifier_file(tmp_path, "eff")
    add(made.configs[0], eff.path)
    before = made.realm_file.read_bytes()
    add(made.configs[0], eff.path)
    assert made.realm_file.read_bytes() == before


def test_a_verifiers_new_address_and_certificate_replace_the_old(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    old = verifier_file(tmp_path, "eff")
    add(made.configs[0], old.path, verifier_file(tmp_path, "umich").path)
    changes = {"address": "new.example.net:1", "tls_certificate_pem": certificate_pem("eff anew")}
    new = verifier_file(tmp_path, "eff", **changes)
    add(made.configs[0], new.path)
    config = load_config(made.configs[0])
    assert [v.address for v in config.realm.verifiers] == ["new.example.net:1", "umich.example.net:4630"]
    assert new.tls_certificate_pem in config.realm.tls_roots_pem
    assert old.tls_certificate_pem not in config.realm.tls_roots_pem
    assert len(config.verifier_certificates()) == 2


def replace_by(config: Path, name: str, *infos: Path) -> None:
    setup.add_verifiers(load_config(config), [read_verifier_info(path) for path in infos], replace=name)


def test_a_verifier_with_a_new_key_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    old, umich = verifier_file(tmp_path, "eff"), verifier_file(tmp_path, "umich")
    add(made.configs[0], old.path, umich.path)
    new = verifier_file(tmp_path, "eff-anew", name="eff")
    replace_by(made.configs[0], "eff", new.path)
    config = load_config(made.configs[0])
    realm = config.realm
    assert [(v.name, v.key_id) for v in realm.verifiers] == [("eff", new.key_id), ("umich", umich.key_id)]
    assert {row.key_id for row in config.verifier_certificates()} == {new.key_id, umich.key_id}
    assert old.tls_certificate_pem not in realm.tls_roots_pem
    assert new.tls_certificate_pem in realm.tls_roots_pem
    [replica] = realm.genesis_policy.keys
    quorum = realm.verification_policy.quorum
    assert policy.satisfied(quorum, {replica, new.key_id, umich.key_id})
    assert not policy.satisfied(quorum, {replica, old.key_id, umich.key_id})
    assert realm.hash == made.realm.hash


def test_what_cannot_be_replaced_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    eff, umich = verifier_file(tmp_path, "eff"), verifier_file(tmp_path, "umich")
    add(made.configs[0], eff.path, umich.path)
    new = verifier_file(tmp_path, "eff-anew", name="eff")
    before = made.realm_file.read_bytes()
    for name, infos, text in (
        ("nobody", [new.path], "lists no verifier nobody"),
        ("eff", [new.path, umich.path], "one INFO-FILE"),
        ("eff", [eff.path], "has this key already"),
        ("eff", [umich.path], "another listed verifier's"),
    ):
        with pytest.raises(ConfigError, match=text):
            replace_by(made.configs[0], name, *infos)
    assert made.realm_file.read_bytes() == before


def test_the_name_of_another_verifier_and_a_replicas_key_are_refused(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    add(made.configs[0], verifier_file(tmp_path, "eff").path)
    before = made.realm_file.read_bytes()
    other = verifier_file(tmp_path, "other", name="eff")
    [replica_key] = made.realm.genesis_policy.keys.values()
    replica = verifier_file(tmp_path, "third", public_key=replica_key.hex())
    for path, text in ((other.path, "listed twice"), (replica.path, "replica's key")):
        with pytest.raises(ConfigError, match=text):
            add(made.configs[0], path)
    assert made.realm_file.read_bytes() == before
    assert len(load_config(made.configs[0]).verifier_certificates()) == 1


def test_a_policy_made_by_hand_is_not_replaced(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    eff = verifier_file(tmp_path, "eff")
    add(made.configs[0], eff.path)
    text = made.realm_file.read_text()
    assert text.count('"threshold": 2') == 1
    made.realm_file.write_text(text.replace('"threshold": 2', '"threshold": 1'))
    with pytest.raises(ConfigError, match="by hand"):
        add(made.configs[0], eff.path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema": "e2eks.verifier-info/2"}, "schema"),
        ({"public_key": "00" * 31}, "not an Ed25519 key"),
        ({"public_key": "zz"}, "not a verifier info file"),
        ({"tls_certificate_pem": "none"}, "not a verifier info file"),
        ({"tls_certificate_pem": certificate_pem("a") + certificate_pem("b")}, "2 TLS certificates"),
        ({"tls_certificate_pem": certificate_pem("ca", authority=True)}, "authority's"),
        ({"tls_certificate_pem": strange_pem("version")}, "not a verifier info file"),
        ({"tls_certificate_pem": strange_pem("an extension twice")}, "not a verifier info file"),
        ({"surprise": "1"}, "surprise"),
    ],
)
def test_a_verifier_info_file_that_is_none_is_refused(
    tmp_path: Path, changes: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        read_verifier_info(verifier_file(tmp_path, "eff", **changes).path)


# Split views (contract section 1)


@pytest.mark.parametrize(("verifiers", "splits"), [(0, True), (1, False), (2, False), (3, False)])
def test_a_realm_can_be_served_once_its_quorums_share_a_verifier(
    tmp_path: Path, verifiers: int, splits: bool
) -> None:
    made = set_up(tmp_path / "realm")
    add(made.configs[0], *(verifier_file(tmp_path, f"v{n}").path for n in range(verifiers)))
    config = load_config(made.configs[0])
    if splits:
        with pytest.raises(ConfigError, match="different keys"):
            check_split_view(config)
    else:
        check_split_view(config)


def test_quorums_that_need_not_intersect_are_served_only_when_allowed(tmp_path: Path) -> None:
    made = set_up(tmp_path / "realm")
    add(made.configs[0], *(verifier_file(tmp_path, f"v{n}").path for n in range(2)))
    text = made.realm_file.read_text()
    one_of_two = text.replace('"threshold": 2\n        }', '"threshold": 1\n        }')
    assert one_of_two != text
    made.realm_file.write_text(one_of_two)
    with pytest.raises(ConfigError, match="--allow-split-view"):
        check_split_view(load_config(made.configs[0]))
    toml = made.configs[0].read_text()
    made.configs[0].write_text(toml.replace("\n[keys]", "allow_split_view = true\n[keys]"))
    check_split_view(load_config(made.configs[0]))
