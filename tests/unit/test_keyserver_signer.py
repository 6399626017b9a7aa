"""The signer: one purpose for each signature, heads only through the register, no secret shown."""

from pathlib import Path

import pytest
from operators import set_up

from keyserver.config import Config, load_config
from keyserver.machine import commands
from keyserver.signer import Quarantined, Signer, WillNotSign, load_signer
from kv.interface import StorageInUse
from verifier import encoding, epoch
from verifier.crypto import signatures, vrf
from verifier.errors import ConfigError, Malformed
from verifier.realm import user_id_alpha
from verifier.signonce import AlreadySigned, RegisterCorrupt, SignOnceRegister


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(set_up(tmp_path / "realm").configs[0])


@pytest.fixture
def signer(config: Config) -> Signer:
    return load_signer(config)


def head(config: Config, **changes: object) -> bytes:
    fields = {"root_hash": b"r" * 32, "issue_time_ms": 5000, "history_root": b"h" * 32} | changes
    chain = epoch.genesis_chain(config.realm)
    return epoch.compose_head(config.realm, chain, state_digest=b"d" * 32, **fields)  # type: ignore[arg-type]


def sign(signer: Signer, head: bytes) -> bytes:
    return signer.sign_head(head, log_index=9, digest=b"D" * 32)


def test_a_head_is_signed_as_a_replica_at_its_issue_time(signer: Signer, config: Config) -> None:
    made = sign(signer, head(config))
    assert signatures.verify(signer.public_key, epoch.replica_message(head(config), 5000), made)
    row = signer.newest_signed()
    assert row is not None
    assert (row.epoch, row.timestamp_ms, row.log_index, row.digest) == (1, 5000, 9, b"D" * 32)
    assert row.head_hash == encoding.decode_head(head(config)).hash
    assert row.signature == made


def test_a_second_head_of_an_epoch_is_never_signed_not_even_after_a_restart(
    signer: Signer, config: Config
) -> None:
    made = sign(signer, head(config))
    signer.close()
    again = load_signer(config)
    assert sign(again, head(config)) == made
    for other in (head(config, root_hash=b"x" * 32), head(config, issue_time_ms=5001)):
        with pytest.raises(AlreadySigned):
            sign(again, other)


def test_a_head_of_another_realm_and_bytes_that_are_no_head_are_not_signed(
    signer: Signer, config: Config, tmp_path: Path
) -> None:
    other = load_config(set_up(tmp_path / "other").configs[0])
    with pytest.raises(WillNotSign):
        sign(signer, head(other))
    with pytest.raises(Malformed):
        sign(signer, head(config) + b"\x00")
    assert signer.newest_signed() is None


def test_a_register_whose_signature_is_not_this_keys_is_refused(config: Config) -> None:
    signer = load_signer(config)
    signer.close()
    config.sign_once_register.unlink()
    register = SignOnceRegister.create(config.sign_once_register, key_id=signer.key_id)
    forger = Signer(config.realm, b"f" * 32, b"v" * 32, register)
    sign(forger, head(config))
    forger.close()
    with pytest.raises(RegisterCorrupt, match="does not verify"):
        sign(load_signer(config), head(config))


def test_envelopes_and_endorsements_verify_under_their_own_messages(signer: Signer, config: Config) -> None:
    realm_hash = config.realm.hash
    made = signer.sign_envelope(b"envelope")
    assert signatures.verify(signer.public_key, commands.envelope_message(realm_hash, b"envelope"), made)
    about = {
        "private_hash": b"p" * 32,
        "index": b"i" * 32,
        "entry_hash": b"e" * 32,
        "proof_id": b"q" * 32,
        "not_after_ms": 7,
    }
    endorsement = signer.endorse(**about)  # type: ignore[arg-type]
    message = commands.endorsement_message(realm_hash, **about)  # type: ignore[arg-type]
    assert (endorsement.key_id, endorsement.not_after_ms) == (signer.key_id, 7)
    assert signatures.verify(signer.public_key, message, endorsement.signature)
    assert not signatures.verify(signer.public_key, message, made)


def test_an_index_comes_with_a_proof_that_anybody_can_check(signer: Signer, config: Config) -> None:
    index, proof = signer.vrf_prove("alice@example.org")
    alpha = user_id_alpha(config.realm.name, "alice@example.org")
    output = vrf.verify(config.realm.vrf_public_key, alpha, proof)
    assert output is not None
    assert vrf.index(output) == index
    assert signer.vrf_prove("bob@example.org")[0] != index


# Quarantine (contract section 3)


def assert_signs_nothing(signer: Signer, config: Config) -> None:
    assert signer.quarantined
    for attempt in (
        lambda: sign(signer, head(config)),
        lambda: signer.sign_envelope(b"envelope"),
        lambda: signer.endorse(private_hash=b"", index=b"", entry_hash=b"", proof_id=b"", not_after_ms=0),
    ):
        with pytest.raises(Quarantined):
            attempt()
    assert signer.vrf_prove("alice@example.org")


def test_without_its_register_a_replica_signs_nothing_and_still_answers(config: Config) -> None:
    config.sign_once_register.unlink()
    signer = load_signer(config)
    assert "sign-once.register is missing" in signer.quarantined
    assert_signs_nothing(signer, config)
    assert not config.sign_once_register.exists()


def test_a_signer_put_into_quarantine_stays_there(signer: Signer, config: Config) -> None:
    signer.quarantine("its register is older than its database")
    signer.quarantine("another reason")
    assert signer.quarantined == "its register is older than its database"
    assert_signs_nothing(signer, config)
    assert signer.newest_signed() is None


# Loading


def test_two_signers_of_one_replica_do_not_run_at_once(signer: Signer, config: Config) -> None:
    with pytest.raises(StorageInUse):
        load_signer(config)
    signer.close()
    load_signer(config).close()


@pytest.mark.parametrize(("name", "text"), [("head.key", "not the key of a replica"), ("vrf.key", "VRF key")])
def test_the_keys_of_another_realm_are_refused(config: Config, tmp_path: Path, name: str, text: str) -> None:
    other = set_up(tmp_path / "other").configs[0].parent
    (config.path.parent / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ConfigError, match=text):
        load_signer(config)


def test_a_damaged_register_is_refused(config: Config) -> None:
    data = bytearray(config.sign_once_register.read_bytes())
    data[20] ^= 1
    config.sign_once_register.write_bytes(data)
    with pytest.raises(RegisterCorrupt, match=r"sign-once\.register"):
        load_signer(config)


def test_no_secret_is_shown(signer: Signer, config: Config) -> None:
    shown = repr(signer) + str(signer) + repr(config)
    for path in (config.head_key, config.vrf_key):
        assert path.read_text().strip() not in shown
        assert str(bytes.fromhex(path.read_text()))[2:-1] not in shown
