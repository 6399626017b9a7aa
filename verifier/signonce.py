"""The sign-once register: the one thing that keeps a replica or verifier from signing two heads of one epoch.

It is a file of its own, outside the database and outside every backup, so that neither a restored database
nor a second copy of the process can make its owner forget what it signed (contract section 3).

The file
* A header names the owner's key and the floor: epochs up to it without a row here are never signed again.
* Then one record of fixed size for each signature, in the order they were made. A record ends with a hash
  over the record and the hash before it, so that a changed, lost or moved record is noticed.
* `sign_once` returns a signature only when its record is on the disk. Appends go one at a time, so only the
  last record can be torn by a crash, and its signature never left the process: it is cut off. Torn means
  shorter than a record, or ending in zeros where the hash belongs (a file system may grow a file before it
  fills it). Everything else that does not fit is damage, and the file is refused: cutting would allow a
  second signature.
* A file that lost whole records from its end looks sound from inside. Who opens it compares `newest` with
  what its database says it signed.
* Old rows are dropped to keep the file small; the floor rises instead.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kv import crash_points
from kv.interface import StorageError, StorageInUse
from verifier.crypto.hashing import tagged
from verifier.errors import E2eksError
from verifier.limits import HASH_BYTES, SIGNATURE_BYTES

ROWS_KEPT = (
    4096  # more than an hour at one epoch a second; a signature owed for longer is of no use to anybody
)

_MAGIC = b"e2eks-signonce/1"
_HEADER = struct.Struct(">16s32sQ")
_ROW = struct.Struct(">Q32sQQ32s64s")
_HEADER_BYTES = _HEADER.size + HASH_BYTES
_RECORD_BYTES = _ROW.size + HASH_BYTES
_UNWRITTEN = bytes(HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Row:
    """One signature made. `digest` is the state digest at `log_index`.

    Both are 0 in a verifier's register.
    """

    epoch: int
    head_hash: bytes
    timestamp_ms: int
    log_index: int
    digest: bytes
    signature: bytes


class RegisterMissing(StorageError):
    """There is no register at the path. Its owner must not sign: it may have signed before."""


class RegisterCorrupt(StorageError):
    """The register is damaged or another owner's. Its owner must not sign."""


class AlreadySigned(E2eksError):
    """The epoch was signed before, with another head."""


class BelowFloor(E2eksError):
    """The epoch lies at or below the floor and its row is gone: whether it was signed is no longer known."""


