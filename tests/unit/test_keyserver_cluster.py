"""A cluster set up in a folder: what each replica gets, and every mistake in its tables named."""

from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from operators import NOW, STRANGE, certificate_pem, keyserver_command, set_up, strange_pem, verifier_file

from keyserver.cluster import Timing
from keyserver.config import check_files, effective, load_config
from keyserver.engines import engine_of
from keyserver.installation import setup
from keyserver.installation.certificates import issue_peer, load_authority
from keyserver.installation.setup import Ports, Replica
from keyserver.peer_certificates import name_in, read_peer_files
from keyserver.signer import load_signer
from keyserver.verifier_list import read_verifier_info
from verifier import policy
from verifier.errors import ConfigError

HOSTS = tuple(Replica(f"r{n}", f"{letter}.example.org") for n, letter in enumerate("abcde", 1))


@pytest.fixture
def made(tmp_path: Path) -> setup.SetUp:
    return set_up(tmp_path / "realm", replicas=HOSTS[:3])


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_realm_begins_with_a_majority_of_its_replicas_keys(tmp_path: Path, count: int) -> None:
    made = set_up(tmp_path / "realm", replicas=HOSTS[:count])
    signers = []
    for config in map(load_config, made.configs):
        check_files(config)
        signer = load_signer(config)
        assert not signer.quarantined
        signers.append((signer.key_id, signer.vrf_public_key))
        signer.close()
    law = made.realm.genesis_policy
    assert sorted(key_id for key_id, _ in signers) == sorted(law.keys)
    assert len({vrf for _, vrf in signers}) == 1
    keys = sorted(law.keys)
    assert policy.satisfied(law.quorum, set(keys[: count // 2 + 1]))
    assert not policy.satisfied(law.quorum, set(keys[: count // 2]))
    assert len(made.realm.addresses) == count


def test_more_than_one_replica_agree_by_raft_and_one_by_itself(tmp_path: Path) -> None:
    one, three = set_up(tmp_path / "1"), set_up(tmp_path / "3", replicas=HOSTS[:3])
    assert load_config(one.configs[0]).replication == "local"
    assert load_config(one.configs[0]).cluster is None
    assert not (one.configs[0].parent / "tls").exists()
    for config in map(load_config, three.configs):
        assert config.replication == "raft"
        assert config.cluster is not None
        assert config.cluster.timing == Timing()
        assert {name: row.peers for name, row in config.cluster.members.items()} == {
            replica.name: f"{replica.host}:4629" for replica in HOSTS[:3]
        }
        assert config.cluster.others(config.replica_name).keys() == {"r1", "r2", "r3"} - {config.replica_name}


def test_what_a_replica_shows_others_stands_for_its_name(made: setup.SetUp) -> None:
    roots = (made.realm_file.parent / "ca" / "peers-ca.pem").read_bytes()
    for config in map(load_config, made.configs):
        assert config.cluster is not None
        files = read_peer_files(config.cluster.tls, config.replica_name)
        assert name_in(files.certificate) == config.replica_name
        assert files.authority == roots
        leaf = x509.load_pem_x509_certificate(files.certificate)
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(roots))
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(purposes) == {x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH}


def test_clients_do_not_believe_the_authority_of_the_peers(made: setup.SetUp) -> None:
    peers = (made.realm_file.parent / "ca" / "peers-ca.pem").read_text()
    assert peers not in made.realm.tls_roots_pem


def test_secrets_of_a_cluster_are_private(made: setup.SetUp) -> None:
    root = made.realm_file.parent
    places = [root / "ca" / "peers-ca.key", *(config.parent / "tls" / "peer.key" for config in made.configs)]
    assert [path.stat().st_mode & 0o777 for path in places] == [0o600] * 4


@pytest.mark.parametrize("name", ["head.key", "vrf.key", "tls.key", "tls/peer.key"])
def test_a_copied_folder_whose_secrets_are_open_is_refused(made: setup.SetUp, name: str) -> None:
    (made.configs[1].parent / name).chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        check_files(load_config(made.configs[1]))


def test_replicas_on_one_host_have_ports_of_their_own(tmp_path: Path) -> None:
    replicas = tuple(Replica(f"r{n}", "localhost") for n in (1, 2, 3))
    made = set_up(tmp_path / "realm", replicas=replicas, ports=Ports.from_base(20000))
    configs = [load_config(path) for path in made.configs]
    assert [config.listen.public for config in configs] == [f"127.0.0.1:{20000 + 10 * n}" for n in range(3)]
    assert [config.listen.peers for config in configs] == [f"127.0.0.1:{20006 + 10 * n}" for n in range(3)]
    for one, other in pairwise(configs):
        assert one.cluster is not None
        assert other.cluster is not None
        assert one.cluster.members == other.cluster.members
    assert made.realm.addresses == ("localhost:20000", "localhost:20010", "localhost:20020")


def test_a_replica_may_have_ports_of_its_own_choice(tmp_path: Path) -> None:
    own = Ports(1001, 1002, 1003, 1004, 1005, 1006)
    replicas = [Replica("r1", "localhost", own), Replica("r2", "localhost"), Replica("r3", "localhost")]
    made = set_up(tmp_path / "realm", replicas=tuple(replicas))
    assert [load_config(path).listen.public[-4:] for path in made.configs] == ["1001", "4635", "4645"]
    replicas[2] = Replica("r3", "localhost", own)
    with pytest.raises(ConfigError, match="share a port"):
        set_up(tmp_path / "shared", replicas=tuple(replicas))
    with pytest.raises(ConfigError, match="name of its own"):
        set_up(tmp_path / "other", replicas=(HOSTS[0], HOSTS[1], HOSTS[0]))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('replication = "raft"', 'replication = "paxos"', "one of local, raft, etcd"),
        ('replication = "raft"', 'replication = "local"', "realm of one replica"),
        ('replication = "raft"', 'replication = "etcd"', "table \\[etcd\\]"),
        ('replica = "r1"', 'replica = "r9"', "has no r9"),
        ('"b.example.org:4629"', '"a.example.org:4629"', "share an address"),
        ('"b.example.org:4629"', '"b.example.org"', "cluster.members.r2.peers"),
        ('replication = "b.example.org:9807"', "", "address"),
        ("[epochs]", "[cluster.timing]\nheartbeat_ms = 250\n[epochs]", "election_min_ms"),
        ("[epochs]", "[cluster.timing]\nelection_max_ms = 600\n[epochs]", "election_max_ms"),
        ("[epochs]", "[cluster.timing]\nheartbeat = 1\n[epochs]", "heartbeat"),
        (
            "[epochs]",
            "[cluster.timing]\nelection_min_ms = 2001\nelection_max_ms = 5000\n[epochs]",
            "election_min_ms is at most 2000",
        ),
        ('"0.0.0.0:4629"', '""', "listen.peers"),
        (
            "[epochs]",
            '[etcd]\nendpoints = ["http://a:2379"]\ncertificate = "c"\nkey = "k"\nauthority = "a"\n[epochs]',
            "https",
        ),
    ],
)
def test_a_mistake_in_the_tables_of_a_cluster_is_named(
    made: setup.SetUp, old: str, new: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(edited(made.configs[0], old, new))


@pytest.mark.parametrize("timing", [(2000, 9000, 666), (4, 5, 1)])
async def test_the_engine_takes_what_the_tables_of_a_cluster_may_say(
    made: setup.SetUp, tmp_path: Path, timing: tuple[int, int, int]
) -> None:
    table = "[cluster.timing]\nelection_min_ms = {}\nelection_max_ms = {}\nheartbeat_ms = {}\n[epochs]"
    config = load_config(edited(made.configs[0], "[epochs]", table.format(*timing)))
    log = engine_of(config).open(tmp_path / "log", True)
    assert log.status().engine == "raft"
    await log.stop()


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('replication = "b.example.org:9807"', 'replication = "b..example.org:9807"', "no address"),
        (
            'replication = "raft"',
            (
                'replication = "etcd"\netcd = {endpoints = ["https://a:2379"], certificate = "tls/peer.pem", '
                'key = "tls/peer.key", authority = "tls/peers-ca.pem", prefix = "/"}'
            ),
            "prefix",
        ),
    ],
)
def test_what_only_an_engine_knows_to_be_a_mistake_is_named_too(
    made: setup.SetUp, tmp_path: Path, old: str, new: str, text: str
) -> None:
    path = edited(made.configs[0], old, new)
    with pytest.raises(ConfigError, match=text) as refused:
        engine_of(load_config(path)).open(tmp_path / "log", True)
    assert str(path) in str(refused.value)


def test_a_certificate_of_another_member_or_authority_is_refused(made: setup.SetUp) -> None:
    config = load_config(made.configs[0])
    assert config.cluster is not None
    tls, ca = config.cluster.tls, made.realm_file.parent / "ca"
    authority = load_authority((ca / "peers-ca.pem").read_bytes(), (ca / "peers-ca.key").read_bytes())
    wrong = issue_peer(authority, "r2", NOW)
    kept = tls.certificate.read_bytes(), tls.key.read_bytes()
    tls.certificate.write_bytes(wrong.certificate_pem())
    with pytest.raises(ConfigError, match="another key"):
        check_files(config)
    tls.key.write_bytes(wrong.key_pem())
    with pytest.raises(ConfigError, match="names r2, but this replica is r1"):
        check_files(config)
    tls.certificate.write_bytes(kept[0])
    tls.key.write_bytes(kept[1])
    check_files(config)
    tls.authority.write_text(certificate_pem("somebody", authority=True))
    with pytest.raises(ConfigError, match="not issued by"):
        check_files(config)
    tls.authority.write_text("nothing")
    with pytest.raises(ConfigError, match="Put the files there"):
        check_files(config)
    for what in STRANGE:
        tls.certificate.write_text(strange_pem(what))
        with pytest.raises(ConfigError):
            check_files(config)


def test_etcd_is_one_table_more(made: setup.SetUp) -> None:
    path = edited(made.configs[0], 'replication = "raft"', 'replication = "etcd"')
    path.write_text(
        path.read_text() + '\n[etcd]\nendpoints = ["https://a:2379", "https://b:2379"]\n'
        'certificate = "tls/peer.pem"\nkey = "tls/peer.key"\nauthority = "tls/peers-ca.pem"\n'
    )
    config = load_config(path)
    check_files(config)
    assert config.etcd is not None
    assert config.etcd.endpoints == ("https://a:2379", "https://b:2379")
    assert config.etcd.prefix == "/e2eks/example.org/"
    assert effective(config)["etcd"]["prefix"] == config.etcd.prefix


def test_verifiers_are_listed_by_all_replicas_at_once(made: setup.SetUp, tmp_path: Path) -> None:
    info = read_verifier_info(verifier_file(tmp_path, "eff").path)
    first, *others = map(load_config, made.configs)
    setup.add_verifiers(first, [info], others=others)
    for config in map(load_config, made.configs):
        assert [row.name for row in config.verifier_certificates()] == ["eff"]
        assert [row.name for row in config.realm.verifiers] == ["eff"]


def test_init_and_check_of_a_cluster_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"--replica=r{n}=localhost" for n in (1, 2, 3)]
    keyserver = keyserver_command(capsys)
    done = keyserver("init", tmp_path / "realm", "--realm", "example.org", *names, "-o", "json")
    assert done.code == 0
    assert done.json["replication"] == "raft"
    assert len(done.json["configs"]) == 3
    [*_, last] = done.json["configs"]
    checked = keyserver("serve", "--check", "--allow-split-view", "-c", last, "-o", "json")
    assert checked.code == 0
    assert checked.json["cluster"]["members"]["r1"]["peers"] == "localhost:4629"
