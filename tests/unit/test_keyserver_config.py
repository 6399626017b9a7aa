"""A replica's configuration: every mistake named, unknown keys refused, secrets private."""

import json
from pathlib import Path

import pytest
import samples
from operators import certificate_pem, set_up, verifier_file

from keyserver.config import Config, check_files, effective, load_config
from keyserver.verifier_list import read_verifier_certificates
from verifier.config_file import split_address
from verifier.errors import ConfigError
from verifier.files import read_secret, replace_file, write_new


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return set_up(tmp_path / "realm").configs[0]


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


def test_paths_are_relative_to_the_file_wherever_it_is_read_from(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert load_config(path.name) == load_config(path)
    config = load_config(path)
    assert config.data == path.parent / "data"
    assert config.head_key == path.parent / "head.key"
    assert config.sign_once_register.parent == path.parent != config.data
    assert config.realm_json == (tmp_path / "realm" / "realm.json").read_bytes()


def test_a_short_file_is_completed_with_defaults(path: Path) -> None:
    path.write_text(
        'schema = 1\nrealm = "../../realm.json"\nreplica = "r1"\ndata = "d"\n'
        '[keys]\nhead = "h"\nvrf = "v"\nsign_once_register = "s"\n'
        '[tls]\ncertificate = "c"\nkey = "k"\nverifier_certificates = "w"\n'
    )
    config = load_config(path)
    assert config.listen.public == "127.0.0.1:4625"
    assert config.epochs.min_interval_ms == 1000
    assert not config.registration.insecure_skip_registration_proof
    assert not config.allow_split_view
    assert config.replication == "local"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("schema = 1", "schema = 2", "schema = 1"),
        ("schema = 1", "", "schema = 1"),
        ("schema = 1", "schema = 1\nshcema = 1", "shcema"),
        ("[keys]", "[keys]\nextra = 1", "extra"),
        ("[listen]", '[listen]\nhkp = ""', "hkp"),
        ("[registration]", "[registration]\noidc = 1", "oidc"),
        ('replica = "r1"', "replica = 1", "replica"),
        ('replica = "r1"', "", "replica"),
        ('replication = "local"', 'replication = "raft"', "[cluster]"),
        ("min_interval_ms = 1000", "min_interval_ms = 0", "min_interval_ms"),
        ("min_interval_ms = 1000", "min_interval_ms = 30001", "max_interval_ms"),
        ("min_interval_ms = 1000", "min_interval_ms = 1.5", "min_interval_ms"),
        ("max_interval_ms = 30000", "max_interval_ms = 300000", "epoch_ttl_ms"),
        ("retry_interval_ms = 2000", "retry_interval_ms = 0", "retry_interval_ms"),
        ("127.0.0.1:4625", "127.0.0.1", "listen.public"),
        ("127.0.0.1:4625", ":4625", "host:port"),
        ("127.0.0.1:4625", "127.0.0.1:65536", "host:port"),
        ("127.0.0.1:4625", "::1:4625", "brackets"),
        ("[registration]", "[registration", "TOML"),
        ("../../realm.json", "../realm.json", "cannot be read"),
        ("../../realm.json", "head.key", "realm file"),
        (
            "[registration]",
            '[registration]\n[[registration.client_certificate]]\ndomains = ["other.net"]\nca = "ca"',
            "other.net",
        ),
        (
            "[registration]",
            '[registration]\n[[registration.client_certificate]]\ndomains = []\nca = "ca"',
            "no domain",
        ),
    ],
)
def test_a_mistake_is_refused_and_named(path: Path, old: str, new: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(edited(path, old, new))


def test_a_file_that_is_missing_or_no_text_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_config(tmp_path / "missing.toml")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="TOML"):
        load_config(path)


