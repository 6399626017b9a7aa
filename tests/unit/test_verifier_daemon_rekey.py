"""`verifier rekey`: what is set aside, where the new register begins, and that the verifier goes on where it
stood.
"""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from streams.build import Stream
from streams.folder import OpenVerifier, VerifierFolder, replay

from kv.interface import StorageInUse
from verifier.daemon.evidence import Evidence, Kind
from verifier.daemon.evidence_files import keep_evidence, refuse_while_evidence_is_kept
from verifier.daemon.failures import Quarantined
from verifier.daemon.outbox import GivenUp, Ready
from verifier.daemon.rekey import Rekeyed, rekey
from verifier.daemon.state import load_state, owed_epochs
from verifier.errors import ConfigError
from verifier.signonce import SignOnceRegister, read_rows

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def stream() -> Stream:
    return Stream().grow(3)


@pytest.fixture
def folder(stream: Stream, tmp_path: Path) -> VerifierFolder:
    """One that has ratified epochs 1 and 2 of three."""
    made = VerifierFolder.make(tmp_path / "v", stream.realm)
    with OpenVerifier(made) as opened:
        replay(opened, stream.message())
        for number in (1, 2):
            assert isinstance(opened.outbox.ratify(number), Ready)
    return made


def renewed(folder: VerifierFolder, **options: object) -> tuple[Rekeyed, VerifierFolder]:
    done = rekey(folder.config(), NOW, **options)  # type: ignore[arg-type]
    return done, VerifierFolder(folder.path, folder.name, json.loads(done.info))


def spoil_nothing(folder: VerifierFolder) -> None:
    pass


def lose_register(folder: VerifierFolder) -> None:
    (folder.path / "sign-once.register").unlink()


def old_register(folder: VerifierFolder) -> None:
    lose_register(folder)
    SignOnceRegister.create(folder.path / "sign-once.register", key_id=folder.key_id).close()


def damaged_register(folder: VerifierFolder) -> None:
    (folder.path / "sign-once.register").write_bytes(b"damaged")


def lose_key(folder: VerifierFolder) -> None:
    (folder.path / "verifier.key").unlink()


@pytest.mark.parametrize("spoil", [spoil_nothing, lose_register, old_register, damaged_register, lose_key])
def test_a_new_key_ratifies_what_comes_next_and_nothing_before(
    spoil: Callable[[VerifierFolder], None], folder: VerifierFolder, stream: Stream
) -> None:
    spoil(folder)
    done, new = renewed(folder)
    assert done.floor == 3
    assert new.key_id != folder.key_id
    assert new.info["public_key"] == done.public_key.hex()
    assert (new.info["name"], new.info["address"]) == ("v0", "127.0.0.1:4630")
    assert new.info["tls_certificate_pem"] != folder.info["tls_certificate_pem"]
    assert all(path.name.endswith(".retired-20260601T000000Z") for path in done.retired)
    for secret in ("verifier.key", "tls.key"):
        assert (folder.path / secret).stat().st_mode & 0o777 == 0o600
    with OpenVerifier(new) as opened:
        assert load_state(opened.store, stream.realm).chain == stream.chain
        for number in owed_epochs(opened.store, 10):
            assert isinstance(opened.outbox.ratify(number), GivenUp)
        assert opened.register.newest() is None
        stream.grow(1)
        replay(opened, stream.message(load_state(opened.store, stream.realm).next_index))
        assert isinstance(opened.outbox.ratify(4), Ready)
    with OpenVerifier(new):
        pass


def test_the_register_knows_more_than_a_restored_database(folder: VerifierFolder, stream: Stream) -> None:
    image = shutil.copytree(folder.path / "data", folder.path.with_name("image"))
    with OpenVerifier(folder) as opened:
        replay(opened, stream.grow(2).message(load_state(opened.store, stream.realm).next_index))
        assert isinstance(opened.outbox.ratify(5), Ready)
    shutil.rmtree(folder.path / "data")
    shutil.move(image, folder.path / "data")
    with pytest.raises(Quarantined, match="verifier rekey"), OpenVerifier(folder):
        pass
    done, new = renewed(folder)
    assert done.floor == 5
    with OpenVerifier(new) as opened:
        replay(opened, stream.message(load_state(opened.store, stream.realm).next_index))
        assert isinstance(opened.outbox.ratify(5), GivenUp)


def test_a_lost_database_is_replayed_from_the_start(folder: VerifierFolder, stream: Stream) -> None:
    shutil.rmtree(folder.path / "data")
    done, new = renewed(folder, floor=3)
    assert done.floor == 3
    with OpenVerifier(new) as opened:
        replay(opened, stream.message())
        assert isinstance(opened.outbox.ratify(3), GivenUp)


def test_evidence_about_the_old_key_is_set_aside_with_it_and_all_other_stays(folder: VerifierFolder) -> None:
    config = folder.config()
    keep_evidence(config.evidence, config.realm, Evidence(kind=Kind.OWN_KEY, what="used elsewhere"), 1)
    renewed(folder)
    refuse_while_evidence_is_kept(config.evidence)
    kept = keep_evidence(config.evidence, config.realm, Evidence(kind=Kind.FORK, what="a fork"), 1)
    rekey(folder.config(), NOW.replace(second=1))
    assert kept.exists()


def test_a_running_verifier_is_not_rekeyed(folder: VerifierFolder) -> None:
    before = (folder.path / "verifier.key").read_bytes()
    with OpenVerifier(folder), pytest.raises(StorageInUse):
        renewed(folder)
    assert (folder.path / "verifier.key").read_bytes() == before


def test_what_was_cut_off_is_refused_and_finished_by_running_it_again(folder: VerifierFolder) -> None:
    done, new = renewed(folder)
    # Everything but the last write: the database still belongs to the old key.
    shutil.rmtree(folder.path / "data")
    stranger = VerifierFolder.make(folder.path.with_name("w"), folder.config().realm)
    with OpenVerifier(stranger):
        pass
    shutil.copytree(stranger.path / "data", folder.path / "data")
    with pytest.raises(Quarantined, match="cut off, run it again"), OpenVerifier(new):
        pass
    again = rekey(folder.config(), NOW.replace(second=1))
    assert again.public_key != done.public_key
    with OpenVerifier(VerifierFolder(folder.path, folder.name, json.loads(again.info))):
        pass


def test_two_rekeys_in_one_second_are_told_apart(folder: VerifierFolder) -> None:
    renewed(folder)
    with pytest.raises(ConfigError, match="exists already"):
        renewed(folder)


def test_without_the_old_info_the_address_must_be_known(folder: VerifierFolder) -> None:
    (folder.path / "verifier-info.json").unlink()
    with pytest.raises(ConfigError, match="--address"):
        renewed(folder)
    assert read_rows(folder.path / "sign-once.register", key_id=folder.key_id)[1]
    done, _ = renewed(folder, address="v0.example.net:4630")
    assert json.loads(done.info)["address"] == "v0.example.net:4630"
