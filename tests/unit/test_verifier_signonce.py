"""The sign-once register of contract section 3: one signature an epoch, whatever process, file or disk do."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kv.interface import StorageError, StorageInUse
from verifier import signonce
from verifier.signonce import (
    AlreadySigned,
    BelowFloor,
    RegisterCorrupt,
    RegisterMissing,
    Row,
    SignOnceRegister,
)

OWNER = bytes(range(32))
HEADER_BYTES = 88
RECORD_BYTES = 184


def row(epoch: int, head: bytes = b"h") -> Row:
    return Row(epoch, head * 32, 1000 + epoch, 10 * epoch, b"d" * 32, bytes([epoch % 256]) * 64)


def sign(register: SignOnceRegister, epoch: int, head: bytes = b"h") -> Row:
    return register.sign_once(epoch, head * 32, lambda: row(epoch, head))


def never() -> Row:
    raise AssertionError("a second signature was made")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sign-once.register"


@pytest.fixture
def register(path: Path) -> SignOnceRegister:
    return SignOnceRegister.create(path, key_id=OWNER)


def reopened(register: SignOnceRegister, path: Path) -> SignOnceRegister:
    register.close()
    return SignOnceRegister.open(path, key_id=OWNER)


def filled(path: Path, epochs: int) -> bytes:
    register = SignOnceRegister.create(path, key_id=OWNER)
    for epoch in range(1, epochs + 1):
        sign(register, epoch)
    register.close()
    return path.read_bytes()


# The law


def test_the_same_head_gives_the_stored_bytes_again(register: SignOnceRegister, path: Path) -> None:
    first = sign(register, 7)
    assert register.sign_once(7, b"h" * 32, never) == first
    assert reopened(register, path).sign_once(7, b"h" * 32, never) == first


def test_another_head_of_a_signed_epoch_is_refused(register: SignOnceRegister, path: Path) -> None:
    sign(register, 7)
    with pytest.raises(AlreadySigned):
        register.sign_once(7, b"x" * 32, never)
    with pytest.raises(AlreadySigned):
        reopened(register, path).sign_once(7, b"x" * 32, never)


def test_an_epoch_up_to_the_floor_without_a_row_is_refused(path: Path) -> None:
    register = SignOnceRegister.create(path, key_id=OWNER, floor=5)
    for epoch in (1, 5):
        with pytest.raises(BelowFloor):
            register.sign_once(epoch, b"h" * 32, never)
    assert sign(register, 6).epoch == 6
    assert reopened(register, path).floor == 5


def test_epochs_are_signed_in_any_order_and_newest_is_the_largest(
    register: SignOnceRegister, path: Path
) -> None:
    assert register.newest() is None
    for epoch in (9, 3, 8):
        sign(register, epoch)
    register = reopened(register, path)
    assert register.newest() == row(9)
    assert [register.get(epoch) for epoch in (3, 4, 8)] == [row(3), None, row(8)]


def test_a_row_about_another_epoch_or_head_is_a_bug_and_is_not_stored(
    register: SignOnceRegister, path: Path
) -> None:
    with pytest.raises(ValueError, match="another epoch"):
        register.sign_once(3, b"h" * 32, lambda: row(4))
    with pytest.raises(ValueError, match="bytes"):
        register.sign_once(3, b"h" * 32, lambda: Row(3, b"h" * 32, 1, 1, b"d", b"s" * 64))
    assert reopened(register, path).newest() is None


def test_the_row_is_synced_before_it_is_returned(
    register: SignOnceRegister, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_sync: list[bytes] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (sync(fd), at_sync.append(path.read_bytes())))
    made = sign(register, 1)
    assert made.signature in at_sync[-1]
    sign(register, 1)
    assert len(at_sync) == 1


# The file


def test_a_missing_register_is_told_from_an_empty_one(path: Path) -> None:
    with pytest.raises(RegisterMissing, match=path.name):
        SignOnceRegister.open(path, key_id=OWNER)


def test_a_register_is_never_overwritten(register: SignOnceRegister, path: Path) -> None:
    sign(register, 1)
    with pytest.raises(StorageError, match="never overwritten"):
        SignOnceRegister.create(path, key_id=OWNER)
    assert reopened(register, path).newest() == row(1)


def test_another_keys_register_is_refused(register: SignOnceRegister, path: Path) -> None:
    register.close()
    with pytest.raises(RegisterCorrupt, match="another key"):
        SignOnceRegister.open(path, key_id=b"k" * 32)


def test_only_its_owner_may_read_the_file(register: SignOnceRegister, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_torn_last_record_is_cut_and_its_epoch_can_be_signed(path: Path) -> None:
    data = filled(path, 3)
    for length in range(len(data) - RECORD_BYTES, len(data)):
        path.write_bytes(data[:length])
        register = SignOnceRegister.open(path, key_id=OWNER)
        assert register.newest() == row(2)
        assert path.stat().st_size == HEADER_BYTES + 2 * RECORD_BYTES
        assert sign(register, 3, b"x").head_hash == b"x" * 32
        register.close()
        assert len(path.read_bytes()) == len(data)


def test_a_last_record_that_was_never_filled_is_torn(path: Path) -> None:
    data = filled(path, 3)
    for written in (0, 1, 100, RECORD_BYTES - 32):
        start = len(data) - RECORD_BYTES
        path.write_bytes(data[: start + written] + bytes(RECORD_BYTES - written))
        register = SignOnceRegister.open(path, key_id=OWNER)
        assert register.newest() == row(2)
        register.close()


def test_zeros_before_the_last_record_are_damage(path: Path) -> None:
    data = filled(path, 3)
    path.write_bytes(data[: -2 * RECORD_BYTES] + bytes(RECORD_BYTES) + data[-RECORD_BYTES:])
    with pytest.raises(RegisterCorrupt, match="damaged at byte"):
        SignOnceRegister.open(path, key_id=OWNER)


def test_every_flipped_bit_is_refused(path: Path, rng: random.Random) -> None:
    data = filled(path, 4)
    whole = [(byte, bit) for byte in range(len(data)) for bit in range(8)]
    for byte, bit in rng.sample(whole, 1500):
        damaged = bytearray(data)
        damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(RegisterCorrupt, match=path.name):
            SignOnceRegister.open(path, key_id=OWNER)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:HEADER_BYTES] + d[HEADER_BYTES + RECORD_BYTES :],
        lambda d: d[:-RECORD_BYTES] + d[-2 * RECORD_BYTES :],
        lambda d: d[: -2 * RECORD_BYTES] + d[-RECORD_BYTES:] + d[-2 * RECORD_BYTES : -RECORD_BYTES],
        lambda _: b"",
        lambda d: d[: HEADER_BYTES - 1],
        lambda d: b"something else entirely" * 100,
    ],
    ids=["first record lost", "record twice", "records swapped", "empty", "header cut", "other file"],
)
def test_lost_moved_and_foreign_records_are_refused(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(filled(path, 4)))
    with pytest.raises(RegisterCorrupt):
        SignOnceRegister.open(path, key_id=OWNER)


def test_old_rows_are_dropped_and_never_signed_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signonce, "ROWS_KEPT", 4)
    register = SignOnceRegister.create(path, key_id=OWNER)
    for epoch in range(1, 31):
        sign(register, epoch)
        assert path.stat().st_size <= HEADER_BYTES + 8 * RECORD_BYTES
    for _ in range(2):
        assert register.newest() == row(30)
        assert register.floor >= 22
        for epoch in range(1, 31):
            if epoch <= register.floor:
                with pytest.raises(BelowFloor):
                    register.sign_once(epoch, b"h" * 32, never)
            else:
                assert register.sign_once(epoch, b"h" * 32, never) == row(epoch)
        register = reopened(register, path)


# The disk


def fail(number: int) -> Callable[..., object]:
    def broken(*_: object) -> object:
        raise OSError(number, os.strerror(number))

    return broken


@pytest.mark.parametrize(
    ("call", "number"), [("pwrite", errno.ENOSPC), ("fsync", errno.EIO)], ids=["full", "sync fails"]
)
def test_a_failed_write_gives_no_signature_then_or_later(
    register: SignOnceRegister, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    sign(register, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail(number))
        with pytest.raises(StorageError, match="cannot be written"):
            sign(register, 2)
    for attempt in (lambda: sign(register, 1), lambda: sign(register, 3), lambda: register.get(1)):
        with pytest.raises(StorageError):
            attempt()
    found = reopened(register, path)
    # Applied or not applied: both are true to what the disk holds, and both allow one signature only.
    assert found.newest() == (row(1) if call == "pwrite" else row(2))


def test_a_short_write_is_carried_on(
    register: SignOnceRegister, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:50], at))
    sign(register, 1)
    assert reopened(register, path).newest() == row(1)


def test_a_crash_in_the_middle_of_a_write_leaves_at_most_one_signature(path: Path) -> None:
    """The process is killed by a full disk in the middle of a record.

    The next one finds no row and no damage.
    """
    register = SignOnceRegister.create(path, key_id=OWNER)
    sign(register, 1)
    register.close()
    with path.open("ab") as file:
        file.write(b"\x01" * 90)
    register = SignOnceRegister.open(path, key_id=OWNER)
    assert register.sign_once(1, b"h" * 32, never) == row(1)
    assert sign(register, 2, b"y").head_hash == b"y" * 32


def test_opening_syncs_the_last_record_anew(
    register: SignOnceRegister, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sync leaves pages that read back but are not on the disk: they are written once more."""
    sign(register, 1)
    sign(register, 2)
    register.close()
    written: list[tuple[bytes, int]] = []
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: written.append((bytes(data), at)) or pwrite(fd, data, at)
    )
    SignOnceRegister.open(path, key_id=OWNER).close()
    assert written == [(path.read_bytes()[-RECORD_BYTES:], HEADER_BYTES + RECORD_BYTES)]


