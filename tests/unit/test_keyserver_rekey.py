"""`keyserver keys rekey`: when it is refused, what it sets aside, where the new register begins, and what the
replica is afterwards.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from operators import keyserver_command, set_up, verifier_file

from keyserver import quarantine
from keyserver.config import Config, Epochs, Listen, load_config
from keyserver.copies.backup_restore import RESTORED
from keyserver.data_directory import LostTail
from keyserver.installation import setup
from keyserver.own_key import Unanswered
from keyserver.rekey import Rekeyed, rekey
from keyserver.run import Running, first_cause, run_replica
from keyserver.signer import load_signer
from keyserver.testing import first_epoch
from keyserver.verifier_list import read_verifier_info
from kv.interface import StorageInUse
from verifier import encoding
from verifier.crypto import hashing, signatures
from verifier.epoch import compose_head, genesis_chain, replica_message
from verifier.errors import ConfigError
from verifier.signonce import SignOnceRegister, read_rows
from verifier.types import Ratification, Signature, Verifier

NOW = datetime(2026, 6, 1, tzinfo=UTC)
EPOCHS = Epochs(min_interval_ms=1, max_interval_ms=200_000, retry_interval_ms=200)
NOWHERE = Listen(public="", verification="", push="", http="")
PATIENCE = 60.0


def nobody(verifier: Verifier) -> bytes:
    raise Unanswered(verifier.name)


def configured(folder: Path) -> Config:
    made = set_up(folder / "realm", epochs=EPOCHS)
    return replace(load_config(made.configs[0]), listen=NOWHERE)


def key_id_of(config: Config) -> bytes:
    return hashing.key_id(signatures.public_key(bytes.fromhex(config.head_key.read_text())))


async def until_epoch(running: Running, epoch: int) -> None:
    with trio.fail_after(PATIENCE):
        while running.parts.replica.state.signed_epoch < epoch:
            await running.parts.replica.applied.turn().wait()


async def serve(config: Config, *, signs: bool = True) -> Running:
    """Run a replica until its first epoch is signed, or only start it; then stop it."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            running: Running = await nursery.start(run_replica, config)
            if signs:
                await first_epoch(running.parts)
            nursery.cancel_scope.cancel()
    return running


def renew(config: Config, **options: object) -> Rekeyed:
    return rekey(config, **{"now": NOW, "ask": nobody, **options})  # type: ignore[arg-type]


def restored_mark(config: Config) -> None:
    (config.data / RESTORED).write_text("{}")


def evidence(config: Config) -> None:
    made = quarantine.Evidence("register", "for the test", 1)
    quarantine.keep_evidence(quarantine.evidence_folder(config), config.realm, key_id_of(config), made)


def older_register(config: Config) -> None:
    config.sign_once_register.unlink()
    SignOnceRegister.create(config.sign_once_register, key_id=key_id_of(config)).close()


