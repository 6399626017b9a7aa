"""What a verifier refuses to start with, and the words it says; its outbox; what it serves."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from e2eks.v1 import types_pb2 as pb
from e2eks.v1 import verification_pb2
from operators import STRANGE, strange_pem
from streams.build import START_MS, Stream
from streams.folder import OpenVerifier, VerifierFolder, ratify, replay
from streams.realms import make_realm, party

from verifier import encoding, epoch, limits
from verifier import realm as realms
from verifier.daemon.config import load_config
from verifier.daemon.database import check_key
from verifier.daemon.failures import Misbehaved, Quarantined
from verifier.daemon.outbox import GivenUp, Ready, Waiting, served_head
from verifier.daemon.ratified import answer
from verifier.daemon.run import OwnTls
from verifier.daemon.state import load_state, owed_epochs
from verifier.daemon.tables import VerifierTables as Tables
from verifier.errors import ConfigError, Malformed, Reason, Refused
from verifier.files import read_secret
from verifier.signonce import SignOnceRegister


@pytest.fixture
def stream() -> Stream:
    return Stream().grow(3)


@pytest.fixture
def folder(stream: Stream, tmp_path: Path) -> VerifierFolder:
    return VerifierFolder.make(tmp_path / "v", stream.realm)


# Quarantine


def test_a_verifier_opens_what_it_left(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 3)
    with OpenVerifier(folder) as opened:
        assert load_state(opened.store, stream.realm).chain == stream.chain
        assert owed_epochs(opened.store, 10) == (3, 1, 2)


def test_a_lost_register_is_quarantine(folder: VerifierFolder) -> None:
    (folder.path / "sign-once.register").unlink()
    with pytest.raises(Quarantined, match="must not sign again"), OpenVerifier(folder):
        pass


def test_a_register_older_than_the_database_is_quarantine(folder: VerifierFolder, stream: Stream) -> None:
    register = folder.path / "sign-once.register"
    before = register.read_bytes()
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 3)
    register.write_bytes(before)
    with pytest.raises(Quarantined, match="register was lost or restored"), OpenVerifier(folder):
        pass


def test_a_database_behind_the_register_is_quarantine(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 2)
    shutil.rmtree(folder.path / "data")
    with pytest.raises(Quarantined, match="database lost its newest part"), OpenVerifier(folder):
        pass


def test_a_register_about_another_head_is_quarantine(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 3)
    shutil.rmtree(folder.path / "data")
    other = Stream().grow(2).grow(1, users=("carol",))
    with pytest.raises(Quarantined, match="register"), OpenVerifier(folder):
        pass
    fresh = VerifierFolder.make(folder.path.with_name("w"), stream.realm)
    shutil.copy(folder.path / "verifier.key", fresh.path / "verifier.key")
    fresh.info["public_key"] = folder.info["public_key"]
    (fresh.path / "sign-once.register").unlink()
    SignOnceRegister.create(fresh.path / "sign-once.register", key_id=folder.key_id).close()
    with OpenVerifier(fresh) as opened:
        replay(opened, other.message())
    shutil.copy(folder.path / "sign-once.register", fresh.path / "sign-once.register")
    with pytest.raises(Quarantined, match="another head of epoch 3"), OpenVerifier(fresh):
        pass


def test_another_realm_is_quarantine(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
    other = make_realm(stream.replicas, stream.verifiers, name="example.net")
    (folder.path / "realm.json").write_bytes(realms.realm_json(other))
    with pytest.raises(Quarantined, match="realm hashes differ"), OpenVerifier(folder):
        pass


def test_a_newer_file_of_the_same_realm_is_fine(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
    newer = replace(stream.realm, addresses=("keys.example.org:4625",))
    (folder.path / "realm.json").write_bytes(realms.realm_json(newer))
    with OpenVerifier(folder):
        pass


def test_the_database_of_another_key_is_quarantine(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder):
        pass
    other = VerifierFolder.make(folder.path.with_name("w"), stream.realm)
    shutil.copytree(folder.path / "data", other.path / "data")
    with pytest.raises(Quarantined, match="another verifier key"), OpenVerifier(other):
        pass


def test_a_replicas_key_is_quarantine(stream: Stream) -> None:
    with pytest.raises(Quarantined, match="replicas'"):
        check_key(stream.realm, stream.replicas[0].secret)


def test_a_head_with_an_unknown_signature_by_the_own_key_is_quarantine(
    folder: VerifierFolder, stream: Stream
) -> None:
    seed = read_secret(folder.path / "verifier.key", "key")
    clone = party(0, "clone")
    object.__setattr__(clone, "secret", seed)
    head = stream.compose()
    signed = pb.SignedEpochHead.FromString(stream.sign_head(head))
    made = clone.sign(epoch.verifier_message(head, START_MS))
    signed.ratifications.add(timestamp_ms=START_MS, signatures=[made])
    stream.append_head(signed.SerializeToString(deterministic=True))
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 3)
        with pytest.raises(Quarantined, match="used elsewhere"):
            opened.outbox.ratify(4)


# The outbox


def test_a_ratification_is_made_once(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        first = ratify(opened, 1)
        opened.now_ms += 1
        assert ratify(opened, 1) == first
    with OpenVerifier(folder, now_ms=START_MS + 99_000) as opened:
        assert ratify(opened, 1) == first


@pytest.mark.parametrize(("ahead_ms", "signs"), [(limits.SKEW_MS, True), (limits.SKEW_MS + 1, False)])
def test_heads_beyond_the_skew_are_not_signed(
    folder: VerifierFolder, stream: Stream, ahead_ms: int, signs: bool
) -> None:
    with OpenVerifier(folder, now_ms=stream.chain.issue_time_ms - ahead_ms) as opened:
        replay(opened, stream.message())
        owed = opened.outbox.ratify(3)
        assert isinstance(owed, Ready if signs else Waiting)
        assert (opened.register.get(3) is not None) is signs


def test_an_epoch_below_the_registers_floor_is_given_up(folder: VerifierFolder, stream: Stream) -> None:
    register = folder.path / "sign-once.register"
    register.unlink()
    SignOnceRegister.create(register, key_id=folder.key_id, floor=2).close()
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        assert isinstance(opened.outbox.ratify(2), GivenUp)
        assert owed_epochs(opened.store, 10) == (3, 1)
        assert opened.register.get(2) is None


def test_another_head_than_the_one_signed_is_never_signed(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 3)
        other = stream.sign_head(Stream().grow(2).grow(1, users=("carol",)).heads[-1])
        opened.store.write({Tables.HEADS.key((3).to_bytes(8, "big")): other})
        with pytest.raises(Misbehaved) as found:
            opened.outbox.ratify(3)
        assert found.value.exit_code == 8


# RatifiedHeads


def request(number: int) -> bytes:
    return verification_pb2.RatifiedHeadRequest(epoch=number).SerializeToString()


def test_ratified_heads_carry_the_replicas_signatures(folder: VerifierFolder, stream: Stream) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 2)
        for wanted in (0, 2):
            signed = encoding.decode_signed_head(answer(opened.store, stream.realm, request(wanted)))
            assert signed.head.encoded == stream.heads[1]
            epoch.check_majority(stream.realm.genesis_policy, signed)
            own = {folder.key_id: folder.public_key}
            assert epoch.signers(signed, {}, own, own).verifiers


@pytest.mark.parametrize("number", [0, 1, 3, 4, 2**64 - 1])
def test_heads_not_ratified_are_not_served(folder: VerifierFolder, stream: Stream, number: int) -> None:
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        with pytest.raises(Refused) as refused:
            answer(opened.store, stream.realm, request(number))
        assert refused.value.reason is Reason.NO_SUCH_EPOCH


@pytest.mark.parametrize("data", [b"\xff", b"\x08\x00", b"\x08\x01\x10\x01", b"\x08" * 100])
def test_malformed_requests_are_refused(folder: VerifierFolder, stream: Stream, data: bytes) -> None:
    with OpenVerifier(folder) as opened, pytest.raises(Malformed):
        answer(opened.store, stream.realm, data)


def test_invalid_signatures_are_not_passed_on(folder: VerifierFolder, stream: Stream) -> None:
    message = pb.SignedEpochHead.FromString(stream.sign_head(stream.compose()))
    strangers = [party(7, str(n)) for n in range(40)]
    for stranger in strangers:
        message.ratifications[0].signatures.append(stranger.sign(b"anything"))
    stream.append_head(message.SerializeToString(deterministic=True))
    with OpenVerifier(folder) as opened:
        replay(opened, stream.message())
        ratify(opened, 4)
        served = served_head(opened.store, stream.realm, 4)
        assert served is not None
        replicas, own = encoding.decode_signed_head(served).ratifications
        assert len(replicas.signatures) == 3
        assert len(own.signatures) == 1


# Configuration


def test_init_writes_a_configuration_that_loads(folder: VerifierFolder) -> None:
    config = folder.config()
    assert config.name == "v0"
    assert config.push == ("127.0.0.1:1",)
    for secret in ("verifier.key", "tls.key"):
        assert (folder.path / secret).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + "\n[surprise]\nx = 1\n", "unknown"),
        (lambda text: text.replace("schema = 1", "schema = 2"), "schema"),
        (lambda text: text.replace('push = ["127.0.0.1:1"]', "push = []"), "address"),
        (lambda text: text.replace('push = ["127.0.0.1:1"]', 'push = ["nowhere"]'), "host:port"),
        (lambda text: text + "\n[times]\nretry_min_ms = 0\n", "retry_min_ms"),
        (lambda text: text + "\n[times]\ncompare_interval_ms = 0\n", "at least 1"),
        (lambda text: text.replace('"realm.json"', '"missing.json"'), "cannot be read"),
        (lambda text: text + "=", "TOML"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(folder: VerifierFolder, change, words: str) -> None:  # type: ignore[no-untyped-def]
    folder.config_file.write_text(change(folder.config_file.read_text()))
    with pytest.raises(ConfigError, match=words):
        load_config(folder.config_file)


def test_a_key_that_others_may_read_is_refused(folder: VerifierFolder) -> None:
    key = folder.path / "verifier.key"
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_secret(key, "key")


def test_init_overwrites_nothing(folder: VerifierFolder, stream: Stream) -> None:
    before = (folder.path / "verifier.key").read_bytes()
    with pytest.raises(ConfigError, match="not an empty folder"):
        VerifierFolder.make(folder.path, stream.realm)
    assert (folder.path / "verifier.key").read_bytes() == before


# TLS files


@pytest.mark.parametrize("what", STRANGE)
def test_a_certificate_of_a_strange_kind_changes_nothing(folder: VerifierFolder, what: str) -> None:
    """A verifier that is told to renew must live through it."""
    tls = OwnTls(folder.config())
    before = tls.renewable.current
    folder.config().tls_certificate.write_text(strange_pem(what))
    tls.renew()
    assert tls.renewable.current is before
    with pytest.raises(ConfigError, match=r"tls\.pem"):
        OwnTls(folder.config())


def test_a_chain_is_read_to_its_end(folder: VerifierFolder) -> None:
    certificate = folder.config().tls_certificate
    whole = certificate.read_text()
    certificate.write_text(whole + whole.replace("MII", "AII"))
    with pytest.raises(ConfigError, match="are not a PEM certificate and its key"):
        OwnTls(folder.config())
