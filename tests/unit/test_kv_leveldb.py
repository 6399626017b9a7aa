"""The store on disk against what disks, processes and threads do to it."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from kv.interface import StorageError, StorageInUse
from kv.leveldb import LevelDBStore

ROWS = {f"key-{number:04}".encode(): random.Random(number).randbytes(60) for number in range(300)}

# Writes one row a batch and says so when the batch is synced.
WRITER = """
import sys
from kv.leveldb import LevelDBStore
store = LevelDBStore(sys.argv[1])
number = 0
while True:
    store.write({b"%08d" % number: b"x" * 100, b"last": b"%d" % number})
    print(number, flush=True)
    number += 1
"""

# Lets the operating system refuse to make files longer, as a full disk does, and writes on.
LIMITED_WRITER = """
import resource, signal, sys
from kv.interface import StorageError
from kv.leveldb import LevelDBStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LevelDBStore(sys.argv[1])
store.write({b"before": b"1"})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def refused(call):
    try:
        call()
    except StorageError:
        return True
    return False
assert refused(lambda: store.write({b"big": bytes(1_000_000)})), "the write was acknowledged"
assert refused(lambda: store.write({b"small": b"1"})), "a later write went through"
assert refused(lambda: store.get(b"before")), "a later read was answered"
assert refused(lambda: list(store.scan(b"", b"z"))), "a later scan was answered"
print("halted")
"""


def test_a_directory_in_use_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with closing(LevelDBStore(directory)), pytest.raises(StorageInUse, match="in use") as refusal:
        LevelDBStore(directory)
    assert str(directory) in str(refusal.value)


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    code = "import sys; from kv.leveldb import LevelDBStore; LevelDBStore(sys.argv[1])"
    with closing(LevelDBStore(tmp_path / "data")):
        other = _python(code, tmp_path / "data")
        _, errors = other.communicate()
    assert other.returncode != 0
    assert "StorageInUse" in errors


def test_a_missing_store_is_not_made_when_one_is_expected(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        LevelDBStore(tmp_path / "data", create=False)
    LevelDBStore(tmp_path / "data").close()
    LevelDBStore(tmp_path / "data", create=False).close()


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    LevelDBStore(tmp_path / "data").close()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_every_name_on_the_way_to_a_new_directory_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    LevelDBStore(tmp_path / "a" / "b" / "data").close()
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(StorageError):
        LevelDBStore(tmp_path / "data")


def test_acknowledged_batches_survive_sigkill(tmp_path: Path) -> None:
    acknowledged = -1
    for round_number in range(3):
        directory = tmp_path / str(round_number)
        writer = _python(WRITER, directory)
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged >= 40:
                writer.send_signal(signal.SIGKILL)
        writer.communicate()
        with closing(LevelDBStore(directory, create=False)) as store:
            last = int(store.get(b"last") or -1)
            assert last >= acknowledged >= 40
            keys = [key for key, _ in store.scan(b"0", b"9")]
            assert keys == [b"%08d" % number for number in range(last + 1)]


def test_a_full_disk_ends_the_store_and_loses_nothing(tmp_path: Path) -> None:
    writer = _python(LIMITED_WRITER, tmp_path / "data")
    output, errors = writer.communicate()
    assert output == "halted\n", errors
    with closing(LevelDBStore(tmp_path / "data", create=False)) as store:
        assert store.get(b"before") == b"1"
        assert store.get(b"small") is None


@pytest.mark.parametrize("kind", ["*.log", "*.ldb", "MANIFEST-*", "CURRENT"])
def test_a_flipped_bit_is_never_answered_with_other_rows(tmp_path: Path, kind: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    with closing(LevelDBStore(tmp_path / "good")) as store:
        store.write(dict(ROWS))
    if kind != "*.log":  # opening again moves the rows from the write-ahead log into a table file
        LevelDBStore(tmp_path / "good").close()
    noticed = 0
    for flip, read in product(range(8), (_read_by_key, _read_forward, _read_backward)):
        damaged = tmp_path / f"{read.__name__}-{flip}"
        shutil.copytree(tmp_path / "good", damaged)
        victim = max(damaged.glob(kind), key=lambda path: path.stat().st_size)
        content = bytearray(victim.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        victim.write_bytes(content)
        try:
            with closing(LevelDBStore(damaged, create=False)) as store:
                read(store)
        except StorageError:
            noticed += 1
    assert noticed >= 8


@pytest.mark.parametrize("stop", [b"\xff", b"key-0299\x00"])
def test_a_damaged_block_is_refused_wherever_it_lies(tmp_path: Path, stop: bytes) -> None:
    """The last block too: a scan that ends before its rows looks like one that has no more."""
    with closing(LevelDBStore(tmp_path / "good")) as store:
        store.write(dict(ROWS))
    LevelDBStore(tmp_path / "good").close()
    (table,) = (tmp_path / "good").glob("*.ldb")
    blocks_end = table.read_bytes().rindex(ROWS[b"key-0299"])
    for position in range(10, blocks_end, 300):
        damaged = tmp_path / f"damaged-{position}"
        shutil.copytree(tmp_path / "good", damaged)
        content = bytearray(table.read_bytes())
        content[position] ^= 0x01
        (damaged / table.name).write_bytes(content)
        with closing(LevelDBStore(damaged)) as store, pytest.raises(StorageError):
            list(store.scan(b"", stop))


def _read_by_key(store: LevelDBStore) -> None:
    assert {key: store.get(key) for key in ROWS} == ROWS


def _read_forward(store: LevelDBStore) -> None:
    assert list(store.scan(b"", b"\xff")) == sorted(ROWS.items())


def _read_backward(store: LevelDBStore) -> None:
    assert list(store.scan(b"", b"\xff", reverse=True)) == sorted(ROWS.items(), reverse=True)


def test_a_damaged_row_halts_the_store(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(LevelDBStore(tmp_path / "data")) as store:
            store.write(dict(ROWS))
    table = max(tmp_path.glob("data/*.ldb"), key=lambda path: path.stat().st_size)
    content = bytearray(table.read_bytes())
    for position in range(100, 2000, 10):
        content[position] ^= 0xFF
    with closing(LevelDBStore(tmp_path / "data")) as store:
        with store.snapshot() as snapshot:
            with table.open("r+b") as opened:
                opened.write(content)
            with pytest.raises(StorageError):
                list(store.scan(b"", b"\xff"))
            with pytest.raises(StorageError):
                snapshot.get(b"absent")
        with pytest.raises(StorageError):
            store.get(b"absent")
        with pytest.raises(StorageError):
            store.write({b"a": b"1"})


@pytest.mark.parametrize("way", ["read to its end", "cut off", "left", "failed"])
def test_a_scan_closes_its_cursor_however_it_ends(tmp_path: Path, way: str) -> None:
    """The garbage collector may take a database from under a cursor that failed: the process would crash."""
    with closing(LevelDBStore(tmp_path / "data")) as store:
        store.write(dict(ROWS))
        rows = store.scan(b"", b"\xff", limit=1 if way == "cut off" else None)
        (cursor,) = store._readers
        assert next(rows) == min(ROWS.items())
        assert cursor.valid()
        if way == "left":
            rows.close()  # type: ignore[attr-defined]  # a generator, though nobody need know
        elif way == "failed":
            with pytest.raises(StorageError):
                rows.throw(OSError())  # type: ignore[attr-defined]
        else:
            list(rows)
        with pytest.raises(RuntimeError, match="closed"):
            cursor.valid()


def test_closing_under_a_reader_neither_crashes_nor_answers_wrongly(tmp_path: Path) -> None:
    for _ in range(5):
        store = LevelDBStore(tmp_path / "data")
        store.write(dict(ROWS))
        started = threading.Barrier(3)
        wrong: list[bytes] = []
        arguments = (store, started, wrong)
        readers = [threading.Thread(target=_read_until_closed, args=arguments) for _ in range(2)]
        for reader in readers:
            reader.start()
        started.wait()
        store.close()
        for reader in readers:
            reader.join()
        assert wrong == []


def _read_until_closed(store: LevelDBStore, started: threading.Barrier, wrong: list[bytes]) -> None:
    started.wait()
    try:
        while True:
            wrong.extend(key for key, value in store.scan(b"", b"\xff") if ROWS[key] != value)
            wrong.extend(key for key in ROWS if store.get(key) != ROWS[key])
    except StorageError:
        return


def _python(code: str, directory: Path) -> subprocess.Popen[str]:
    rooms = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=rooms,
    )