DOUBTS: dict[str, tuple[Callable[[Config], object], str]] = {
    "no register": (lambda config: config.sign_once_register.unlink(), "is missing"),
    "older register": (older_register, "missing or old"),
    "damaged register": (
        lambda config: config.sign_once_register.write_bytes(b"x"),
        "not a sign-once register",
    ),
    "restored": (restored_mark, "restored from a backup"),
    "evidence": (evidence, "used elsewhere"),
    "no key": (lambda config: config.head_key.unlink(), "is missing"),
    "no data": (lambda config: shutil.rmtree(config.data), "no database"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
async def test_a_replica_in_doubt_gets_a_new_key_and_signs_nothing_with_it(
    doubt: str, tmp_path: Path
) -> None:
    config = configured(tmp_path)
    await serve(config)
    spoil, words = DOUBTS[doubt]
    old = key_id_of(config)
    spoil(config)
    done = await trio.to_thread.run_sync(renew, config)
    assert words in done.why
    assert done.key_id == key_id_of(config) != old
    assert done.floor == 1
    assert read_rows(config.sign_once_register, key_id=done.key_id) == (1, {})
    assert config.head_key.stat().st_mode & 0o777 == 0o600
    assert not (config.data / RESTORED).exists()
    for path in done.retired:
        assert path.name.endswith(".retired-20260601T000000Z")
        assert path.exists()
    running = await serve(config, signs=False)
    assert "not among the 1 of the replicas' policy" in running.parts.signer.quarantined
    assert "new realm" in running.parts.signer.quarantined
    assert read_rows(config.sign_once_register, key_id=done.key_id) == (1, {})


async def test_a_healthy_replica_keeps_its_key_unless_asked(tmp_path: Path) -> None:
    config = configured(tmp_path)
    await serve(config)
    before = config.head_key.read_bytes(), config.sign_once_register.read_bytes()
    with pytest.raises(ConfigError, match="nothing speaks against"):
        await trio.to_thread.run_sync(renew, config)
    assert before == (config.head_key.read_bytes(), config.sign_once_register.read_bytes())
    done = await trio.to_thread.run_sync(lambda: renew(config, healthy=True, floor=9))
    assert (done.why, done.floor) == ("asked for", 9)


def test_a_replica_that_never_ran_keeps_its_key(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with pytest.raises(ConfigError, match="nothing speaks against"):
        renew(config)


async def test_a_running_replica_is_not_rekeyed(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(run_replica, config)
        await first_epoch(running.parts)
        with pytest.raises(StorageInUse):
            await trio.to_thread.run_sync(lambda: renew(config, healthy=True))
        nursery.cancel_scope.cancel()


async def test_what_was_cut_off_is_finished_by_running_it_again(tmp_path: Path) -> None:
    """After each rename and each new file: the replica does not sign, and a second run ends in the same."""
    config = configured(tmp_path)
    await serve(config)
    folder = config.path.parent
    for left in (
        ("head.key",),
        (),
        ("sign-once.register",),
    ):  # register renamed; key too; a new register made
        copy = folder.with_name(f"cut-{len(left)}-{left and left[0]}")
        shutil.copytree(folder, copy)
        cut = replace(load_config(copy / "keyserver.toml"), listen=NOWHERE)
        for name in ("head.key", "sign-once.register"):
            if name not in left:
                (copy / name).unlink()
        if left == ("sign-once.register",):
            (copy / "sign-once.register").unlink()
            SignOnceRegister.create(copy / "sign-once.register", key_id=bytes(32)).close()
        done = await trio.to_thread.run_sync(renew, cut)
        assert key_id_of(cut) == done.key_id
        assert read_rows(cut.sign_once_register, key_id=done.key_id)[0] == 1


async def test_the_floor_is_the_newest_epoch_known_anywhere(tmp_path: Path) -> None:
    config = configured(tmp_path)
    infos = [read_verifier_info(verifier_file(tmp_path, name).path) for name in ("v1", "v2", "v3")]
    setup.add_verifiers(config, infos)
    config = replace(load_config(config.path), listen=NOWHERE, allow_split_view=True)
    await serve(config)
    realm, key = config.realm, bytes.fromhex(config.head_key.read_text())

    def shown(epoch: int, secret: bytes) -> bytes:
        chain = replace(genesis_chain(realm), epoch=epoch - 1)
        zero = bytes(32)
        head = compose_head(
            realm, chain, root_hash=zero, issue_time_ms=5, history_root=zero, state_digest=zero
        )
        made = signatures.sign(secret, replica_message(head, 5))
        signature = Signature(key_id_of_secret(key), made)
        return encoding.encode_signed_head(head, [Ratification(5, (signature,))])

    answers = {"v1": shown(7, key), "v2": shown(70, bytes(32))}  # the second one carries a false signature

    def ask(verifier: Verifier) -> bytes:
        if verifier.name in answers:
            return answers[verifier.name]
        raise Unanswered("gone")

    config.sign_once_register.unlink()
    done = await trio.to_thread.run_sync(lambda: renew(config, ask=ask))
    assert done.floor == 7
    assert done.seen == {"v1": 7, "v2": None, "v3": None}


def key_id_of_secret(secret: bytes) -> bytes:
    return hashing.key_id(signatures.public_key(secret))


async def test_a_database_behind_its_register_is_refused_until_it_has_a_new_key(tmp_path: Path) -> None:
    config = configured(tmp_path)
    await serve(config)
    shutil.copytree(config.data, tmp_path / "old")
    async with trio.open_nursery() as nursery:
        running: Running = await nursery.start(run_replica, replace(config, epochs=EPOCHS))
        parts = running.parts
        parts.duties._epochs = replace_interval(parts.duties._epochs)
        parts.replica.applied.wake()
        await until_epoch(running, 2)
        nursery.cancel_scope.cancel()
    shutil.rmtree(config.data)
    shutil.move(tmp_path / "old", config.data)
    twin = shutil.copytree(
        config.path.parent, config.path.parent.with_name("twin")
    )  # a refused start holds it
    with pytest.raises(BaseExceptionGroup) as refused:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_replica, replace(load_config(twin / "keyserver.toml"), listen=NOWHERE))
    assert isinstance(first_cause(refused.value), LostTail)
    assert "keyserver keys rekey" in str(first_cause(refused.value))
    done = await trio.to_thread.run_sync(renew, config)
    assert done.floor >= 2
    await serve(config, signs=False)


def replace_interval(epochs: Epochs) -> Epochs:
    return Epochs(epochs.min_interval_ms, 1, epochs.retry_interval_ms)


def test_two_rekeys_in_one_second_are_told_apart(tmp_path: Path) -> None:
    config = configured(tmp_path)
    config.sign_once_register.unlink()
    first = renew(config)
    with pytest.raises(ConfigError, match="exists already"):
        renew(config, healthy=True)
    assert key_id_of(config) == first.key_id
    assert renew(config, healthy=True, now=NOW + timedelta(seconds=1)).key_id != first.key_id


def test_a_stray_key_is_still_no_replicas_key(tmp_path: Path) -> None:
    config = configured(tmp_path)
    config.head_key.write_text("11" * 32)
    with pytest.raises(ConfigError, match="not the key of a replica"):
        load_signer(config)


def test_the_command_says_what_must_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = set_up(tmp_path / "realm")
    config = load_config(made.configs[0])
    config.sign_once_register.unlink()
    ended = keyserver_command(capsys)("keys", "rekey", "-c", config.path, "-o", "json")
    assert ended.code == 0, ended.err
    record = ended.json
    assert record["schema"] == "e2eks.rekeyed/1"
    assert record["key_id"] == key_id_of(config).hex()
    assert "A realm of one replica cannot take it in" in ended.err
