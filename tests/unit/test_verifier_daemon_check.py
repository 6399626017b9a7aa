"""`verifier check`: a sound database is called sound, and nothing that is spoiled is."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from kept.plants import ROW_KINDS, other
from streams.build import START_MS, Stream
from streams.folder import OpenVerifier, VerifierFolder, verifier_of

from kv.keys import EVERYTHING, u64
from kv.memory import MemoryStore
from verifier.crypto import signatures
from verifier.daemon.check import REGISTER, Recorded, Report, check
from verifier.daemon.check_stopped import check_stopped
from verifier.daemon.cli import main
from verifier.daemon.rekey import rekey
from verifier.daemon.state import first_state
from verifier.daemon.step import apply_message
from verifier.daemon.tables import VerifierTables as Tables
from verifier.files import read_secret
from verifier.signonce import read_rows
from verifier.types import Realm

NOT_CHECKED = {
    # A ratified epoch that is owed no longer was acknowledged: see test_an_epoch_is_ratified_or_owed.
    (Tables.OUTBOX.name, "lose"),
}
# Signed and owed: without the row, the register still gives the same bytes again.
OWED = Tables.RATIFICATIONS.key(u64(7))


class Kept:
    """What a verifier keeps, to be spoiled at will."""

    def __init__(self, realm: Realm, rows: dict[bytes, bytes], recorded: Recorded) -> None:
        self.realm, self.rows, self.recorded = realm, rows, recorded

    def copy(self) -> "Kept":
        return Kept(self.realm, dict(self.rows), replace(self.recorded, rows=dict(self.recorded.rows)))

    def check(self) -> Report:
        store = MemoryStore()
        store.write(self.rows)
        return check(store, self.realm, self.recorded)


def replayed(stream: Stream, path: Path, *, ratify: int) -> Kept:
    """What a verifier of its own in a new folder keeps, see replay."""
    return replay(stream, verifier_of(stream, path / "v"), ratify=ratify)


def replay(stream: Stream, folder: VerifierFolder, *, ratify: int) -> Kept:
    """Replay the stream, ratify the first `ratify` epochs, have all but the last acknowledged."""
    with OpenVerifier(folder, now_ms=START_MS + 10_000_000) as verifier:
        state = first_state(stream.realm)
        outcome = apply_message(verifier.store, stream.realm, state, stream.message())
        assert outcome.stop is None
        verifier.store.write(outcome.writes)
        for epoch in range(1, ratify + 1):
            verifier.outbox.ratify(epoch)
            if epoch < ratify:
                verifier.outbox.settle(epoch)
        rows = dict(verifier.store.scan(*EVERYTHING))
    config = folder.config()
    public_key = signatures.public_key(read_secret(config.key, "key"))
    floor, signed = read_rows(config.sign_once_register, key_id=folder.key_id)
    return Kept(config.realm, rows, Recorded(public_key, floor, signed))


def grown(seed: int, epochs: int, replicas: int = 3) -> Stream:
    """Users of all ages, a revoked one, an epoch without updates, and updates no head covers yet."""
    stream = Stream(seed, replicas)
    for epoch in range(epochs):
        for number in range(epoch % 4 * 5):
            stream.put(f"user-{number * (epoch + 1) % 37}")
        if epoch == 3:
            stream.revoke("user-2")
        stream.close_epoch()
    stream.put("late")
    stream.put("user-4")
    return stream


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return replayed(grown(5, 9), tmp_path_factory.mktemp("verifier"), ratify=7)


def test_a_whole_database_is_sound(kept: Kept) -> None:
    report = kept.check()
    assert report.record()["faults"] == []
    assert (report.epoch, report.rows) == (9, len(kept.rows))


@pytest.mark.parametrize(
    ("epochs", "ratify", "replicas"), [(0, 0, 1), (1, 1, 1), (2, 0, 3), (6, 6, 5), (20, 3, 1)]
)
def test_raises_no_false_alarm(epochs: int, ratify: int, replicas: int, tmp_path: Path, seed: int) -> None:
    assert replayed(grown(seed, epochs, replicas), tmp_path, ratify=ratify).check().listed == []


def test_finds_planted_faults(kept: Kept, rng: Random, count: Callable[[int], int]) -> None:
    missed, tables = [], set()
    for _ in range(count(2)):
        for table in Tables.all():
            for spoil in ROW_KINDS:
                spoiled = kept.copy()
                if (table.name, spoil.__name__) in NOT_CHECKED or not spoil(rng, spoiled.rows, table.prefix):
                    continue
                tables.add(table.name)
                if spoiled.check().sound and OWED in spoiled.rows:
                    changed = {k for k in spoiled.rows | kept.rows if spoiled.rows.get(k) != kept.rows.get(k)}
                    missed.append((table.name, spoil.__name__, sorted(changed)))
    assert missed == []
    assert tables == {table.name for table in Tables.all()}


def test_compares_the_register(kept: Kept, rng: Random) -> None:
    for field in ("head_hash", "timestamp_ms", "signature"):
        spoiled = kept.copy()
        plant = other(field)
        plant(rng, spoiled)  # type: ignore[arg-type]  # it only looks at what both kinds of kept things have
        assert REGISTER in spoiled.check().counts
    lost = kept.copy()
    rows = dict(lost.recorded.rows)
    del rows[7]
    lost.recorded = replace(lost.recorded, rows=rows)
    (fault,) = lost.check().listed
    assert fault[0] == Tables.RATIFICATIONS.name


def test_a_database_behind_its_register_has_lost_its_tail(kept: Kept, tmp_path: Path) -> None:
    behind = replayed(grown(5, 4), tmp_path, ratify=4)
    behind.recorded = replace(behind.recorded, public_key=kept.recorded.public_key, rows=kept.recorded.rows)
    found = [(epoch, why) for table, epoch, why in behind.check().listed if table == REGISTER]
    assert [epoch for epoch, _ in found] == ["5", "6", "7"]
    assert all("tail is lost" in why for _, why in found)


def test_an_epoch_is_ratified_or_owed(kept: Kept) -> None:
    for epoch, sound in ((7, True), (8, False)):
        spoiled = kept.copy()
        del spoiled.rows[Tables.OUTBOX.key(u64(epoch))]
        assert spoiled.check().sound is sound


def test_a_verifier_with_a_new_key_is_sound(tmp_path: Path) -> None:
    stream = grown(2, 3)
    folder = verifier_of(stream, tmp_path / "v")
    replay(stream, folder, ratify=2)
    rekey(folder.config(), datetime(2026, 6, 1, tzinfo=UTC))
    assert check_stopped(folder.config()).listed == []


def test_the_command(tmp_path: Path) -> None:
    stream = grown(2, 3)
    folder = verifier_of(stream, tmp_path / "v")
    replay(stream, folder, ratify=3)
    config = tmp_path / "v" / "verifier.toml"
    sound = CliRunner().invoke(main, ["check", "-c", str(config), "-o", "json"])
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["sound"] is True
    with OpenVerifier(folder) as verifier:
        running = CliRunner().invoke(main, ["check", "-c", str(config)])
        assert running.exit_code == 2
        assert "stop it" in running.stderr
        verifier.store.write({Tables.HEADS.key(u64(2)): None})
    spoiled = CliRunner().invoke(main, ["check", "-c", str(config)])
    assert spoiled.exit_code == 1
    assert "head 2 is missing" in spoiled.stdout
    (tmp_path / "v" / "sign-once.register").unlink()
    lost = CliRunner().invoke(main, ["check", "-c", str(config), "-o", "json"])
    assert REGISTER in {fault["table"] for fault in json.loads(lost.stdout)["faults"]}
