"""A cluster is restored whole, in quarantine, and with a notice that its replicas sign; one member never."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from kept.disk import left_behind

from keyserver.cluster import RAFT, Cluster, MemberTable, Timing
from keyserver.config import Config
from keyserver.copies.backup_create import create_backup
from keyserver.copies.backup_restore import restore
from keyserver.copies.history_break import history_end, read_notice, require_explicit, sign_notice
from replication.types import PeerTls
from verifier import encoding
from verifier.crypto import hashing, signatures
from verifier.errors import ConfigError
from verifier.files import SECRET_MODE, read_secret, write_new
from verifier.history_break import signed_by

NOW_MS = 1_800_000_000_000
NOWHERE = PeerTls(Path("c"), Path("k"), Path("a"))


@pytest.fixture
def hosts(tmp_path: Path) -> list[Config]:
    """Two members, each with the rows of one backup and a key of its own."""
    _, config = left_behind(tmp_path / "r1", 7, 60)
    create_backup(config, tmp_path / "r1.backup")
    members = {name: MemberTable(f"{name}:1", f"{name}:2") for name in ("r1", "r2", "r3")}
    made = []
    for number in (1, 2):
        key = tmp_path / f"head{number}.key"
        write_new(key, (bytes([number]) * 32).hex().encode(), SECRET_MODE)
        restored = replace(
            config,
            data=tmp_path / f"data{number}",
            replication=RAFT,
            head_key=key,
            cluster=Cluster(members, NOWHERE, Timing(), ready_without_majority=False),
        )
        restore(tmp_path / "r1.backup", restored, NOW_MS)
        made.append(restored)
    return made


def public_key(config: Config) -> bytes:
    return signatures.public_key(read_secret(config.head_key))


def test_one_member_is_not_restored_without_breaking_history(hosts: list[Config]) -> None:
    with pytest.raises(ConfigError, match="--break-history"):
        require_explicit(hosts[0], None)
    require_explicit(hosts[0], Path("notice"))
    require_explicit(replace(hosts[0], cluster=None), None)


def test_a_notice_that_cannot_be_signed_is_told_before_anything_is_restored(
    hosts: list[Config], tmp_path: Path
) -> None:
    notice = tmp_path / "notice.json"
    notice.write_text("{}")
    with pytest.raises(ConfigError, match=r"notice\.json"):
        require_explicit(hosts[0], notice)
    notice.unlink()
    hosts[0].head_key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        require_explicit(hosts[0], notice)


def test_every_host_signs_one_notice_of_where_the_history_ends(hosts: list[Config], tmp_path: Path) -> None:
    path, realm = tmp_path / "notice.json", hosts[0].realm
    keys = {hashing.key_id(public_key(config)): public_key(config) for config in hosts}
    ended = [history_end(config, 5, "d") for config in hosts]
    assert ended[0] == ended[1]
    sign_notice(path, hosts[0], ended[0], NOW_MS)
    assert signed_by(realm, read_notice(path, realm), keys) == {hashing.key_id(public_key(hosts[0]))}
    for config in (hosts[1], hosts[1]):  # twice is once
        sign_notice(path, config, ended[1], NOW_MS + 1)
    notice = read_notice(path, realm)
    assert signed_by(realm, notice, keys) == keys.keys()
    assert len(notice.signatures) == 2
    assert notice.head.encoded == ended[0].head
    assert notice.epoch == ended[0].epoch


def test_a_notice_of_another_end_is_not_signed(hosts: list[Config], tmp_path: Path) -> None:
    path = tmp_path / "notice.json"
    ended = history_end(hosts[0], 5, "d")
    sign_notice(path, hosts[0], ended, NOW_MS)
    before = path.read_bytes()
    other = encoding.encode_signed_head(encoding.decode_signed_head(ended.head).head.encoded, [])
    with pytest.raises(ConfigError, match="another end"):
        sign_notice(path, hosts[1], replace(ended, head=other), NOW_MS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change", [("realm_hash", "00"), ("epoch", 1), ("schema", "e2eks.evidence/1"), ("x", 1)]
)
def test_a_notice_that_was_changed_is_refused_or_signed_by_nobody(
    hosts: list[Config], tmp_path: Path, change: tuple[str, object]
) -> None:
    path = tmp_path / "notice.json"
    sign_notice(path, hosts[0], history_end(hosts[0], 5, "d"), NOW_MS)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | dict([change])))
    with pytest.raises(ConfigError):
        read_notice(path, hosts[0].realm)
    path.write_text(json.dumps(document | {"made_ms": 1}))
    keys = {hashing.key_id(public_key(hosts[0])): public_key(hosts[0])}
    assert not signed_by(hosts[0].realm, read_notice(path, hosts[0].realm), keys)