class SignOnceRegister:
    """An open register, locked against other processes. Any thread may call it."""

    def __init__(self, path: Path, fd: int, key_id: bytes, contents: _Contents) -> None:
        """Use `create` or `open`."""
        self._path = path
        self._fd = fd
        self._key_id = key_id
        self._rows = contents.rows
        self._floor = contents.floor
        self._chain = contents.chain
        self._end = contents.end
        self._failure: StorageError | None = None
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, key_id: bytes, floor: int = 0) -> SignOnceRegister:
        """A new, empty register of the key with id `key_id` (32 bytes), synced with its directory.

        Raises StorageError when the file exists or cannot be written.
        """
        target = Path(path)
        if len(key_id) != HASH_BYTES:
            raise ValueError("a key id has 32 bytes")
        if os.path.lexists(target):
            raise StorageError(f"{target} exists; a sign-once register is never overwritten")
        contents = _Contents({}, floor, *_header(key_id, floor))
        return cls(target, _write_anew(target, contents, key_id), key_id, contents)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, key_id: bytes) -> SignOnceRegister:
        """The register at `path`, which must belong to `key_id`.

        Raises RegisterMissing, RegisterCorrupt, StorageInUse when another process has it open, StorageError
        when it cannot be read or written.
        """
        target = Path(path)
        fd = _open_locked(target)
        try:
            contents = _read(target, fd, key_id)
        except BaseException:
            os.close(fd)
            raise
        return cls(target, fd, key_id, contents)

    @property
    def floor(self) -> int:
        """Epochs up to this one are signed only if their row is still here."""
        return self._floor

    def newest(self) -> Row | None:
        """The row of the largest epoch, or None while nothing was signed."""
        with self._lock:
            return self._rows[max(self._rows)] if self._rows else None

    def get(self, epoch: int) -> Row | None:
        """The row of an epoch, or None. Raises StorageError once the register has failed or is closed."""
        with self._lock:
            self._refuse_if_failed()
            return self._rows.get(epoch)

    def sign_once(self, epoch: int, head_hash: bytes, make: Callable[[], Row]) -> Row:
        """The row of `epoch`: the stored one, or else the one `make` returns, once it is on the disk.

        `make` is called only if the epoch may be signed. Raises AlreadySigned when the stored row is about
        another head, BelowFloor, and StorageError when the row could not be stored; the signature must then
        not be used, and every later call raises StorageError too.
        """
        with self._lock:
            self._refuse_if_failed()
            stored = self._rows.get(epoch)
            if stored is not None:
                if stored.head_hash != head_hash:
                    raise AlreadySigned(f"epoch {epoch} was signed before with another head")
                return stored
            if epoch <= self._floor:
                raise BelowFloor(
                    f"epoch {epoch} is not above {self._floor}, up to which nothing is signed anew"
                )
            row = make()
            if (row.epoch, row.head_hash) != (epoch, head_hash):
                raise ValueError("the row made is about another epoch or head")
            self._append(row)
            return row

    def close(self) -> None:
        """Give the file free. Idempotent; every call of `get` or `sign_once` after it raises StorageError."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._failure = self._failure or StorageError(f"{self._path} is closed")

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise StorageError(str(self._failure))

    def _append(self, row: Row) -> None:
        record = _record(row, self._chain)
        try:
            _write_all(self._fd, record, self._end)
            crash_points.reach("S2")
            os.fsync(self._fd)
            crash_points.reach("S3")
            self._rows[row.epoch] = row
            self._chain = record[-HASH_BYTES:]
            self._end += len(record)
            if len(self._rows) >= 2 * ROWS_KEPT:
                self._drop_old_rows()
        except (OSError, StorageError) as error:
            self._failure = StorageError(f"{self._path} cannot be written: {error}")
            raise self._failure from error

    def _drop_old_rows(self) -> None:
        """Write a new file with the newest rows and put it in the old one's place, lock included."""
        epochs = sorted(self._rows)
        floor = max(self._floor, epochs[-ROWS_KEPT - 1])
        rows = {epoch: self._rows[epoch] for epoch in epochs[-ROWS_KEPT:]}
        contents = _Contents(rows, floor, *_header(self._key_id, floor))
        fd = _write_anew(self._path, contents, self._key_id)
        os.close(self._fd)
        self._fd = fd
        self._rows, self._floor = contents.rows, contents.floor
        self._chain, self._end = contents.chain, contents.end


def read_rows(path: str | os.PathLike[str], *, key_id: bytes) -> tuple[int, dict[int, Row]]:
    """(floor, rows by epoch) of a register that its owner may have open: without the lock, changing nothing.

    A record that is being written may be missing. Raises RegisterMissing, RegisterCorrupt, StorageError.
    """
    target = Path(path)
    try:
        data = target.read_bytes()
    except FileNotFoundError:
        raise RegisterMissing(f"the sign-once register {target} is missing") from None
    except OSError as error:
        raise StorageError(f"{target} cannot be read: {error.strerror}") from error
    contents = _decode(target, data, key_id)
    return contents.floor, contents.rows


@dataclass(slots=True)
class _Contents:
    rows: dict[int, Row]
    floor: int
    chain: bytes
    end: int


def _header(key_id: bytes, floor: int) -> tuple[bytes, int]:
    """Hash of the header, and where the first record starts."""
    return tagged("e2eks/1/signonce-header", _HEADER.pack(_MAGIC, key_id, floor)), _HEADER_BYTES


def _record(row: Row, chain: bytes) -> bytes:
    if (
        len(row.head_hash) != HASH_BYTES
        or len(row.digest) != HASH_BYTES
        or len(row.signature) != SIGNATURE_BYTES
    ):
        raise ValueError("a row has hashes of 32 bytes and a signature of 64")
    body = _ROW.pack(row.epoch, row.head_hash, row.timestamp_ms, row.log_index, row.digest, row.signature)
    return body + tagged("e2eks/1/signonce-row", chain, body)