def test_a_closed_register_signs_nothing(register: SignOnceRegister) -> None:
    sign(register, 1)
    register.close()
    register.close()
    with pytest.raises(StorageError, match="closed"):
        register.sign_once(1, b"h" * 32, never)


# Two owners


def test_a_second_opener_in_this_process_is_refused(register: SignOnceRegister, path: Path) -> None:
    with pytest.raises(StorageInUse, match="in use"):
        SignOnceRegister.open(path, key_id=OWNER)
    reopened(register, path)


OPENER = """
import sys
from kv.interface import StorageInUse
from verifier.signonce import SignOnceRegister
try:
    SignOnceRegister.open(sys.argv[1], key_id=bytes(range(32)))
    print("open")
except StorageInUse:
    print("in use")
"""


def test_a_second_process_is_refused_also_after_old_rows_were_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened_elsewhere() -> str:
        return subprocess.run(
            [sys.executable, "-c", OPENER, str(path)], check=True, capture_output=True, text=True, timeout=120
        ).stdout.strip()

    monkeypatch.setattr(signonce, "ROWS_KEPT", 2)
    register = SignOnceRegister.create(path, key_id=OWNER)
    assert opened_elsewhere() == "in use"
    for epoch in range(1, 6):
        sign(register, epoch)
    assert register.floor > 0
    assert opened_elsewhere() == "in use"
    register.close()
    assert opened_elsewhere() == "open"


def test_whoever_opened_the_file_before_it_was_replaced_does_not_get_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file is unlocked once the new one is in place; its lock must be of no use to anybody."""
    monkeypatch.setattr(signonce, "ROWS_KEPT", 2)
    register = SignOnceRegister.create(path, key_id=OWNER)
    lock = signonce._lock

    def overtaken(target: Path, fd: int) -> None:
        monkeypatch.setattr(signonce, "_lock", lock)
        for epoch in range(1, 5):
            sign(register, epoch)
        assert register.floor > 0
        lock(target, fd)

    monkeypatch.setattr(signonce, "_lock", overtaken)
    with pytest.raises(StorageInUse):
        SignOnceRegister.open(path, key_id=OWNER)


def test_threads_that_ask_for_one_epoch_get_one_signature(register: SignOnceRegister) -> None:
    def ask(caller: int) -> bytes:
        made = Row(1, b"h" * 32, caller, caller, b"d" * 32, bytes([caller]) * 64)
        return register.sign_once(1, b"h" * 32, lambda: made).signature

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(40)))) == 1