def test_a_listener_may_be_off_and_may_take_any_free_port(path: Path) -> None:
    edited(path, "127.0.0.1:4628", "")
    edited(path, "127.0.0.1:25519", "[::1]:0")
    listen = load_config(path).listen
    assert (listen.push, listen.http) == ("", "[::1]:0")
    assert split_address(listen.http, "") == ("::1", 0)


def test_what_takes_effect_can_be_shown_and_holds_no_secret(path: Path) -> None:
    config = load_config(path)
    text = json.dumps(effective(config))
    assert '"e2eks.config/1"' in text
    assert str(config.head_key) in text
    for secret in (config.head_key, config.vrf_key):
        assert secret.read_text().strip() not in text
    covered = {"path", "realm_json", "head_key", "vrf_key", "sign_once_register", "replica_name"}
    assert set(effective(config)) - {"schema", "file", "replica", "keys"} == set(Config.__slots__) - covered


# Files and secrets


@pytest.mark.parametrize("name", ["head.key", "vrf.key", "tls.key"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_may_read_is_refused_with_the_remedy(path: Path, name: str, mode: int) -> None:
    secret = path.parent / name
    check_files(load_config(path))
    secret.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 .*{name}"):
        check_files(load_config(path))
    if name != "tls.key":
        with pytest.raises(ConfigError, match="chmod 600"):
            read_secret(secret)


@pytest.mark.parametrize("name", ["head.key", "vrf.key", "tls.key", "tls.pem", "verifiers.json"])
def test_a_file_that_is_missing_is_named(path: Path, name: str) -> None:
    (path.parent / name).unlink()
    with pytest.raises(ConfigError, match=name):
        check_files(load_config(path))


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 31, "ab" * 33, "ab" * 500])
def test_a_secret_that_is_none_is_refused_unseen(tmp_path: Path, text: str) -> None:
    secret = tmp_path / "head.key"
    write_new(secret, text.encode(), 0o600)
    with pytest.raises(ConfigError) as caught:
        read_secret(secret)
    assert "ab" not in str(caught.value).replace(str(tmp_path), "")


def test_a_secret_is_read_with_or_without_its_newline(tmp_path: Path) -> None:
    for number, text in enumerate(("ab" * 32, "ab" * 32 + "\n")):
        path = tmp_path / str(number)
        write_new(path, text.encode(), 0o600)
        assert read_secret(path) == b"\xab" * 32


def test_a_new_file_never_overwrites_and_a_replaced_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_new(path, b"one")
    with pytest.raises(ConfigError, match="not overwritten"):
        write_new(path, b"two")
    assert path.read_bytes() == b"one"
    replace_file(path, b"three")
    assert path.read_bytes() == b"three"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ConfigError, match="cannot be written"):
        replace_file(tmp_path / "no folder" / "file", b"")


# verifiers.json


def rows(*names: str, **changes: str) -> list[dict[str, str]]:
    return [
        {"name": n, "public_key": key(n), "tls_certificate_pem": certificate_pem(n)} | changes for n in names
    ]


def key(name: str) -> str:
    return samples.key(name).public.hex()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (rows("a", "b", public_key=key("a")), "twice"),
        (rows("a", "b", tls_certificate_pem=certificate_pem("a")), "twice"),
        (rows("a", public_key="00" * 32), "Ed25519"),
        (rows("a", extra="1"), "extra"),
        ({}, "list of verifiers"),
        ([{}], "list of verifiers"),
    ],
)
def test_a_verifiers_file_that_is_none_is_refused(tmp_path: Path, content: object, text: str) -> None:
    path = tmp_path / "verifiers.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=text):
        read_verifier_certificates(path)


def test_a_certificate_is_known_by_its_exact_bytes(tmp_path: Path) -> None:
    made = verifier_file(tmp_path, "eff")
    path = tmp_path / "verifiers.json"
    path.write_text(json.dumps(rows("eff")))
    [found] = read_verifier_certificates(path)
    assert found.tls_certificate_pem == made.tls_certificate_pem