def _encode(contents: _Contents, key_id: bytes) -> bytes:
    """The whole file; moves `chain` and `end` of the contents behind the last record."""
    pieces = [_HEADER.pack(_MAGIC, key_id, contents.floor), contents.chain]
    for epoch in sorted(contents.rows):
        record = _record(contents.rows[epoch], contents.chain)
        contents.chain = record[-HASH_BYTES:]
        contents.end += len(record)
        pieces.append(record)
    return b"".join(pieces)


def _write_anew(path: Path, contents: _Contents, key_id: bytes) -> int:
    """A locked descriptor of a new, synced file that has taken the place of `path`. Raises StorageError."""
    draft = path.with_name(path.name + ".new")
    try:
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{draft} cannot be made: {error.strerror}") from error
    try:
        _lock(path, fd)
        _write_all(fd, _encode(contents, key_id), 0)
        os.fsync(fd)
        os.rename(draft, path)
        _sync_directory(path.parent)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        raise
    return fd


def _open_locked(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RegisterMissing(f"the sign-once register {path} is missing") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        _lock(path, fd)
        # Between opening and locking, the holder may have put another file in its place.
        if os.fstat(fd).st_ino != os.stat(path).st_ino:
            raise StorageInUse(f"{path} is in use by another process. Stop that first")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
        raise
    return fd


def _lock(path: Path, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageInUse(f"{path} is in use by another process. Stop that first") from None


def _read(path: Path, fd: int, key_id: bytes) -> _Contents:
    try:
        data = _read_all(fd)
        contents = _decode(path, data, key_id)
        if contents.end < len(data):
            os.ftruncate(fd, contents.end)
        # A failed sync may leave pages that read back and yet are not on the disk. Writing the last record
        # once more makes this sync write it; all before it were synced before it was made.
        last = data[max(0, contents.end - _RECORD_BYTES) : contents.end]
        _write_all(fd, last, contents.end - len(last))
        os.fsync(fd)
        _sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"{path} cannot be read and synced: {error.strerror}") from error
    return contents


def _decode(path: Path, data: bytes, key_id: bytes) -> _Contents:
    """Rows of the file without a torn last record. Raises RegisterCorrupt."""
    if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        raise RegisterCorrupt(f"{path} is not a sign-once register, or its header is damaged")
    _, owner, floor = _HEADER.unpack_from(data)
    chain, end = _header(owner, floor)
    if data[_HEADER.size : _HEADER_BYTES] != chain:
        raise RegisterCorrupt(f"the header of the sign-once register {path} is damaged")
    if owner != key_id:
        raise RegisterCorrupt(f"the sign-once register {path} belongs to another key")
    contents = _Contents({}, floor, chain, end)
    for record in _whole_records(data):
        body = record[: _ROW.size]
        expected = tagged("e2eks/1/signonce-row", contents.chain, body)
        if record[_ROW.size :] != expected:
            raise RegisterCorrupt(f"the sign-once register {path} is damaged at byte {contents.end}")
        row = Row(*_ROW.unpack(body))
        if row.epoch in contents.rows:
            raise RegisterCorrupt(f"the sign-once register {path} holds epoch {row.epoch} twice")
        contents.rows[row.epoch] = row
        contents.chain = expected
        contents.end += _RECORD_BYTES
    return contents


def _whole_records(data: bytes) -> Iterator[bytes]:
    """Every record but a torn last one."""
    last = len(data) - _RECORD_BYTES
    for start in range(_HEADER_BYTES, last + 1, _RECORD_BYTES):
        record = data[start : start + _RECORD_BYTES]
        if start == last and record.endswith(_UNWRITTEN):
            return
        yield record


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    pieces = []
    position = 0
    while position < size:
        piece = os.pread(fd, size - position, position)
        if not piece:
            break
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


def _write_all(fd: int, data: bytes, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data = data[written:]
        position += written


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
