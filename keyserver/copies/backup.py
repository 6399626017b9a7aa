"""A copy of one replica at one log index, as one stream of bytes: what a backup file is, and what a running
replica hands to its operator.

It holds the rows of the database and the log up to their index. It never holds a key nor the sign-once
register; it does hold the private rows, so whoever may read it reads names and profiles.

The stream
* MAGIC, then the manifest: u8 MANIFEST, u32be length, JSON.
* Records: u8 part, u32be length and bytes of the key, u32be length and bytes of the value. The parts come in
  the order of `Part`; keys rise within a part.
* u8 END, then the seal: u32be length, JSON with the counts of records and the SHA-256 of everything before.
  Or, anywhere after MAGIC, u8 FAILED, u32be length and a text: the replica could not read on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, get_type_hints

from keyserver.copies.check import LOG, Faults, Subject
from keyserver.machine.codes import Halt
from keyserver.machine.state import Machine, load_position
from keyserver.machine.tables import Tables
from kv.interface import Reader, StorageError
from kv.keys import EVERYTHING, U64_BYTES, from_u64, u64
from kv.merge import Row
from replication.interface import ReplicatedLog
from verifier import limits
from verifier.errors import E2eksError, Malformed
from verifier.realm import parse_realm_json
from verifier.types import Realm

SCHEMA = "e2eks.backup/1"
MAGIC = b"e2eks-backup/1\n"
MANIFEST_BYTES = 2 * limits.REALM_JSON_BYTES
KEY_BYTES = 1024  # longer than any key of any table
VALUE_BYTES = 2 * limits.LOG_ENTRY_BYTES  # no row is larger than a log entry
TEXT_BYTES = 4096
CHUNK_BYTES = 256 * 1024  # handed out at a time
LOG_RUN_ENTRIES = 256  # read from the log at a time
LOG_RUN_BYTES = 4 * 1024 * 1024

_LENGTH = 4


class BackupDamaged(E2eksError):
    """The bytes are not a whole backup of this version; the text says where they end to be one."""


class Part(IntEnum):
    """What a record belongs to, in the order of the stream."""

    END = 0
    INDEX_PROOFS = 1  # rows of the VRF cache
    LOG = 2  # u64be log index -> payload
    ROWS = 3  # all other rows of the database
    MANIFEST = 254
    FAILED = 255


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the copy is of. Hashes are hexadecimal. `log_fault`: what was wrong with the log's own chain."""

    realm: str
    realm_hash: str
    realm_json: str
    replica: str
    applied_index: int
    state_digest: str
    epoch: int
    min_epoch_interval_ms: int
    created_ms: int
    log_fault: str = ""

    def encode(self) -> bytes:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True).encode()

    def parse_realm(self) -> Realm:
        """The realm as the replica knew it. Raises BackupDamaged."""
        try:
            realm = parse_realm_json(self.realm_json.encode())
        except Malformed as error:
            raise BackupDamaged(f"the realm in the backup: {error}") from None
        if realm.hash.hex() != self.realm_hash:
            raise BackupDamaged("the realm in the backup is another one than its manifest says")
        return realm


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose copy it is, and when it was made."""

    machine: Machine
    realm_json: bytes
    replica: str
    now_ms: int


def copy_stream(origin: Origin, rows: Reader, log: ReplicatedLog, log_fault: str = "") -> Iterator[bytes]:
    """The stream in pieces. `rows`: a snapshot, which the log is at least as long as.

    A copy that cannot be read on ends with FAILED. Blocks on the disk.
    """
    digest = hashlib.sha256()
    piece = bytearray()
    counts = dict.fromkeys((Part.INDEX_PROOFS, Part.LOG, Part.ROWS), 0)
    try:
        piece += MAGIC
        piece += bytes((Part.MANIFEST,)) + _framed(_manifest(origin, rows, log_fault).encode())
        for part, (key, value) in _records(rows, log):
            counts[part] += 1
            piece += b"".join((bytes((part,)), _framed(key), _framed(value)))
            if len(piece) >= CHUNK_BYTES:
                digest.update(piece)
                yield bytes(piece)
                piece.clear()
    except (StorageError, Halt) as error:
        yield bytes(piece) + bytes((Part.FAILED,)) + _framed(str(error).encode()[:TEXT_BYTES])
        return
    digest.update(piece)
    seal = {"records": {part.name.lower(): count for part, count in counts.items()}}
    sealed = json.dumps({**seal, "sha256": digest.hexdigest()}).encode()
    yield bytes(piece) + bytes((Part.END,)) + _framed(sealed)


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH, "big") + data


def _manifest(origin: Origin, rows: Reader, log_fault: str) -> Manifest:
    position, realm = load_position(rows), origin.machine.realm
    newest = next(rows.scan(*Tables.HEADS.span(), reverse=True, limit=1), None)
    return Manifest(
        realm=realm.name,
        realm_hash=realm.hash.hex(),
        realm_json=origin.realm_json.decode(),
        replica=origin.replica,
        applied_index=position.index,
        state_digest=position.digest.hex(),
        epoch=int.from_bytes(Tables.HEADS.suffix(newest[0]), "big") if newest else 0,
        min_epoch_interval_ms=origin.machine.min_epoch_interval_ms,
        created_ms=origin.now_ms,
        log_fault=log_fault,
    )


def _records(rows: Reader, log: ReplicatedLog) -> Iterator[tuple[Part, Row]]:
    yield from ((Part.INDEX_PROOFS, row) for row in rows.scan(*Tables.VRF_CACHE.span()))
    stop = load_position(rows).index + 1
    lo = 1
    while lo < stop:
        run = log.read(lo, min(stop, lo + LOG_RUN_ENTRIES), LOG_RUN_BYTES)
        if not run:
            raise StorageError(f"the log ends before entry {lo}, which the database has applied")
        yield from ((Part.LOG, (u64(entry.index), entry.payload)) for entry in run)
        lo = run[-1].index + 1
    yield from ((Part.ROWS, row) for row in other_rows(rows))


def other_rows(rows: Reader) -> Iterator[Row]:
    """All rows but those of the VRF cache, in key order."""
    start, stop = Tables.VRF_CACHE.span()
    yield from rows.scan(EVERYTHING[0], start)
    yield from rows.scan(stop, EVERYTHING[1])


class Copy:
    """A stream being read. `manifest` first, then `subject` or `records`, once; both check the seal.

    Everything raises BackupDamaged for what is not a whole stream, StorageError when the replica gave up.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """`read(n)` gives n bytes, or fewer at the end."""
        self._source = read
        self._hash = hashlib.sha256()
        self._next: tuple[Part, Row] | None = None
        self.seal: Mapping[str, Any] = {}  # once all is read
        if self._read(len(MAGIC)) != MAGIC:
            raise BackupDamaged("this is not a backup of a keyserver, or of another version")
        if self._tag() != Part.MANIFEST:
            raise BackupDamaged("the backup has no manifest")
        self.manifest = _parse_manifest(self._frame(MANIFEST_BYTES, "manifest"))

    def records(self) -> Iterator[tuple[Part, Row]]:
        """All records, in order."""
        counts = dict.fromkeys((Part.INDEX_PROOFS, Part.LOG, Part.ROWS), 0)
        last: tuple[Part, bytes] = Part.END, b""
        while (part := self._part(counts)) is not Part.END:
            key, value = self._frame(KEY_BYTES, "key"), self._frame(VALUE_BYTES, "value")
            if (part, key) <= last:
                raise BackupDamaged("the records of the backup are out of order")
            last = part, key
            counts[part] += 1
            yield part, (key, value)

    def subject(self) -> Subject:
        """The copy as something to check. Its parts must be iterated in their order."""
        records = self.records()
        self._next = next(records, None)
        found = Faults()
        if self.manifest.log_fault:
            found.add(LOG, "", self.manifest.log_fault)
        entries = ((_log_index(key), payload) for key, payload in self._of(Part.LOG, records))
        return Subject(
            applied=self.manifest.applied_index,
            index_proofs=self._of(Part.INDEX_PROOFS, records),
            entries=entries,
            rows=self._of(Part.ROWS, records),
            found=found,
        )

    def _of(self, part: Part, records: Iterator[tuple[Part, Row]]) -> Iterator[Row]:
        while self._next is not None and self._next[0] is part:
            row = self._next[1]
            self._next = next(records, None)
            yield row

    def _part(self, counts: Mapping[Part, int]) -> Part:
        """What comes next. At the end the seal is compared."""
        before = self._hash.hexdigest()
        number = self._tag()
        if number in (Part.INDEX_PROOFS, Part.LOG, Part.ROWS):
            return Part(number)
        if number != Part.END:
            raise BackupDamaged("the backup has a record of no known part")
        try:
            self.seal = json.loads(self._frame(TEXT_BYTES, "seal"))
            sealed = self.seal["records"], self.seal["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BackupDamaged("the seal of the backup cannot be read") from None
        if sealed != ({part.name.lower(): count for part, count in counts.items()}, before):
            raise BackupDamaged("the contents of the backup are not those that were sealed: SHA-256 differs")
        if self._source(1):
            raise BackupDamaged("there is something behind the end of the backup")
        return Part.END

    def _tag(self) -> int:
        """What follows. Raises StorageError where the replica gave up."""
        number = self._read(1)
        if not number:
            raise BackupDamaged("the backup ends too early")
        if number[0] == Part.FAILED:
            raise StorageError(self._frame(TEXT_BYTES, "reason").decode("utf-8", "replace"))
        return number[0]

    def _frame(self, limit: int, what: str) -> bytes:
        length = int.from_bytes(self._read(_LENGTH), "big")
        if length > limit:
            raise BackupDamaged(f"a {what} of the backup is longer than {limit} bytes")
        data = self._read(length)
        if len(data) != length:
            raise BackupDamaged("the backup ends too early")
        return data

    def _read(self, size: int) -> bytes:
        data = self._source(size)
        self._hash.update(data)
        return data


def _parse_manifest(data: bytes) -> Manifest:
    try:
        fields = json.loads(data)
        if fields.pop("schema", None) != SCHEMA:
            raise BackupDamaged("the backup is of another version")
        manifest = Manifest(**fields)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BackupDamaged("the manifest of the backup cannot be read") from None
    kinds = get_type_hints(Manifest)
    for name, value in asdict(manifest).items():
        if type(value) is not kinds[name]:
            raise BackupDamaged(f"the manifest of the backup has no {name}")
    return manifest


def _log_index(key: bytes) -> int:
    if len(key) != U64_BYTES:
        raise BackupDamaged("a log entry of the backup has no index")
    return from_u64(key)
